/**
 * What a run of recovery found and did, and what its steps share: they run on many databases, of which each
 * may be away, and report that instead of failing.
 */
import { type Database, inTime } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
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

/** What a run did. */
export interface RecoveryReport {
  /** Branches that were committed, because their home had. */
  readonly committed: number
  /** Branches that were rolled back, because their home's transaction was over without a decision. */
  readonly rolledBack: number
  /** Branches whose home's transaction still runs. */
  readonly pending: number
  /** Branches that could not be finished: privileges, an unknown or unreachable home. */
  readonly unfinished: readonly UnfinishedBranch[]
  /** Databases that did not answer. */
  readonly unreachable: readonly { readonly database: string; readonly reason: string }[]
  /** Decisions that were proven, and decisions that were purged. */
  readonly proven: number
  readonly purged: number
  /** Losses found for the first time. */
  readonly losses: readonly Loss[]
}

/** Milliseconds after which a server that does not answer is passed over until the next run. */
export const patience = 10_000
/** Rows a query. */
export const page = 1_000

/** A report in the making. */
export type Tally = {
  -readonly [K in keyof RecoveryReport]: RecoveryReport[K] extends readonly (infer E)[]
    ? E[]
    : RecoveryReport[K]
}

/** Runs a step on a database; one that fails is reported and passed over. */
export async function attempt<T>(
  report: Pick<Tally, 'unreachable'>,
  { name, forgetDatabaseId }: Database,
  step: () => Promise<T>,
): Promise<T | undefined> {
  try {
    return await step()
  } catch (error) {
    // Then the next run asks who it is, and what waits for that is done.
    if (codeOf(error) === 'ONIDN') forgetDatabaseId()
    if (!report.unreachable.some(({ database }) => database === name)) {
      report.unreachable.push({ database: name, reason: sayWhy(error) })
    }
    return undefined
  }
}

export function sayWhy(error: unknown): string {
  const { message } = error as Error
  if (codeOf(error) === '42501')
    return `${message}. As its owner: select once.grant_recover('<the recovering role>')`
  return withHint(error)
}

/**
 * The databases by their ids, as they were found earlier or `anew`. One that does not say who it is within
 * the patience of recovery is reported, and left out.
 */
export async function findHomes(
  databases: readonly Database[],
  report: Pick<Tally, 'unreachable'>,
  anew = false,
): Promise<Map<string, Database>> {
  const databaseIds = await Promise.all(
    databases.map((database) =>
      attempt(report, database, () => inTime(patience, database.identify({ anew, apart: true }))),
    ),
  )
  // In the order of the databases, whoever answers first: a run does the same each time.
  const homes = new Map<string, Database>()
  databases.forEach((database, index) => {
    const databaseId = databaseIds[index]
    if (databaseId !== undefined && !homes.has(databaseId)) homes.set(databaseId, database)
  })
  return homes
}

export async function record(session: Link, loss: Loss, losses: Loss[]): Promise<void> {
  const { rows } = await session.query<{ new: boolean }>(
    'select once.record_loss($1::uuid, $2, $3::uuid, $4) as new',
    [loss.transactionId, loss.participant, loss.home, loss.kind],
  )
  if (rows[0]?.new) losses.push(loss)
}

export async function count(
  session: Link,
  text: string,
  ids: readonly string[],
  ...more: readonly string[]
): Promise<number> {
  const { rows } = await session.query<{ n: string }>(text, [arrayOf(ids), ...more])
  return Number(rows[0]?.n ?? 0)
}

/** UUIDs and numbers only: nothing in them needs quotes. */
export function arrayOf(values: readonly string[]): string {
  return `{${values.join(',')}}`
}
