/** The end of a run: what stands in the databases, against a plain count of the input. */
import postgres from 'postgres'
import { connection } from '../proof/rig/servers.ts'
import type { EmbeddedServer } from '../src/embedded/server.ts'
import { home } from './environment.ts'
import { type DatabaseName, databaseNames, type Message, type Plan } from './plan.ts'
import { group, producerOf, topic } from './protocol.ts'
import { count, type Tally } from './tally.ts'

export interface Truth {
  readonly tallies: ReadonlyMap<DatabaseName, ReadonlyMap<string, Tally>>
  /** Sequences claimed, by partition; `gaps` if they are not 0 to n without a hole. */
  readonly claimed: readonly { readonly count: number; readonly gaps: boolean }[]
  /** The position of each partition. */
  readonly positions: readonly number[]
  /** Prepared transactions, anybody's. */
  readonly inDoubt: number
  /** Losses on record, `once.loss`. */
  readonly losses: number
}

export interface Comparison {
  /** Messages that took effect, as the ledger has it. */
  readonly processed: number
  /** Deliveries that the ledger answered as duplicates. */
  readonly duplicates: number
  /** Departures and arrivals that are missing. */
  readonly lost: number
  /** Departures and arrivals that are too many. */
  readonly doubled: number
  /** What is wrong; empty if every message took effect exactly once. */
  readonly problems: readonly string[]
}

/** Reads everything that the verdict rests on from the databases; nothing from the memory of a process. */
export async function readTruth(
  urls: Readonly<Record<DatabaseName, string>>,
  partitions: number,
): Promise<Truth> {
  const tallies = new Map<DatabaseName, Map<string, Tally>>()
  let losses = 0
  for (const name of databaseNames) {
    await using database = connection(urls[name])
    const rows = await database.sql<(Tally & { checksum: string })[]>`select * from tally`
    tallies.set(name, new Map(rows.map((row) => [row.key, { ...row, checksum: Number(row.checksum) }])))
    const [found] = await database.sql<{ n: number }[]>`select count(*)::int as n from once.loss`
    losses += found?.n ?? 0
  }
  await using database = connection(urls[home])
  const claimed: { count: number; gaps: boolean }[] = []
  const positions: number[] = []
  for (let partition = 0; partition < partitions; partition += 1) {
    const [producer] = await database.sql<{ count: number; gaps: boolean }[]>`
      select (p.watermark + 1
              + (select coalesce(sum(a.last - a.first + 1), 0)
                   from once.claimed_ahead a where a.producer = p.producer))::int as count,
             p.gaps > 0 as gaps
        from once.producer p where p.producer = ${producerOf(partition)}`
    claimed.push(producer ?? { count: 0, gaps: false })
    const [state] = await database.sql<{ position: number | null }[]>`
      select "position"::int as position from once.read_position(${group}, ${topic}, ${partition})`
    positions.push(state?.position ?? 0)
  }
  return { tallies, claimed, positions, losses, inDoubt: await countInDoubt(Object.values(urls)) }
}

/** Prepared transactions on the servers of these databases. */
async function countInDoubt(urls: readonly string[]): Promise<number> {
  let total = 0
  for (const url of urls) {
    await using database = connection(url)
    const [found] = await database.sql<{ n: number }[]>`
      select count(*)::int as n from pg_prepared_xacts where database = current_database()`
    total += found?.n ?? 0
  }
  return total
}

/** Compares the truth with the input, counted anew. */
export function compare(messages: readonly Message[], plan: Plan, truth: Truth): Comparison {
  const problems: string[] = []
  let lost = 0
  let doubled = 0
  let swapped = 0
  const expected = count(messages)
  for (const name of databaseNames) {
    const wanted = expected.get(name) ?? new Map<string, Tally>()
    const found = truth.tallies.get(name) ?? new Map<string, Tally>()
    for (const key of new Set([...wanted.keys(), ...found.keys()])) {
      const should = wanted.get(key) ?? nothing
      const is = found.get(key) ?? nothing
      const differences = [is.departures - should.departures, is.arrivals - should.arrivals]
      for (const difference of differences) {
        if (difference > 0) doubled += difference
        else lost -= difference
      }
      // Right counts of wrong messages.
      if (differences.every((difference) => difference === 0) && is.checksum !== should.checksum) swapped += 1
    }
  }
  if (lost > 0) problems.push(`${lost} lost`)
  if (doubled > 0) problems.push(`${doubled} doubled`)
  if (swapped > 0) problems.push(`${swapped} counts are right by accident only: one lost, another doubled`)

  plan.partitions.forEach((deliveries, partition) => {
    const own = new Set(deliveries.map(({ sequence }) => sequence)).size
    const { count: claims, gaps } = truth.claimed[partition] ?? { count: 0, gaps: false }
    if (claims !== own || gaps)
      problems.push(`the ledger has ${claims} of ${own} messages of partition ${partition}`)
    const position = truth.positions[partition] ?? 0
    if (position !== deliveries.length) {
      problems.push(`partition ${partition} stands at ${position} of ${deliveries.length}`)
    }
  })
  if (truth.inDoubt > 0) problems.push(`${truth.inDoubt} in doubt`)
  if (truth.losses > 0) problems.push(`${truth.losses} losses on record`)

  const processed = truth.claimed.reduce((sum, { count: claims }) => sum + claims, 0)
  const delivered = truth.positions.reduce((sum, position) => sum + position, 0)
  return { processed, duplicates: delivered - processed, lost, doubled, problems }
}

const nothing: Tally = { key: '', departures: 0, arrivals: 0, checksum: 0 }

/** Counts prepared transactions again and again while a run lasts; undefined while a server is down. */
export function watchInDoubt(servers: readonly EmbeddedServer[]) {
  const clients = servers.map((server) =>
    postgres(server.url(), { max: 1, onnotice: () => {}, backoff: () => 0.2, connect_timeout: 2 }),
  )
  return {
    async count(): Promise<number | undefined> {
      const counts = await Promise.allSettled(
        clients.map((sql) => sql<{ n: number }[]>`select count(*)::int as n from pg_prepared_xacts`),
      )
      let total = 0
      for (const answer of counts) {
        if (answer.status === 'rejected') return undefined
        total += answer.value[0]?.n ?? 0
      }
      return total
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(clients.map((sql) => sql.end({ timeout: 0 })))
    },
  }
}
