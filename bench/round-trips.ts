/**
 * What a transaction costs on any machine: trips over the network, and flushes of the write-ahead log.
 * Counted, one transaction at a time: trips by a proxy, flushes by the server's own statistics.
 */
import { type Count, startCountingProxies, startProxy } from '../proof/rig/proxy/index.ts'
import { pgonce } from '../src/index.ts'
import { countByHand, countFlows, countOf, flowNames, handNames, targetNames, type Urls } from './flows.ts'
import type { Case, Figure } from './harness.ts'
import { delivery, type Tables } from './rows.ts'
import { connect, type Servers, withConnection } from './servers.ts'

const times = 20

export async function tripsAndFlushes(servers: Servers): Promise<Figure[]> {
  return [...(await ofProcess(servers)), ...(await ofTransaction(servers))]
}

/** Every flow over every kind of target, and what people write by hand. */
export const roundTripCases: readonly Case[] = [
  ...targetNames.map((target) => toCase(target, flowNames, (urls) => countFlows(urls, target))),
  toCase('by_hand', handNames, countByHand),
]

function toCase<Flow extends string>(
  way: string,
  flows: readonly Flow[],
  count: (urls: Urls) => Promise<Readonly<Record<Flow, Count>>>,
): Case {
  const keyOf = (flow: Flow) => `round_trips_${way}_${flow}`
  return {
    keys: flows.map(keyOf),
    async measure({ a, b, c }) {
      const counts = await count({ a, b, c })
      return flows.map((flow) => {
        const { trips, messages } = counts[flow]
        return { key: keyOf(flow), value: trips, messages, note: `messages: ${messages}` }
      })
    },
  }
}

async function ofProcess({ a }: Servers): Promise<Figure[]> {
  await using proxies = await startCountingProxies({ a })
  const sql = connect(proxies.urls.a, 1)
  await using once = pgonce<{ a: Tables }>({ databases: { a: sql } })
  let sequence = 0
  const process = () =>
    once.process('a', { producer: 'round trips', sequence: sequence++ }, async (trx) => {
      await trx.insertInto('delivery').values(delivery()).execute()
    })
  const { trips } = await countOf(proxies, process)
  const flushes = await flushesOf([a], async () => {
    for (let count = 0; count < times; count += 1) await process()
  })
  await sql.end()
  return [
    {
      key: 'process_round_trips',
      value: trips,
      target: { exactly: 3 },
      note: 'one statement in the handler',
    },
    { key: 'process_flushes', value: flushes / times, target: { exactly: 1 } },
  ]
}

async function ofTransaction({ a, b }: Servers): Promise<Figure[]> {
  const transfer = async (once: ReturnType<typeof pgonce<{ a: Tables; b: Tables }>>) => {
    await once.transaction(
      async ({ a, b }) => {
        await a.insertInto('delivery').values(delivery()).execute()
        await b.insertInto('delivery').values(delivery()).execute()
      },
      { finish: 'background' },
    )
  }
  // Up to the decision: nobody is there any more when it is time to finish.
  await using cutting = await startProxy({ target: b })
  cutting.inject({ when: { direction: 'client', text: /^commit prepared/ }, action: 'cut-before' })
  const toDecision = await flushesOf([a, b], async () => {
    await using once = pgonce<{ a: Tables; b: Tables }>({ databases: { a, b: cutting.url() } })
    for (let count = 0; count < times; count += 1) await transfer(once)
  })
  const all = await flushesOf([a, b], async () => {
    await using once = pgonce<{ a: Tables; b: Tables }>({ databases: { a, b } })
    for (let count = 0; count < times; count += 1) await transfer(once)
  })
  // What was cut off above; the cases to come shall not have it beside them.
  await using recoverer = pgonce<{ a: Tables; b: Tables }>({ databases: { a, b } })
  await recoverer.recovery.run()
  return [
    {
      key: 'transaction_flushes_to_decision',
      value: toDecision / times,
      target: { exactly: 2 },
      note: 'two databases: PREPARE in one, COMMIT in the other',
    },
    { key: 'transaction_flushes', value: all / times, note: 'with COMMIT PREPARED' },
  ]
}

/** How often the servers flushed their logs while the task ran. */
async function flushesOf(urls: readonly string[], task: () => Promise<void>): Promise<number> {
  const before = await countFlushes(urls)
  await task()
  return (await countFlushes(urls)) - before
}

async function countFlushes(urls: readonly string[]): Promise<number> {
  let flushes = 0
  for (const url of urls) {
    flushes += await withConnection(url, async (sql) => {
      // Sessions report what they did after a while, or when they end.
      await sql`select pg_terminate_backend(pid, 10000) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()`
      const [{ version } = { version: 0 }] = await sql<{ version: number }[]>`
        select current_setting('server_version_num')::int as version`
      const [row] =
        version >= 180_000
          ? await sql<
              { n: number }[]
            >`select sum(fsyncs)::int as n from pg_stat_io where object = 'wal' and context = 'normal'`
          : await sql<{ n: number }[]>`select wal_sync::int as n from pg_stat_wal`
      return row?.n ?? 0
    })
  }
  return flushes
}
