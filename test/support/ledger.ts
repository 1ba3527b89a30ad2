/** What the tests of the key ledger share. */
import type postgres from 'postgres'
import { rowsOf } from './sql.ts'

/** The status that `once.claim_key` answers. */
export const claimKey = async (sql: postgres.Sql, call: string): Promise<unknown> =>
  (await rowsOf(sql, `select status from once.claim_key(${call})`))[0]?.[0]

/** Key, status and result of each row that `once.claim_key_batch` answers. */
export const claimKeyBatch = (sql: postgres.Sql, call: string): Promise<unknown[][]> =>
  rowsOf(sql, `select key, status, result from once.claim_key_batch(${call})`)

/** One call of `once.expire`. */
export const expireOnce = (sql: postgres.Sql, batchSize = 5000): Promise<unknown[][]> =>
  rowsOf(sql, `select action, scope, detail, count, more from once.expire(${batchSize})`)

/** Expires until no row says more; the rows of all calls. */
export async function expireAll(sql: postgres.Sql, batchSize = 5000): Promise<unknown[][]> {
  const rows: unknown[][] = []
  for (let more = true; more; ) {
    const step = await expireOnce(sql, batchSize)
    rows.push(...step)
    more = step.some((row) => row[4])
  }
  return rows
}

/** A retention that puts the horizon at noon of this day, whatever today is. */
export const retentionSince = (day: string): string => `(now() - timestamptz '${day} 12:00Z')::interval`

/** A UUIDv7 of this time. @see RFC 9562, section 5.7 */
export function uuidv7(milliseconds: number, tail = '7000-8000-000000000000'): string {
  const hex = milliseconds.toString(16).padStart(12, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8)}-${tail}`
}
