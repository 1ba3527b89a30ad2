/** Branches in doubt, made step by step as a coordinator does that dies between two of them. */
import { randomUUID } from 'node:crypto'
import type postgres from 'postgres'
import { literal } from '../../src/connection/quote.ts'
import type { TestDatabase } from './database.ts'
import { insertEffect } from './effects.ts'
import { databaseIdOf } from './rows.ts'

type Place = Pick<TestDatabase, 'sql'>
export type Outcome = 'committed' | 'aborted' | 'pending'

export interface LeftBehind {
  readonly transactionId: string
  /** The database id of its home. */
  readonly home: string
  /** Of the branches, by participant. */
  readonly gids: Readonly<Record<string, string>>
  /** Of the only branch, or the first. */
  readonly gid: string
  /** Ends the home's transaction; for `pending` only, the others have ended it. */
  endHome(how: 'commit' | 'rollback'): Promise<void>
}

export interface Circumstances {
  /** What the home did: `pending` leaves its transaction open. @defaultValue 'committed' */
  readonly outcome?: Outcome
  /** What each branch does beside its evidence. @defaultValue nothing */
  readonly effect?: string
  /** What the home does beside its decision. @defaultValue nothing */
  readonly atHome?: string
}

/**
 * Prepares the branches of a global transaction whose coordinator then never comes back.
 *
 * @param participants by their names in the gids; the role of a participant's session owns its branch
 */
export async function leaveBehind(
  { sql: homeSql }: Place,
  participants: Readonly<Record<string, Place>>,
  { outcome = 'committed', effect = 'select', atHome = 'select' }: Circumstances = {},
): Promise<LeftBehind> {
  const transactionId = randomUUID()
  const home = await databaseIdOf(homeSql)
  const databaseIds: string[] = []
  for (const { sql } of Object.values(participants)) databaseIds.push(await databaseIdOf(sql))

  // Who has written nothing is no home, and no branch.
  const begin = (work: string) =>
    `begin; call once.open('${transactionId}'); ${work}; select pg_current_xact_id()`
  const deciding = await homeSql.reserve()
  await deciding.unsafe(begin(atHome))
  const [row] = await deciding<{ xid: string }[]>`
    select once.begin_global(${transactionId}, ${Object.keys(participants)}, ${databaseIds})::text as xid`
  const gids: Record<string, string> = {}
  for (const [name, { sql }] of Object.entries(participants)) {
    const gid = `once:1:${home}:${transactionId}:${row?.xid}:${name}`
    const branch = await sql.reserve()
    await branch.unsafe(begin(effect))
    await branch`select once.vote(${transactionId}, ${home}, ${name})`
    await prepareUnder(branch, gid)
    branch.release()
    gids[name] = gid
  }

  const endHome = async (how: 'commit' | 'rollback') => {
    await deciding.unsafe(how)
    deciding.release()
  }
  if (outcome !== 'pending') await endHome(outcome === 'committed' ? 'commit' : 'rollback')
  return { transactionId, home, gids, gid: Object.values(gids)[0] ?? '', endHome }
}

/** The same with one branch, of `billing`, which inserts an effect. */
export const leaveOrphan = (home: Place, billing: Place, effect: number, outcome: Outcome = 'committed') =>
  leaveBehind(home, { billing }, { outcome, effect: insertEffect(effect) })

/** Prepares what a session has begun. A transaction that had failed is rolled back instead, without an error. */
export async function prepareUnder(session: postgres.Sql, gid: string): Promise<void> {
  const { command } = await session.unsafe(`prepare transaction ${literal(gid)}`)
  if (command !== 'PREPARE TRANSACTION') throw new Error(`Not prepared: ${command}`)
}
