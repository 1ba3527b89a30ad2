/** The SQL of two phases, step by step. */
import type postgres from 'postgres'
import { type Link, oneValue, rowsOf } from './sql.ts'

/** Of a home that is not there. */
export const someHome = '11111111-1111-4111-8111-111111111111'

export const decide = (sql: postgres.Sql, home: string, id: string, xid: string) =>
  oneValue(sql, `select once.branch_outcome('${home}', '${id}', '${xid}')`)
export const outcome = (sql: postgres.Sql, home: string, id: string, xid: string) =>
  oneValue(sql, `select once.outcome('${home}', '${id}', '${xid}')`)
export const rowOf = async (sql: postgres.Sql, id: string) =>
  (await rowsOf(sql, `select participants from once.global_transaction where transaction_id = '${id}'`))[0]
export const evidenceOf = async (sql: postgres.Sql, id: string) =>
  (await rowsOf(sql, `select home, participant from once.evidence where transaction_id = '${id}'`))[0]

/** Begins a marked transaction that has written something. */
export async function openBranch(session: Link, id: string): Promise<void> {
  await session.sql`begin`
  await session.rows(`call once.open('${id}')`)
  await session.rows('select pg_current_xact_id()')
}

/** The home's part up to its COMMIT: the decision row is there, and nobody sees it. */
export async function beginHome(session: Link, id: string, participants = `array['b']`): Promise<string> {
  await openBranch(session, id)
  const homes =
    participants === `'{}'` ? `'{}'` : `array_fill('${someHome}'::uuid, array[cardinality(${participants})])`
  return String(await session.value(`select once.begin_global('${id}', ${participants}, ${homes})`))
}
