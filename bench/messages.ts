/**
 * What a message costs: ours against the inbox that people write by hand, and, where the effect is known beforehand,
 * against their one statement.
 */
import { randomUUID } from 'node:crypto'
import {
  type BatchConsumer,
  type Consumer,
  type Message,
  openInbox,
  openInboxStatement,
  openOurOneTrip,
  openOurSql,
  openOurs,
} from './consumers.ts'
import { type Case, type Comparison, compare, concurrently, figureOf } from './harness.ts'
import { withNetwork } from './network.ts'

/** Messages, each for one of the workers: those that run at the same time are numbered from 0. */
type Source = () => (worker: number) => Message

const keys: Source = () => () => ({ scope: 'bench', key: randomUUID(), occurredAt: new Date() })

/** Each worker has a producer of its own: claims of one stand in a row, as its messages do. */
const sequences: Source = () => {
  const run = randomUUID()
  const next: number[] = []
  return (worker) => {
    const sequence = next[worker] ?? 0
    next[worker] = sequence + 1
    return { producer: `${run}-${worker}`, sequence }
  }
}

/** Handles a message, or a batch. */
type Task = (worker: number) => Promise<void>

/** What a consumer is to do; makes first what has to be there. */
type Work<C> = (consumer: C, width: number) => Promise<Task>

const newOnes =
  (source: Source): Work<Consumer> =>
  async (consumer) => {
    const next = source()
    return async (worker) => expect(true, await consumer.process(next(worker)))
  }

/** The same few messages again and again. */
const duplicates =
  (source: Source): Work<Consumer> =>
  async (consumer, width) => {
    const next = source()
    const known = Array.from({ length: width }, (_, worker) => Array.from({ length: 32 }, () => next(worker)))
    for (const message of known.flat()) expect(true, await consumer.process(message))
    let turn = 0
    return async (worker) => {
      turn += 1
      expect(false, await consumer.process(known[worker]?.[turn % 32] as Message))
    }
  }

const batches =
  (size: number): Work<BatchConsumer> =>
  async (consumer) =>
  async () => {
    const occurredAt = new Date()
    const messages = Array.from({ length: size }, () => ({ key: randomUUID(), occurredAt }))
    expect(size, await consumer.processBatch('bench', messages))
  }

function expect<T>(wanted: T, found: T): void {
  if (wanted !== found) throw new Error(`Expected ${wanted}, got ${found}`)
}

interface Volume {
  readonly rounds: number
  readonly operations: number
  /** How many at once. */
  readonly width: number
}

type Contest = (url: string, volume: Volume) => Promise<Comparison>

function contest<C extends Consumer>(
  ours: (url: string, width: number) => C,
  theirs: (url: string, width: number) => C,
  work: Work<C>,
): Contest {
  return async (url, { width, ...options }) => {
    await using we = ours(url, width)
    await using they = theirs(url, width)
    const [a, b] = [await work(we, width), await work(they, width)]
    return await compare(
      (times) => concurrently(width, times, a),
      (times) => concurrently(width, times, b),
      options,
    )
  }
}

const processKey = contest(openOurs, openInbox, newOnes(keys))
const processSequence = contest(openOurs, openInbox, newOnes(sequences))
const duplicateKey = contest(openOurs, openInbox, duplicates(keys))
const duplicateSequence = contest(openOurs, openInbox, duplicates(sequences))
const oneTrip = contest(openOurOneTrip, openInboxStatement, newOnes(keys))
const oneTripSql = contest(openOurSql, openInboxStatement, newOnes(keys))
const batchKey = contest(openOurs, openInbox, batches(500))

interface Planned {
  readonly key: string
  readonly contest: Contest
  readonly volume: Volume
  readonly atLeast?: number
  readonly note?: string
}

const one: Volume = { width: 1, operations: 60, rounds: 40 }
const many: Volume = { width: 16, operations: 320, rounds: 40 }
const few: Volume = { width: 1, operations: 3, rounds: 40 }
const far: Volume = { width: 1, operations: 10, rounds: 40 }
const rows = 'a producer for each of the 16, the inbox has no row that two wait for'

const near: readonly Planned[] = [
  { key: 'process_key_vs_inbox_1', contest: processKey, volume: one, atLeast: 1 },
  { key: 'process_key_vs_inbox_16', contest: processKey, volume: many, atLeast: 0.9 },
  { key: 'process_sequence_vs_inbox_1', contest: processSequence, volume: one, atLeast: 1 },
  { key: 'process_sequence_vs_inbox_16', contest: processSequence, volume: many, atLeast: 0.9, note: rows },
  { key: 'batch_key_500_vs_inbox', contest: batchKey, volume: few, atLeast: 0.85 },
  { key: 'duplicate_key_vs_inbox', contest: duplicateKey, volume: many, atLeast: 0.9 },
  { key: 'duplicate_sequence_vs_inbox', contest: duplicateSequence, volume: many, atLeast: 0.9, note: rows },
  { key: 'one_trip_vs_cte_1', contest: oneTrip, volume: one, atLeast: 0.7 },
  { key: 'one_trip_vs_cte_16', contest: oneTrip, volume: many, atLeast: 0.7 },
  { key: 'one_trip_sql_vs_cte_1', contest: oneTripSql, volume: one, atLeast: 0.7 },
  { key: 'one_trip_sql_vs_cte_16', contest: oneTripSql, volume: many, atLeast: 0.7 },
]

const distant: readonly Planned[] = [
  { key: 'net_process_key_vs_inbox', contest: processKey, volume: far, atLeast: 1.2 },
  { key: 'net_process_sequence_vs_inbox', contest: processSequence, volume: far, atLeast: 1.2 },
  { key: 'net_duplicate_key_vs_inbox', contest: duplicateKey, volume: far },
  { key: 'net_batch_key_500_vs_inbox', contest: batchKey, volume: few },
  { key: 'net_one_trip_vs_cte', contest: oneTrip, volume: far },
]

export const messageCases: readonly Case[] = near.map(toCase)
export const distantMessageCases: readonly Case[] = distant.map(toCase).map(withNetwork)

function toCase({ key, contest, volume, atLeast, note }: Planned): Case {
  return {
    keys: [key],
    async measure({ a }, quick) {
      const found = await contest(a, { ...volume, rounds: quick ? volume.rounds / 4 : volume.rounds })
      const times = `${found.ours.toFixed(2)} ms, by hand ${found.theirs.toFixed(2)} ms`
      return [
        figureOf(
          key,
          found,
          atLeast === undefined ? undefined : { atLeast },
          note === undefined ? times : `${times}; ${note}`,
        ),
      ]
    },
  }
}
