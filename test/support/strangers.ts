/** Prepared transactions under any gid, and psql's way of finishing them. */
import type postgres from 'postgres'
import { connect, type TestContext } from './database.ts'
import { prepareUnder } from './orphan.ts'

/** Prepares a transaction under any gid. */
export async function prepare(t: TestContext, url: string, gid: string, statements: string): Promise<void> {
  const session = connect(t, url)
  await session.unsafe(`begin; ${statements}`)
  await prepareUnder(session, gid)
}

/** Runs the lines that a query returns, one by one and as they are, as psql's \gexec does. */
export async function gexec(sql: postgres.Sql, query: string): Promise<string[]> {
  const session = await sql.reserve()
  try {
    const lines = (await session.unsafe(query).values()).flat().map(String)
    for (const line of lines) await session.unsafe(line)
    return lines
  } finally {
    session.release()
  }
}
