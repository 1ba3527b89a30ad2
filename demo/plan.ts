/**
 * What will happen in a run, from its seed: the stream with its repeated deliveries, and when to kill what.
 * Only the moments depend on the machine: a kill comes at a point of the stream, so many parts of a
 * transaction's usual time later.
 */
import { type Random, random as randomOf } from '../proof/rig/random.ts'

/** Where a side of a message is counted. */
export interface Place {
  readonly database: DatabaseName
  readonly key: string
}

/** One flight, or one line of the user's own file. */
export interface Message {
  /** Counts from 1, in the order of the file. */
  readonly number: number
  readonly departure: Place
  readonly arrival: Place
}

export const databaseNames = ['west', 'central', 'east'] as const

export type DatabaseName = (typeof databaseNames)[number]

/** Two partitions, one for each worker. */
export const partitionCount = 2

/** A delivery of a message; some messages are delivered more than once. */
export interface Delivery {
  /** The message's place in its partition: what the ledger claims. */
  readonly sequence: number
  readonly message: Message
}

/** Kill something when so many deliveries were handed out. */
export interface Strike {
  readonly target: 'worker' | 'server'
  /** 0 or 1. */
  readonly index: number
  /** Part of all deliveries, 0 to 1. */
  readonly at: number
  /** How much later, in parts of the time that a transaction takes; 0 to 1. */
  readonly delay: number
  /** Milliseconds that a server stays down. */
  readonly downtime: number
}

export interface Plan {
  /** What each partition delivers, in order. */
  readonly partitions: readonly (readonly Delivery[])[]
  readonly messages: number
  readonly deliveries: number
  /** In the order of `at`. */
  readonly strikes: readonly Strike[]
  /** The most deliveries in one transaction. */
  readonly batch: number
}

export interface PlanOptions {
  readonly seed: number
  readonly workerKills: number
  readonly serverKills: number
}

const redelivered = 0.1
const largestBatch = 25
const longestDowntime = 500

export function makePlan(
  messages: readonly Message[],
  { seed, workerKills, serverKills }: PlanOptions,
): Plan {
  const random = randomOf(seed)
  const partitions = Array.from({ length: partitionCount }, (_, partition) =>
    deliver(
      messages.filter((_message, index) => index % partitionCount === partition),
      random,
    ),
  )
  const deliveries = partitions.reduce((sum, { length }) => sum + length, 0)
  const strikes = [...strike('worker', workerKills, random), ...strike('server', serverKills, random)]
  return {
    partitions,
    messages: messages.length,
    deliveries,
    strikes: strikes.sort((one, other) => one.at - other.at),
    // A short stream is cut finer, so that it lasts long enough to be disturbed.
    batch: Math.max(1, Math.min(largestBatch, Math.floor(deliveries / (4 * (strikes.length + 1))))),
  }
}

/** A tenth of the messages come twice: half of these at once, the others later, however much. */
function deliver(messages: readonly Message[], random: Random): Delivery[] {
  const later = new Map<number, Delivery[]>()
  const deliveries: Delivery[] = []
  messages.forEach((message, sequence) => {
    const delivery = { sequence, message }
    deliveries.push(delivery)
    if (random.chance(redelivered)) {
      if (random.chance(0.5)) {
        deliveries.push(delivery)
      } else {
        const when = sequence + random.below(messages.length - sequence)
        later.set(when, [...(later.get(when) ?? []), delivery])
      }
    }
    deliveries.push(...(later.get(sequence) ?? []))
  })
  return deliveries
}

/** Spread over the stream; both workers, and both servers, in turn, from the seed on. */
function strike(target: Strike['target'], count: number, random: Random): Strike[] {
  const first = random.below(2)
  return Array.from({ length: count }, (_, turn) => ({
    target,
    index: (first + turn) % 2,
    at: (turn + random.next()) / count,
    delay: random.next(),
    downtime: target === 'server' ? random.below(longestDowntime) : 0,
  }))
}
