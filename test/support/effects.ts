/** Databases with a table for effects, which tell what took place in them. */
import type { Generated } from 'kysely'
import { type TestContext, type TestDatabase, testDatabase } from './database.ts'
import type { ServerName } from './servers.ts'

/** The tables of every such database: effects that a message leaves behind, one row each. */
export interface Effects {
  effect: { id: number; note: Generated<string> }
}

export const createEffects = `create table effect (id int primary key, note text not null default '')`

export const insertEffect = (id: number) => `insert into effect (id) values (${id})`

/** What can be asked of a database with effects. */
export interface EffectsOf {
  /** The ids of all effects, ascending. */
  effects(): Promise<number[]>
  /** How many of this database's transactions are prepared. */
  prepared(): Promise<number>
  count(table: string): Promise<number>
}

export type EffectsDatabase = TestDatabase & EffectsOf

export async function effectsDatabase(t: TestContext, server: ServerName = 'a'): Promise<EffectsDatabase> {
  const database = await testDatabase(t, { server })
  await database.sql.unsafe(createEffects)
  return withEffects(database)
}

/** Two such databases, each in a cluster of its own. */
export const twoDatabases = (t: TestContext) =>
  Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b')])

/** Three, the last in the cluster of the first. */
export const threeDatabases = (t: TestContext) =>
  Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b'), effectsDatabase(t, 'a')])

export function withEffects<T extends Pick<TestDatabase, 'sql'>>(database: T): T & EffectsOf {
  const { sql } = database
  return {
    ...database,
    effects: async () => (await sql<{ id: number }[]>`select id from effect order by id`).map(({ id }) => id),
    prepared: async () =>
      (await sql`select from pg_prepared_xacts where database = current_database()`).length,
    count: async (table) =>
      Number((await sql<{ n: string }[]>`select count(*) as n from ${sql(table)}`)[0]?.n),
  }
}
