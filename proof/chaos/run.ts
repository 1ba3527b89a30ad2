/**
 * A run: servers, coordinators, recoverers and a nemesis; then peace, until nothing is in doubt; then what was
 * done is compared with what there is.
 */
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { pgonce } from '../../src/index.ts'
import { random as randomOf } from '../rig/random.ts'
import { type Anomaly, check, type Verdict } from './checker/index.ts'
import { startCoordinators } from './coordinators.ts'
import { checkEffects, checkFencing, readEffects } from './effects.ts'
import { type Operation, writeHistory } from './history.ts'
import { chooseFate, chooseSkew, count, type Fault, runNemesis, type Tally } from './nemesis.ts'
import type { Assignment } from './protocol.ts'
import { type NamedProxies, startProxies } from './proxies.ts'
import { type Recorder, recorder } from './recorder.ts'
import { startRecoverers } from './recoverers.ts'
import { type Cluster, connection, type Name, names, startCluster } from './servers.ts'
import { initial } from './workloads/bank.ts'
import { workloads as allWorkloads } from './workloads/index.ts'
import { partitionNumbers, partitionOf } from './workloads/queue.ts'
import { commonTables, type Workload } from './workloads/workload.ts'

export interface RunOptions {
  readonly seconds: number
  readonly seed: number
  readonly workloads: readonly string[]
  readonly faults: ReadonlySet<Fault>
  /** Places of coordinators. */
  readonly slots: number
  /** Mean milliseconds until a coordinator is killed. */
  readonly life: number
  readonly serverEvery: number
  readonly proxyEvery: number
  /** Lanes of a coordinator, as a multiple of what each workload wants. */
  readonly lanes: number
  /** Seconds that recovery has after the faults. */
  readonly patience: number
  /** Where histories and logs go; kept also if all is well. */
  readonly keep: string | undefined
  readonly say: (text: string) => void
}

export interface Found extends Anomaly {
  readonly workload: string
}

export interface RunReport {
  readonly seconds: number
  readonly coordinatorKills: number
  readonly serverKills: number
  readonly proxyFaults: number
  readonly faults: Tally
  readonly operations: Recorder['counts']
  readonly resolved: { readonly committed: number; readonly aborted: number; readonly purged: number }
  readonly anomalies: readonly Found[]
  readonly expected: readonly Found[]
  readonly settledAfter: number
  readonly orphans: number
  readonly losses: readonly unknown[]
  readonly skipped: readonly string[]
  /** Where history and logs are, if they were kept. */
  readonly folder: string | undefined
}

/** Milliseconds for which recovery keeps decisions that are proven. */
const keepDecisions = 20_000

export async function run(options: RunOptions): Promise<RunReport> {
  const { faults, say, seed } = options
  const began = performance.now()
  const start = process.hrtime.bigint()
  const now = () => Number(process.hrtime.bigint() - start)
  const chosen = allWorkloads.filter(({ name }) => options.workloads.includes(name))
  const directory = options.keep ?? (await mkdtemp(join(tmpdir(), 'pgonce-chaos-')))
  await mkdir(directory, { recursive: true })
  // The servers may run as another user, who must come through.
  await chmod(directory, 0o755)
  const environment = { ...process.env, NODE_COMPILE_CACHE: join(tmpdir(), 'pgonce-chaos-cache') }
  const random = randomOf(seed)
  const tally: Tally = {}
  const skipped: string[] = []
  let passed = false

  const cluster = await startCluster(join(directory, 'servers'), { smallDisk: faults.has('disk') })
  let proxies: NamedProxies | undefined
  try {
    if (faults.has('disk') && cluster.noSmallDisk !== undefined) {
      skipped.push(`disk: ${cluster.noSmallDisk}`)
      say(`SKIPPED: full disks, since no small one can be mounted here (${cluster.noSmallDisk})`)
    }
    const direct = Object.fromEntries(cluster.nodes.map(({ name, url }) => [name, url])) as Record<
      Name,
      string
    >
    await createTables(cluster, chosen)
    proxies = await startProxies(cluster, seed)
    const { urls } = proxies
    const book = recorder()
    const kills = { coordinators: 0, servers: 0 }
    const crash = async (database: string) => {
      await cluster.node(database as Name).crash(random.chance(0.5) ? 'kill' : 'immediate')
      count(tally, 'server crashes (at a point)')
    }
    const assign = (slot: number, life: number): Assignment => ({
      slot,
      life,
      seed: seed * 1_000_003 + life,
      urls,
      workloads: chosen.map(({ name }) => name),
      lanes: options.lanes,
      start: String(start),
      // Shorter than a coordinator's stall, or longer.
      idleTimeout: random.chance(0.5) ? 500 : 5_000,
      point: undefined,
      skew: chooseSkew(faults, random),
      resumed: Object.fromEntries(book.resume),
      drain: false,
    })
    const coordinators = await startCoordinators({
      slots: options.slots,
      directory,
      environment,
      recorder: book,
      now,
      assign,
      fate: () => chooseFate(faults, random, options.life),
      events: {
        killed: (at) => {
          kills.coordinators += 1
          count(tally, `coordinator kills at ${at}`)
        },
        stalled: () => count(tally, 'stalls between prepare and decision'),
        skewed: () => count(tally, 'coordinators with a wrong clock'),
        crashAt: crash,
      },
    })
    const recoverers = await startRecoverers({ directory, environment, urls, direct, keep: keepDecisions })
    const peace = new AbortController()
    const nemesis = runNemesis(
      {
        faults,
        random,
        cluster,
        tally,
        serverEvery: options.serverEvery,
        proxyEvery: options.proxyEvery,
        coordinators: () => [...coordinators.working],
        recoverers: () => recoverers.working,
        proxy: proxies.break,
      },
      peace.signal,
    )
    const serverKills = () => sum(tally, 'server crashes') + sum(tally, 'disk full (server crashed')
    const progress = setInterval(() => {
      void inDoubt(cluster).then((doubt) => {
        const ops = Object.values(book.counts).reduce(
          (total, { ok, fail, info }) => total + ok + fail + info,
          0,
        )
        say(
          `${String(Math.round((performance.now() - began) / 1000)).padStart(5)} s  ${ops} operations, ` +
            `${kills.coordinators} coordinators killed, ${serverKills()} server crashes, ` +
            `${sum(tally, 'proxy:')} proxy faults, ${doubt ?? '?'} in doubt`,
        )
      })
    }, 5_000)

    await sleep(options.seconds * 1000)
    clearInterval(progress)
    peace.abort()
    await nemesis
    proxies.heal()
    await Promise.all(cluster.nodes.map((node) => node.start()))
    await coordinators.stop(10_000)
    for (const process of recoverers.working) process.kill('SIGCONT')
    say('the faults are over; waiting until nothing is in doubt')
    const quiet = performance.now()
    await coordinators.runOnce({ ...assign(0, 10_000), urls: direct, skew: undefined, drain: true }, 20_000)
    let orphans = await inDoubt(cluster)
    while (orphans !== 0 && performance.now() - quiet < options.patience * 1000) {
      await sleep(200)
      orphans = await inDoubt(cluster)
    }
    const settledAfter = (performance.now() - quiet) / 1000
    await recoverers.stop()
    say(`settled after ${settledAfter.toFixed(1)} s; checking`)

    const losses = await auditAll(direct, book, say)
    const report = await judge(cluster, chosen, book, directory)
    const violations: Found[] = [...report.anomalies]
    if (orphans !== 0)
      violations.push({ workload: 'recovery', name: 'orphan', count: orphans ?? 1, examples: [] })
    if (losses.length > 0)
      violations.push({
        workload: 'recovery',
        name: 'unexplained-loss',
        count: losses.length,
        examples: losses.slice(0, 5),
      })
    passed = violations.length === 0
    if (!passed) await writeFile(join(directory, 'anomalies.json'), JSON.stringify(violations, undefined, 2))
    return {
      seconds: Math.round((performance.now() - began) / 100) / 10,
      coordinatorKills: kills.coordinators,
      serverKills: serverKills(),
      proxyFaults: sum(tally, 'proxy:'),
      faults: tally,
      operations: book.counts,
      resolved: report.resolved,
      anomalies: violations,
      expected: report.expected,
      settledAfter,
      orphans: orphans ?? -1,
      losses,
      skipped,
      folder: passed && options.keep === undefined ? undefined : directory,
    }
  } finally {
    await proxies?.[Symbol.asyncDispose]()
    await cluster[Symbol.asyncDispose]()
    await keepLogs(directory, passed && options.keep === undefined)
  }
}

async function createTables(cluster: Cluster, chosen: readonly Workload[]): Promise<void> {
  for (const { url } of cluster.nodes) {
    await using admin = connection(url)
    await admin.sql.unsafe(commonTables)
    for (const { tables } of chosen) await admin.sql.unsafe(tables)
  }
}

/** How many prepared transactions there are; undefined if a server did not answer. */
async function inDoubt(cluster: Cluster): Promise<number | undefined> {
  const counts = await Promise.all(
    cluster.nodes.map(async ({ url }) => {
      await using probe = connection(url, 2)
      const rows = await probe.sql<{ n: number }[]>`select count(*)::int as n from pg_prepared_xacts`.catch(
        () => undefined,
      )
      return rows?.[0]?.n
    }),
  )
  return counts.includes(undefined) ? undefined : counts.reduce((total: number, n) => total + (n ?? 0), 0)
}

/** Asks for the outcomes that nobody asked for yet, and for losses. */
async function auditAll(
  urls: Record<Name, string>,
  book: Recorder,
  say: (text: string) => void,
): Promise<unknown[]> {
  await using once = pgonce<Record<string, object>>({ databases: urls })
  for (const attempt of book.attempts.values()) {
    const id = attempt.completion?.id
    if (attempt.completion?.type !== 'info' || id == null || attempt.outcome !== undefined) continue
    attempt.outcome = await once.outcome(id)
  }
  const report = await once.recovery.run()
  if (report.unreachable.length > 0) say(`unreachable: ${JSON.stringify(report.unreachable)}`)
  await once.recovery.audit()
  const losses: unknown[] = []
  for (const [database, url] of Object.entries(urls)) {
    await using session = connection(url)
    for (const row of await session.sql`select l.* from once.loss l`) losses.push({ database, ...row })
  }
  return losses
}

async function judge(
  cluster: Cluster,
  chosen: readonly Workload[],
  book: Recorder,
  directory: string,
): Promise<Pick<RunReport, 'anomalies' | 'expected' | 'resolved'>> {
  const clients = new Map(
    cluster.nodes.map(({ name, url }) => [name, postgres(url, { max: 1, onnotice: () => {} })]),
  )
  const connect = (name: Name) => clients.get(name) as postgres.Sql
  try {
    const anomalies: Found[] = []
    const expected: Found[] = []
    const effects = await readEffects(connect)
    const verdict = checkEffects(book.attempts, effects)
    anomalies.push(...verdict.anomalies.map((anomaly) => ({ workload: 'all', ...anomaly })))
    for (const workload of chosen) {
      const { name } = workload
      const history = book.history(name, await workload.finalReads(connect))
      await writeHistory(join(directory, `${name}.jsonl`), history)
      for (const { anomalies: more, expected: allowed } of verdicts(name, history)) {
        anomalies.push(...more.map((anomaly) => ({ workload: name, ...anomaly })))
        expected.push(...allowed.map((anomaly) => ({ workload: name, ...anomaly })))
      }
      if (name === 'queue')
        anomalies.push(...checkFencing(book.attempts).map((anomaly) => ({ workload: name, ...anomaly })))
    }
    return { anomalies, expected, resolved: verdict.resolved }
  } finally {
    await Promise.all([...clients.values()].map((client) => client.end({ timeout: 1 })))
  }
}

function verdicts(name: Workload['name'], history: readonly Operation[]): Verdict[] {
  if (name === 'bank') return [check('bank', history, { initial })]
  if (name === 'list-append')
    return [check('list-append', history, { databases: names, isolation: 'repeatable read' })]
  if (name === 'monotonic') return [check('monotonic', history)]
  // A topic has several partitions; the checker judges one.
  return partitionNumbers.map((partition) => check('queue', partOfQueue(history, partition)))
}

function partOfQueue(history: readonly Operation[], partition: number): Operation[] {
  return history.flatMap((operation) => {
    const { f, value } = operation
    if (f === 'take') return []
    if (f === 'enqueue') return partitionOf(value as number) === partition ? [operation] : []
    if (f === 'consume') return partitionOf((value as { n: number }).n) === partition ? [operation] : []
    if (!Array.isArray(value)) return [operation]
    return [{ ...operation, value: value.filter(({ n }: { n: number }) => partitionOf(n) === partition) }]
  })
}

function sum(tally: Tally, prefix: string): number {
  return Object.entries(tally).reduce((total, [what, n]) => total + (what.startsWith(prefix) ? n : 0), 0)
}

/** The servers' logs stay, their data do not. */
async function keepLogs(directory: string, nothing: boolean): Promise<void> {
  if (nothing) return await rm(directory, { recursive: true, force: true })
  for (const name of names)
    await rm(join(directory, 'servers', name, 'server', 'data'), { recursive: true, force: true })
}
