/**
 * The servers of a run: three clusters with one database each, and what can be done to them. Data are flushed as
 * in production; a server that is killed loses what it had not written, and nothing else.
 */
import { execFile, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, copyFile, mkdir, open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { migrate } from '../../src/database/migrate.ts'
import { type EmbeddedServer, type ServerSettings, startServer } from '../../src/embedded/server.ts'
import { chosenVersion, packageOf } from '../rig/postgres-version.ts'

const run = promisify(execFile)

export const names = ['a', 'b', 'c'] as const

export type Name = (typeof names)[number]

/** The database of pgonce in each cluster. */
const databaseName = 'app'

export interface Node {
  readonly name: Name
  readonly server: EmbeddedServer
  /** Its URL, without a proxy. */
  readonly url: string
  /** Whether somebody is busy breaking it. */
  busy: boolean
  /** Ends all its processes at once and starts it again: `kill` by SIGKILL, `immediate` as `pg_ctl -m immediate`. */
  crash(how: 'kill' | 'immediate', downFor?: number): Promise<void>
  /** SIGSTOP for all its processes, and after so many milliseconds SIGCONT. */
  pause(milliseconds: number): Promise<void>
  /** Fills its disk for a while; undefined where it has no small disk of its own. */
  readonly fillDisk: ((milliseconds: number) => Promise<'survived' | 'crashed'>) | undefined
}

export interface Cluster extends AsyncDisposable {
  readonly nodes: readonly Node[]
  node(name: Name): Node
  /** Why disks cannot be filled here; undefined if they can. */
  readonly noSmallDisk: string | undefined
}

export const settings: ServerSettings = {
  max_connections: 200,
  max_prepared_transactions: 200,
  // What an asynchronous commit leaves unflushed stays so for seconds, so that a crash loses it.
  wal_writer_delay: '5s',
  // A crash is followed by a recovery from the log of at most this long.
  checkpoint_timeout: '30s',
  max_wal_size: '64MB',
  min_wal_size: '32MB',
  shared_buffers: '16MB',
  recovery_init_sync_method: process.platform === 'linux' ? 'syncfs' : 'fsync',
  log_checkpoints: 'off',
  wal_level: 'replica',
  autovacuum_naptime: '5s',
}

/** As for tests: PGONCE_TEST_POSTGRES picks the version. */
export const postgresPackage = packageOf(chosenVersion())

/** Megabytes of the small disk. */
const smallDisk = 256

export async function startCluster(
  directory: string,
  options: { readonly smallDisk: boolean },
): Promise<Cluster> {
  await mkdir(directory, { recursive: true })
  await chmod(directory, 0o755)
  const mounted: string[] = []
  let noSmallDisk: string | undefined = options.smallDisk ? undefined : 'not wanted'
  if (options.smallDisk) {
    const mountPoint = join(directory, 'c')
    await mkdir(mountPoint, { recursive: true })
    await run('mount', ['-t', 'tmpfs', '-o', `size=${smallDisk}m,mode=755`, 'tmpfs', mountPoint]).then(
      () => {
        mounted.push(mountPoint)
        process.on('exit', () => void unmount(mountPoint))
      },
      (error: { stderr?: string; message: string }) => {
        noSmallDisk = (error.stderr || error.message).trim()
      },
    )
  }
  const dispose = async (servers: readonly EmbeddedServer[]) => {
    await Promise.all(servers.map((server) => server.stop('immediate')))
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()))
    for (const mountPoint of mounted) {
      const log = join(mountPoint, 'server', 'server.log')
      await copyFile(log, `${mountPoint}.log`).catch(() => {})
      unmount(mountPoint)
    }
  }
  const started = await Promise.allSettled(
    names.map((name) =>
      startServer({ package: postgresPackage, directory: join(directory, name, 'server'), settings }),
    ),
  )
  const servers = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  const failed = started.find((one) => one.status === 'rejected')
  if (failed?.status === 'rejected') {
    await dispose(servers)
    throw failed.reason
  }
  const nodes = servers.map((server, index) => {
    const name = names[index] as Name
    const disk = mounted.find((mountPoint) => mountPoint === join(directory, name))
    return nodeOver(name, server, disk)
  })
  try {
    await Promise.all(nodes.map((node) => install(node)))
    for (const node of nodes) await introduce(node, nodes)
  } catch (error) {
    await dispose(servers)
    throw error
  }
  return {
    nodes,
    node: (name) => nodes[names.indexOf(name)] as Node,
    noSmallDisk,
    [Symbol.asyncDispose]: () => dispose(servers),
  }
}

/** Does nothing where nothing is mounted. At the end of the process there is no time to wait for anything. */
function unmount(mountPoint: string): void {
  spawnSync('umount', ['-l', mountPoint], { stdio: 'ignore' })
}

/** The schema, and a default that pgonce must overrule: elsewhere a commit would not wait for its flush. */
async function install({ name, server, url }: Node): Promise<void> {
  await using admin = connection(server.url())
  await admin.sql.unsafe(`create database ${databaseName}`)
  await migrate(url)
  if (name !== 'b') await admin.sql.unsafe(`alter database ${databaseName} set synchronous_commit = off`)
}

/** Each knows the others as peers, for `once.recover()`. */
async function introduce(here: Node, all: readonly Node[]): Promise<void> {
  await using admin = connection(here.url)
  await admin.sql.unsafe('create extension dblink')
  for (const there of all) {
    if (there === here) continue
    await admin.sql.unsafe(`
      create server ${there.name} foreign data wrapper dblink_fdw
        options (host '127.0.0.1', port '${there.server.port}', dbname '${databaseName}', connect_timeout '2');
      create user mapping for current_user server ${there.name} options (user 'postgres')`)
    await admin.sql`select once.add_peer(${there.name})`
  }
}

function nodeOver(name: Name, server: EmbeddedServer, disk: string | undefined): Node {
  const node: Node = {
    name,
    server,
    url: server.url(databaseName),
    busy: false,
    crash: (how, downFor = 0) =>
      exclusively(node, async () => {
        if (how === 'kill') await killAll(server)
        else await server.stop('immediate')
        await sleep(downFor)
        await server.start()
      }),
    pause: (milliseconds) =>
      exclusively(node, async () => {
        const stopped = await processesOf(server)
        for (const pid of stopped) signal(pid, 'SIGSTOP')
        await sleep(milliseconds)
        for (const pid of stopped) signal(pid, 'SIGCONT')
      }),
    fillDisk:
      disk === undefined
        ? undefined
        : (milliseconds) =>
            exclusively(node, async () => {
              const ballast = join(disk, 'ballast')
              await fill(ballast)
              // Data that do not fit are an error; the next file of the log that does not fit is a crash.
              await fillLog(server.url(), milliseconds)
              await rm(ballast, { force: true })
              const crashed = !(await answers(server.url()))
              if (crashed) {
                await server.stop('immediate')
                await server.start()
              }
              return crashed ? ('crashed' as const) : ('survived' as const)
            }),
  }
  return node
}

async function exclusively<T>(node: Node, task: () => Promise<T>): Promise<T> {
  while (node.busy) await sleep(20)
  node.busy = true
  try {
    return await task()
  } finally {
    node.busy = false
  }
}

async function fill(path: string): Promise<void> {
  const file = await open(path, 'w')
  try {
    for (const size of [1 << 20, 1 << 12]) {
      const block = Buffer.alloc(size)
      for (let full = false; !full; ) {
        full = await file.write(block).then(
          () => false,
          (error: NodeJS.ErrnoException) => {
            if (error.code !== 'ENOSPC') throw error
            return true
          },
        )
      }
    }
  } finally {
    await file.close()
  }
}

/** Begins one file of the log after the other, beyond those that Postgres keeps in store. */
async function fillLog(url: string, milliseconds: number): Promise<void> {
  const until = performance.now() + milliseconds
  await using admin = connection(url, 2)
  while (performance.now() < until) {
    // Not waited for: while the server can write nothing, the answer may never come.
    admin.sql`select pg_create_restore_point('full'), pg_switch_wal()`.catch(() => {})
    await sleep(milliseconds / 10)
  }
}

/** Ends all its processes at once, and leaves it down. */
export async function killAll(server: EmbeddedServer): Promise<void> {
  for (const pid of await processesOf(server)) signal(pid, 'SIGKILL')
  await server.stop('immediate')
}

/** The postmaster first, so that it starts nothing anew. */
async function processesOf({ pid }: EmbeddedServer): Promise<number[]> {
  if (pid === undefined) return []
  const list = `/proc/${pid}/task/${pid}/children`
  const children = existsSync(list)
    ? await readFile(list, 'utf8').catch(() => '')
    : await run('pgrep', ['-P', String(pid)]).then(
        ({ stdout }) => stdout,
        () => '',
      )
  return [pid, ...children.split(/\s+/).filter(Boolean).map(Number)]
}

function signal(pid: number | undefined, name: NodeJS.Signals): boolean {
  try {
    return pid !== undefined && process.kill(pid, name)
  } catch {
    return false
  }
}

export async function answers(url: string): Promise<boolean> {
  await using probe = connection(url, 2)
  const answer = probe.sql`select`.then(
    () => true,
    () => false,
  )
  return await Promise.race([answer, sleep(5_000, false)])
}

/** One connection for one purpose. */
export function connection(url: string, connectTimeout = 10) {
  const sql = postgres(url, {
    max: 1,
    onnotice: () => {},
    connect_timeout: connectTimeout,
    fetch_types: false,
    // What the run itself does is not to be lost.
    connection: { synchronous_commit: 'on' },
  })
  return { sql, [Symbol.asyncDispose]: () => sql.end({ timeout: 1 }) }
}
