/** What a statement answers, without a test around it. */
import type postgres from 'postgres'

/** Runs a statement; the rows as arrays of values. */
export async function rowsOf(sql: postgres.Sql, text: string): Promise<unknown[][]> {
  return Array.from(await sql.unsafe(text).values()) as unknown[][]
}

/** The only value of the only row. */
export async function oneValue(sql: postgres.Sql, text: string): Promise<unknown> {
  return only(await rowsOf(sql, text))
}

/** Who a database says it is. */
export async function databaseIdOf(sql: postgres.Sql): Promise<string> {
  return String(await oneValue(sql, 'select once.database_id()'))
}

function only(rows: readonly unknown[][]): unknown {
  if (rows.length !== 1 || rows[0]?.length !== 1)
    throw new Error(`Expected one value, got ${JSON.stringify(rows)}`)
  return rows[0][0]
}
