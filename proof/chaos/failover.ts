/**
 * A phase of its own: the server of database `b` dies, and a standby takes over that lacks the last of what it had
 * acknowledged. No protocol can bring that back. What is asked here is that nothing is lost in silence: each
 * transaction of which one database kept its part and another lost it is found by recovery and the audits, and no
 * other is; also those that recovery had proven before, since it looks again before it purges.
 *
 * A transaction that is gone from every database is consistent, and no audit can find it: that is what an
 * asynchronous standby costs, with or without pgonce. It is counted.
 */
import { chmod, chown, cp, mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { type EmbeddedServer, startServer } from '../../src/embedded/server.ts'
import { pgonce } from '../../src/index.ts'
import { startProxy } from '../rig/proxy/index.ts'
import type { Anomaly } from './checker/index.ts'
import { startCoordinators } from './coordinators.ts'
import { reached, readEffects } from './effects.ts'
import { recorder } from './recorder.ts'
import { startRecoverers } from './recoverers.ts'
import {
  type Cluster,
  connection,
  killAll,
  type Name,
  names,
  postgresPackage,
  settings,
  startCluster,
} from './servers.ts'
import { bank } from './workloads/bank.ts'
import { commonTables } from './workloads/workload.ts'

export interface FailoverReport {
  /** Acknowledged transactions of which a part is gone, and those among them that the audits reported. */
  readonly lostInPart: number
  readonly detected: number
  /** Those among them whose evidence recovery had seen before it was lost: found when it looked again. */
  readonly provenBefore: number
  /** Acknowledged transactions that are gone from every database: consistent, and nothing that could be found. */
  readonly lostWhole: number
  readonly acknowledged: number
  readonly orphans: number
  readonly anomalies: readonly Anomaly[]
  readonly seconds: number
}

/** Milliseconds of writing with the standby in step, and of writing that the standby never hears of. */
const inStep = 3_000
const tail = 2_500

export async function failover(seed: number, say: (text: string) => void): Promise<FailoverReport> {
  const began = performance.now()
  const start = process.hrtime.bigint()
  const directory = await mkdtemp(join(tmpdir(), 'pgonce-failover-'))
  await chmod(directory, 0o755)
  const environment = { ...process.env, NODE_COMPILE_CACHE: join(tmpdir(), 'pgonce-chaos-cache') }
  const cluster = await startCluster(join(directory, 'servers'), { smallDisk: false })
  let standby: EmbeddedServer | undefined
  const targets = new Map(
    cluster.nodes.map(({ name, server }) => [name, { host: '127.0.0.1', port: server.port }]),
  )
  const b = cluster.node('b')
  const target = targets.get('b') as { host: string; port: number }
  await using toB = await startProxy({ target })
  await using link = await startProxy({ target: { host: '127.0.0.1', port: b.server.port } })
  try {
    for (const { url } of cluster.nodes) {
      await using admin = connection(url)
      await admin.sql.unsafe(commonTables)
      await admin.sql.unsafe(bank.tables)
    }
    standby = await follow(cluster, join(directory, 'servers', 'standby', 'server'), link.port)
    const urls = Object.fromEntries(
      cluster.nodes.map(({ name, url }) => [name, name === 'b' ? toB.url(url) : url]),
    ) as Record<Name, string>
    const book = recorder()
    const coordinators = await startCoordinators({
      slots: 2,
      directory,
      environment,
      recorder: book,
      now: () => Number(process.hrtime.bigint() - start),
      fate: () => ({ kind: 'live', after: 600_000 }),
      events: { killed() {}, stalled() {}, skewed() {}, crashAt: async () => {} },
      assign: (slot, life) => ({
        slot,
        life,
        seed: seed * 1_000_003 + life,
        urls,
        workloads: ['bank'],
        lanes: 2,
        start: String(start),
        idleTimeout: 500,
        point: undefined,
        skew: undefined,
        resumed: {},
        drain: false,
      }),
    })
    const recoverers = await startRecoverers({
      directory,
      environment,
      urls,
      keep: 600_000,
      kinds: ['client'],
    })
    while ((book.counts.bank?.ok ?? 0) < 20) await sleep(50)
    await sleep(inStep)
    link.refuse()
    await sleep(tail)
    await killAll(b.server)
    say('failover: the primary is dead, and its standby lacks the last of it')
    await using admin = connection(standby.url())
    await admin.sql`select pg_promote(true, 60)`
    target.port = standby.port
    toB.cutAll()
    await sleep(1_000)
    await coordinators.stop(10_000)

    const direct = { ...urls, b: standby.url('app') }
    await using once = pgonce<Record<string, object>>({ databases: direct })
    const quiet = performance.now()
    let orphans = await inDoubt(Object.values(direct))
    while (orphans > 0 && performance.now() - quiet < 60_000) {
      await sleep(200)
      orphans = await inDoubt(Object.values(direct))
    }
    await recoverers.stop()
    for (const attempt of book.attempts.values()) {
      const id = attempt.completion?.id
      if (attempt.completion?.type !== 'info' || id == null || attempt.outcome !== undefined) continue
      attempt.outcome = await once.outcome(id)
    }
    // With `keep` they would be looked for again in ten minutes.
    await once.recovery.run({ keep: 0 })
    await once.recovery.audit()
    const reported = new Set<string>()
    const proven = new Set<string>()
    for (const url of Object.values(direct)) {
      await using session = connection(url)
      for (const { id } of await session.sql<{ id: string }[]>`
        select transaction_id::text as id from once.loss`)
        reported.add(id)
      for (const { id } of await session.sql<{ id: string }[]>`
        select transaction_id::text as id from once.global_transaction where proven_at is not null`)
        proven.add(id)
    }
    const clients = new Map(names.map((name) => [name, postgres(direct[name] as string, { max: 1 })]))
    const effects = await readEffects((name) => clients.get(name) as postgres.Sql)
    await Promise.all([...clients.values()].map((client) => client.end({ timeout: 1 })))

    const found = {
      undetected: [] as unknown[],
      'false-alarm': [] as unknown[],
      'lost-write': [] as unknown[],
    }
    const inPart = new Set<string>()
    let acknowledged = 0
    let lostWhole = 0
    let provenBefore = 0
    for (const attempt of book.attempts.values()) {
      const { databases, completion, outcome } = attempt
      if (databases.length === 0) continue
      const present = reached(attempt, effects)
      const told = completion?.type === 'ok' || outcome === 'committed'
      if (told) acknowledged += 1
      if (present.length === databases.length) continue
      const transaction = completion?.id?.split(':')[3]
      const example = { attempt: attempt.attempt, databases, present, completion, outcome }
      if (present.length > 0) {
        inPart.add(transaction ?? attempt.attempt)
        if (transaction === undefined || !reported.has(transaction)) found.undetected.push(example)
        else if (proven.has(transaction)) provenBefore += 1
      } else if (told) {
        if (databases.includes('b')) lostWhole += 1
        else found['lost-write'].push(example)
      }
    }
    for (const transaction of reported)
      if (!inPart.has(transaction)) found['false-alarm'].push({ transaction })
    const anomalies = Object.entries(found).flatMap(([name, examples]) =>
      examples.length === 0 ? [] : [{ name, count: examples.length, examples: examples.slice(0, 5) }],
    )
    return {
      lostInPart: inPart.size,
      detected: [...inPart].filter((transaction) => reported.has(transaction)).length,
      provenBefore,
      lostWhole,
      acknowledged,
      orphans,
      anomalies,
      seconds: Math.round((performance.now() - began) / 100) / 10,
    }
  } finally {
    await standby?.stop('immediate')
    await standby?.[Symbol.asyncDispose]()
    await cluster[Symbol.asyncDispose]()
    await rm(directory, { recursive: true, force: true })
  }
}

/** A standby of `b`, made as a cold copy, which follows it through `port`. */
async function follow(cluster: Cluster, directory: string, port: number): Promise<EmbeddedServer> {
  const { server } = cluster.node('b')
  await server.stop('fast')
  const data = join(directory, 'data')
  await mkdir(directory, { recursive: true })
  await cp(server.dataDirectory, data, { recursive: true, preserveTimestamps: true })
  await own(data, server.dataDirectory)
  await writeFile(join(data, 'standby.signal'), '')
  await server.start()
  const standby = await startServer({
    package: postgresPackage,
    directory,
    settings: {
      ...settings,
      primary_conninfo: `host=127.0.0.1 port=${port} user=postgres application_name=standby`,
      wal_retrieve_retry_interval: '200ms',
    },
  })
  await using admin = connection(server.url())
  for (;;) {
    const rows = await admin.sql`select from pg_stat_replication where state = 'streaming'`
    if (rows.length > 0) return standby
    await sleep(50)
  }
}

/** Gives a copy to the owner of the original: a server's user may not be ours. */
async function own(copy: string, original: string): Promise<void> {
  const { uid, gid } = await stat(original)
  await chmod(copy, 0o700)
  await chown(copy, uid, gid)
  for (const entry of await readdir(copy, { recursive: true })) await chown(join(copy, entry), uid, gid)
}

async function inDoubt(urls: readonly string[]): Promise<number> {
  const counts = await Promise.all(
    urls.map(async (url) => {
      await using session = connection(url)
      const rows = await session.sql<{ n: number }[]>`select count(*)::int as n from pg_prepared_xacts`
      return rows[0]?.n ?? 0
    }),
  )
  return counts.reduce((total, n) => total + n, 0)
}
