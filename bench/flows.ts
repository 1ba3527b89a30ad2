/**
 * What can be done with a client, step by step, and how often each has to wait for an answer: over every kind of
 * target, one at a time, on connections that were used before.
 */
import { randomUUID } from 'node:crypto'
import { Kysely, PostgresDialect, type Transaction } from 'kysely'
import pg from 'pg'
import { type Count, type CountingProxies, startCountingProxies } from '../proof/rig/proxy/index.ts'
import { environment, replaceEnvironment } from '../src/environment.ts'
import { type Pgonce, pgonce, type TakenPartition } from '../src/index.ts'
import { type Consumer, openInbox, openInboxStatement } from './consumers.ts'
import type { Tables } from './rows.ts'
import { connect } from './servers.ts'
import { type Pair, textbook, unsafe } from './textbook.ts'

export type Name = 'a' | 'b' | 'c'
export type Urls = Readonly<Record<Name, string>>
type Once = Pgonce<Record<Name, Tables>>

/** Each kind of target, with one connection; what was opened for it is ended with the others. */
const targets = {
  url: (url: string) => url,
  postgres_js: (url: string, opened: AsyncDisposableStack) =>
    opened.adopt(connect(url, 1), (sql) => sql.end()),
  kysely_on_pg: (url: string, opened: AsyncDisposableStack) => {
    const pool = opened.adopt(new pg.Pool({ connectionString: url, max: 1 }), (one) => one.end())
    return new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) })
  },
}

export type Target = keyof typeof targets
export const targetNames = Object.keys(targets) as Target[]

const write = (trx: Transaction<Tables>) =>
  trx.insertInto('inbox').values({ source: 'flow', id: randomUUID() }).execute()
const insertInto = (once: Once) =>
  once.builder('a').insertInto('inbox').values({ source: 'flow', id: randomUUID() })
const read = (trx: Transaction<Tables>) => trx.selectFrom('inbox').select('id').limit(1).execute()

/** Does it for the so manieth time, from 0; what is a duplicate is new the first time. */
type Flow = (once: Once, time: number) => Promise<unknown>

/** Each is a handler of one statement for each database that it writes to or reads. */
function makeFlows() {
  // Those of another run are not to be met again.
  const producer = randomUUID()
  const scope = producer
  const occurredAt = new Date()
  const partition = { group: producer, topic: 'bench' }
  let taken: TakenPartition | undefined
  const ten = (time: number) => Array.from({ length: 10 }, (_, index) => time * 10 + index)
  const tenKeys = (time: number) => ten(time).map((n) => ({ key: `batch-${n}`, occurredAt }))
  return {
    process_sequence: (once, time) => once.process('a', { producer, sequence: time }, write),
    process_sequence_duplicate: (once) => once.process('a', { producer, sequence: 0 }, write),
    process_key: (once, time) => once.process('a', { scope, key: `${time}`, occurredAt }, write),
    process_key_duplicate: (once) => once.process('a', { scope, key: '0', occurredAt }, write),
    process_queries: (once, time) =>
      once.process('a', { scope, key: `query-${time}`, occurredAt }, [insertInto(once)]),
    process_queries_duplicate: (once) =>
      once.process('a', { scope, key: 'query-0', occurredAt }, [insertInto(once)]),
    process_key_keep_result: (once, time) =>
      once.process('a', { scope, key: `kept-${time}`, occurredAt, keepResult: true }, async (trx) => {
        await write(trx)
        return time
      }),
    process_position: async (once, time) => {
      taken ??= await once.takePartition('a', partition)
      const position = { ...taken, expected: time === 0 ? null : time, next: time + 1 }
      await once.process('a', { producer: `${producer}-position`, sequence: time }, write, { position })
    },
    process_2: (once, time) =>
      once.process('a', { producer: `${producer}-2`, sequence: time }, async (a, { b }) => {
        await write(a)
        await write(b)
      }),
    batch_sequences: (once, time) =>
      once.processBatch('a', { producer: `${producer}-batch`, sequences: ten(time) }, write),
    batch_keys: (once, time) => once.processBatch('a', { scope, messages: tenKeys(time) }, write),
    batch_duplicates: (once) => once.processBatch('a', { scope, messages: tenKeys(0) }, write),
    transaction_1: (once) => once.transaction(({ a }) => write(a)),
    transaction_1_record: (once) => once.transaction(({ a }) => write(a), { record: true }),
    transaction_2: (once) => over(once, ['a', 'b']),
    transaction_3: (once) => over(once, ['a', 'b', 'c']),
    transaction_2_reads_1: (once) => over(once, ['a', 'b'], ['c']),
    transaction_1_reads_1: (once) => over(once, ['a'], ['b']),
    transaction_reads_2: (once) => over(once, [], ['a', 'b']),
  } satisfies Record<string, Flow>
}

export type FlowName = keyof ReturnType<typeof makeFlows>
export const flowNames = Object.keys(makeFlows()) as FlowName[]

const over = (once: Once, writes: readonly Name[], reads: readonly Name[] = []) =>
  once.transaction(async (handles) => {
    for (const name of writes) await write(handles[name])
    for (const name of reads) await read(handles[name])
  })

/** Counts every flow over one kind of target. */
export async function countFlows(urls: Urls, target: Target): Promise<Record<FlowName, Count>> {
  await using opened = new AsyncDisposableStack()
  const proxies = opened.use(await startCountingProxies(urls))
  const open = (name: Name) => targets[target](proxies.urls[name], opened)
  const databases = { a: open('a'), b: open('b'), c: open('c') }
  const once = opened.use(pgonce<Record<Name, Tables>>({ databases, maxConnections: 1 }))
  const flows: Record<FlowName, Flow> = makeFlows()
  const counts = {} as Record<FlowName, Count>
  for (const name of flowNames) {
    let time = 0
    counts[name] = await countOf(proxies, () => flows[name](once, time++))
  }
  return counts
}

interface ByHand {
  readonly inbox: Consumer
  readonly statement: Consumer
  readonly pair: Pair
}

const newKey = () => ({ scope: 'flow', key: randomUUID(), occurredAt: new Date() })
const knownKey = newKey()

/** What people write by hand, on postgres.js. */
const byHand = {
  inbox: ({ inbox }: ByHand) => inbox.process(newKey()),
  inbox_duplicate: ({ inbox }: ByHand) => inbox.process(knownKey),
  inbox_statement: ({ statement }: ByHand) => statement.process(newKey()),
  transaction_2_unsafe: ({ pair }: ByHand) => unsafe(pair),
  transaction_2_textbook: ({ pair }: ByHand) => textbook(pair),
}

export type HandName = keyof typeof byHand
export const handNames = Object.keys(byHand) as HandName[]

export async function countByHand(urls: Urls): Promise<Record<HandName, Count>> {
  await using opened = new AsyncDisposableStack()
  const proxies = opened.use(await startCountingProxies(urls))
  const open = (name: Name) => opened.adopt(connect(proxies.urls[name], 1), (sql) => sql.end())
  const means = {
    inbox: opened.use(openInbox(proxies.urls.a, 1)),
    statement: opened.use(openInboxStatement(proxies.urls.a, 1)),
    pair: { a: open('a'), b: open('b') },
  }
  const counts = {} as Record<HandName, Count>
  for (const name of handNames) counts[name] = await countOf(proxies, () => byHand[name](means))
  return counts
}

/** What a task takes once all is prepared: of two, since something may go on in the background now and then. */
export async function countOf(
  proxies: CountingProxies<string>,
  task: () => Promise<unknown>,
): Promise<Count> {
  // The first time connects, prepares statements and asks who the databases are.
  for (let uncounted = 0; uncounted < 2; uncounted += 1) await task()
  // Once a second a transaction also asks whether an operator has made the database read-only: not in this moment.
  const { now } = environment
  const moment = now()
  replaceEnvironment({ ...environment, now: () => moment })
  const counts = [await proxies.count(task), await proxies.count(task)]
  replaceEnvironment({ ...environment, now })
  return {
    trips: Math.min(...counts.map(({ trips }) => trips)),
    messages: Math.min(...counts.map(({ messages }) => messages)),
  }
}
