/**
 * What happens inside, for tracing tools: `node:diagnostics_channel` tracing channels. Nobody listening
 * costs nothing. Subscribe with `diagnostics_channel.tracingChannel('pgonce:decide').subscribe({ … })`, or to
 * `tracing:pgonce:decide:start` and its siblings (`asyncEnd`, `error`).
 *
 * @see https://nodejs.org/api/diagnostics_channel.html#class-tracingchannel
 */
import { tracingChannel } from 'node:diagnostics_channel'

/** What every event of a step carries. */
export interface StepEvent {
  /** The database that the step runs in, by its name in the client. */
  readonly database: string
  /** The global transaction (UUID). */
  readonly transactionId: string
  /** Only in `recover`: what the home decided. The result is false if somebody else finished the branch first. */
  readonly outcome?: 'committed' | 'aborted'
}

/** The steps, in the order of the flow. Recovery publishes one event a branch that it finishes. */
export const steps = ['begin', 'claim', 'prepare', 'decide', 'finish', 'recover'] as const

export type Step = (typeof steps)[number]

const channels = Object.fromEntries(steps.map((step) => [step, tracingChannel(`pgonce:${step}`)])) as Record<
  Step,
  ReturnType<typeof tracingChannel>
>

/** A branch, say. */
type Scene = Omit<StepEvent, 'database'> & { readonly database: { readonly name: string } }

/** Runs one step between its events. */
export function traced<T>(step: Step, scene: Scene, run: () => Promise<T>): Promise<T> {
  const channel = channels[step]
  if (!channel.hasSubscribers) return run()
  const { database, transactionId, outcome } = scene
  const event: StepEvent = { database: database.name, transactionId, ...(outcome ? { outcome } : {}) }
  return channel.tracePromise(run, event)
}
