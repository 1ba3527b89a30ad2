/** What a run tells its coordinators and recoverers, and what coordinators answer: lines of JSON. */
import type { Completion } from './history.ts'
import type { Name } from './servers.ts'
import type { Part } from './workloads/workload.ts'

/** A moment in a coordinator's life: the n-th time that a step in a database begins, or has ended. */
export interface Point {
  readonly step: 'begin' | 'claim' | 'vote' | 'prepare' | 'decide' | 'finish'
  readonly when: 'start' | 'asyncEnd'
  readonly nth: number
  /** `kill`: SIGKILL to itself. `stop`: SIGSTOP to itself, and the run wakes it or not. */
  readonly action: 'kill' | 'stop'
  /** After a stop: SIGKILL as soon as the decision that it delayed is made. */
  readonly thenKill?: boolean
}

export interface Assignment {
  readonly slot: number
  /** Unlike any other coordinator's; makes its numbers and names unique. */
  readonly life: number
  readonly seed: number
  readonly urls: Readonly<Record<Name, string>>
  readonly workloads: readonly string[]
  /** Its lanes, as a multiple of what each workload wants. */
  readonly lanes: number
  /** `process.hrtime()` at the start of the run, in nanoseconds. */
  readonly start: string
  readonly idleTimeout: number
  readonly point: Point | undefined
  /** Its clock: so many milliseconds off, and so much faster than others. */
  readonly skew: { readonly milliseconds: number; readonly factor: number } | undefined
  readonly resumed: Readonly<Record<string, number>>
  /** Only to deliver what is left. */
  readonly drain: boolean
}

export type ToCoordinator = { readonly go: Assignment } | { readonly stop: true }

export type Line =
  | { readonly type: 'ready' }
  | {
      readonly type: 'invoke'
      readonly time: number
      readonly lane: string
      readonly attempt: string
      readonly workload: string
      readonly parts: readonly Part[]
      readonly databases: readonly Name[]
    }
  | {
      readonly type: Completion
      readonly time: number
      readonly attempt: string
      readonly parts?: readonly {
        readonly type?: Completion
        readonly value?: unknown
        readonly error?: string
      }[]
      readonly effective?: boolean
      readonly id?: string | null
      readonly finished?: boolean
      readonly error?: string
      /** An error that is none of ours and none of a server's. */
      readonly internal?: string
    }
  | { readonly type: 'outcome'; readonly attempt: string; readonly outcome: string }
  | {
      readonly type: 'point'
      readonly point: Point
      readonly database: string
    }

export const recovererKinds = ['client', 'sql', 'command line'] as const

export type RecovererKind = (typeof recovererKinds)[number]

/** To a recoverer, as its argument. */
export interface Instructions {
  readonly kind: RecovererKind
  readonly urls: Readonly<Record<string, string>>
  /** Milliseconds for which decisions are kept when they are proven. */
  readonly keep: number
}
