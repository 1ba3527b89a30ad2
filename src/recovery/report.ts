/** What a run of recovery found and did. */
import type { WritableDeep } from 'type-fest'
import { codeOf, withHint } from '../errors.ts'

/** A branch that could not be finished yet, and why. */
export interface UnfinishedBranch {
  readonly database: string
  readonly gid: string
  readonly reason: string
}

/** A decision or a branch that was lost; see `once.loss`. */
export interface Loss {
  /** `lost branch`: the home committed, this participant did not. `lost decision`: the reverse. */
  readonly kind: 'lost branch' | 'lost decision'
  readonly transactionId: string
  /** The participant's name in the gid. */
  readonly participant: string
  /** The id of the home database. */
  readonly home: string
}

export interface RecoveryReport {
  /** Branches that were committed, because their home had. */
  readonly committed: number
  /** Branches that were rolled back, because their home's transaction was over without a decision. */
  readonly rolledBack: number
  /** Branches whose home's transaction still runs. */
  readonly pending: number
  /** Branches that could not be finished: privileges, an unknown or unreachable home. */
  readonly unfinished: readonly UnfinishedBranch[]
  readonly unreachable: readonly { readonly database: string; readonly reason: string }[]
  /** Decisions that were proven, and decisions that were purged. */
  readonly proven: number
  readonly purged: number
  /** Losses found for the first time. */
  readonly losses: readonly Loss[]
}

/** A report in the making. */
export type Tally = WritableDeep<RecoveryReport>

export function newTally(): Tally {
  const counts = { committed: 0, rolledBack: 0, pending: 0, proven: 0, purged: 0 }
  return { ...counts, unfinished: [], unreachable: [], losses: [] }
}

/** Both in one: each database that was passed over once. */
export function merged(one: RecoveryReport, other: RecoveryReport): RecoveryReport {
  const unreachable = [...one.unreachable, ...other.unreachable].map(
    (passed) => [passed.database, passed] as const,
  )
  return {
    committed: one.committed + other.committed,
    rolledBack: one.rolledBack + other.rolledBack,
    pending: one.pending + other.pending,
    unfinished: [...one.unfinished, ...other.unfinished],
    unreachable: [...new Map(unreachable).values()],
    proven: one.proven + other.proven,
    purged: one.purged + other.purged,
    losses: [...one.losses, ...other.losses],
  }
}

export function sayWhy(error: unknown): string {
  if (codeOf(error) !== '42501') return withHint(error)
  return `${(error as Error).message}. As its owner: select once.grant_recover('<the recovering role>')`
}
