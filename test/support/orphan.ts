/** Branches in doubt, made step by step as a coordinator does that dies between two of them. */
import { randomUUID } from 'node:crypto'
import type postgres from 'postgres'
import type { TestDatabase } from './database.ts'

export interface Orphan {
  readonly transactionId: string
  readonly gid: string
  /** Ends the home's transaction; for `pending` only, the others have ended it. */
  endHome(how: 'commit' | 'rollback'): Promise<void>
}

export interface OrphanOptions {
  readonly home: TestDatabase
  readonly participant: TestDatabase
  /** What the home did: `pending` leaves its transaction open. */
  readonly decision: 'committed' | 'aborted' | 'pending'
  /** The participant's name in the gid. @defaultValue 'billing' */
  readonly name?: string
  /** What the branch does beside its evidence. @defaultValue nothing */
  readonly effect?: string
  /** The participant's session; its role owns the branch. @defaultValue one as the superuser */
  readonly sql?: postgres.Sql
}

/** Prepares a branch of a global transaction whose coordinator then never comes back. */
export async function makeOrphan(options: OrphanOptions): Promise<Orphan> {
  const { home, participant, decision, name = 'billing', effect } = options
  const transactionId = randomUUID()
  const [{ homeId }] = await home.sql<[{ homeId: string }]>`select once.home_id()::text as "homeId"`
  const [{ ownId }] = await participant.sql<[{ ownId: string }]>`select once.home_id()::text as "ownId"`

  const deciding = await home.sql.reserve()
  await deciding.unsafe('begin')
  await deciding`call once.open(${transactionId}::uuid)`
  // The home must have written something to be one.
  await deciding`select pg_current_xact_id()`
  const [{ xid }] = await deciding<[{ xid: string }]>`
    select once.begin_global(${transactionId}::uuid, ${[name]}::text[], ${[ownId]}::uuid[])::text as xid`

  const gid = `once:1:${homeId}:${transactionId}:${xid}:${name}`
  const branch = await (options.sql ?? participant.sql).reserve()
  await branch.unsafe('begin')
  await branch`call once.open(${transactionId}::uuid)`
  if (effect !== undefined) await branch.unsafe(effect)
  await branch`select pg_current_xact_id()`
  await branch`select once.vote(${transactionId}::uuid, ${homeId}::uuid, ${name})`
  await branch.unsafe(`prepare transaction '${gid}'`)
  branch.release()

  const endHome = async (how: 'commit' | 'rollback') => {
    await deciding.unsafe(how)
    deciding.release()
  }
  if (decision !== 'pending') await endHome(decision === 'committed' ? 'commit' : 'rollback')
  return { transactionId, gid, endHome }
}
