/** What the driver and a worker say to each other. */
import type { DatabaseName, Delivery } from './plan.ts'

export const group = 'demo'
export const topic = 'messages'

/** Whose sequences a partition's messages have. */
export function producerOf(partition: number): string {
  return `${topic}-${partition}`
}

export type ToWorker =
  | {
      readonly kind: 'start'
      readonly urls: Readonly<Record<DatabaseName, string>>
      readonly partition: number
    }
  /** Answers a `fetch`; empty at the end of the stream. */
  | { readonly kind: 'batch'; readonly deliveries: readonly Delivery[] }

export type FromWorker =
  /** Wants what follows this position. Everything before it is committed. */
  | { readonly kind: 'fetch'; readonly position: number }
  /** Something failed as things fail while servers are killed; it goes on. */
  | { readonly kind: 'trouble'; readonly message: string }
  /** Something failed that must not; it gives up. */
  | { readonly kind: 'failure'; readonly message: string }
