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
import type { EmbeddedServer, ServerSettings } from '../../src/embedded/server.ts'
import { chosenVersion, packageOf } from '../rig/postgres-version.ts'
import { connection as connect, makeDatabase, startServers } from '../rig/servers.ts'

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
  /** Waits for who is breaking it, which may start it as well. */
  start(): Promise<void>
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
  await using starting = new AsyncDisposableStack()
  const disk = join(directory, 'c')
  const noSmallDisk = options.smallDisk ? await mountSmallDisk(disk) : 'not wanted'
  if (noSmallDisk === undefined) {
    starting.defer(async () => {
      await copyFile(join(disk, 'server', 'server.log'), `${disk}.log`).catch(() => {})
      unmount(disk)
    })
  }
  const { servers } = starting.use(
    await startServers(
      names.map((name) => {
        return { package: postgresPackage, directory: join(directory, name, 'server'), settings }
      }),
    ),
  )
  starting.defer(async () => {
    await Promise.all(servers.map((server) => server.stop('immediate')))
  })
  const nodes = names.map((name, index) => {
    const isSmall = noSmallDisk === undefined && name === 'c'
    return nodeOver(name, servers[index] as EmbeddedServer, isSmall ? disk : undefined)
  })
  await Promise.all(nodes.map((node) => install(node)))
  for (const node of nodes) await introduce(node, nodes)
  const started = starting.move()
  return {
    nodes,
    node: (name) => nodes[names.indexOf(name)] as Node,
    noSmallDisk,
    [Symbol.asyncDispose]: () => started.disposeAsync(),
  }
}

/** Makes a disk that can be filled, until the process ends at the latest; says why, if it cannot. */
async function mountSmallDisk(mountPoint: string): Promise<string | undefined> {
  await mkdir(mountPoint, { recursive: true })
  return await run('mount', ['-t', 'tmpfs', '-o', `size=${smallDisk}m,mode=755`, 'tmpfs', mountPoint]).then(
    () => {
      process.on('exit', () => void unmount(mountPoint))
      return undefined
    },
    (error: { stderr?: string; message: string }) => (error.stderr || error.message).trim(),
  )
}

/** Does nothing where nothing is mounted. At the end of the process there is no time to wait for anything. */
function unmount(mountPoint: string): void {
  spawnSync('umount', ['-l', mountPoint], { stdio: 'ignore' })
}

/** The schema, and a default that pgonce must overrule: elsewhere a commit would not wait for its flush. */
async function install({ name, server, url }: Node): Promise<void> {
  await makeDatabase(server, databaseName)
  await using admin = connection(url)
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
    start: () => exclusively(node, () => server.start()),
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

/** One connection for one purpose. What the run itself does is not to be lost. */
export function connection(url: string, connectTimeout = 10) {
  return connect(url, {
    connect_timeout: connectTimeout,
    fetch_types: false,
    connection: { synchronous_commit: 'on' },
  })
}
