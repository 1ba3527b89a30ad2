/** Prepared transactions under any gid, and psql's way of finishing them. */
import type postgres from 'postgres'
import { connect, type TestContext, type TestDatabase, testDatabase } from './database.ts'
import { makeOrphan, type Orphan, type OrphanOptions } from './orphan.ts'

/** A database with a table for effects. */
export async function placeWithEffects(t: TestContext, server: 'a' | 'b' = 'a'): Promise<TestDatabase> {
  const database = await testDatabase(t, { server })
  await database.sql`create table effect (id int primary key)`
  return database
}

/** An orphan whose branch inserts an effect. */
export function leaveOrphan(
  home: TestDatabase,
  participant: TestDatabase,
  effect: number,
  decision: OrphanOptions['decision'] = 'committed',
  more: Partial<OrphanOptions> = {},
): Promise<Orphan> {
  return makeOrphan({ home, participant, decision, effect: `insert into effect values (${effect})`, ...more })
}

/** The effects that took place. */
export async function effectsIn({ sql }: Pick<TestDatabase, 'sql'>): Promise<number[]> {
  return (await sql<{ id: number }[]>`select id from effect order by id`).map(({ id }) => id)
}

/** Prepares a transaction under any gid. */
export async function prepare(t: TestContext, url: string, gid: string, statements: string): Promise<void> {
  const session = connect(t, url)
  await session.unsafe(`begin; ${statements}`)
  const result = await session.unsafe(`prepare transaction '${gid.replaceAll("'", "''")}'`)
  if (result.command !== 'PREPARE TRANSACTION') throw new Error(`Not prepared: ${result.command}`)
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
