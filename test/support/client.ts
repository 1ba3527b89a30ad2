/** Clients over throwaway databases, with a table for effects in each. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Generated } from 'kysely'
import { Kysely, type KyselyPlugin, PostgresDialect } from 'kysely'
import pg from 'pg'
import type postgres from 'postgres'
import { type Pgonce, type PgonceOptions, pgonce } from '../../src/index.ts'
import { type TestContext, type TestDatabase, testDatabase } from './database.ts'
import type { ServerName } from './servers.ts'

/** The tables of every test database: effects that a message leaves behind, one row each. */
export interface Effects {
  effect: { id: number; note: Generated<string> }
}

/** Three databases, two of them of one cluster. */
export interface Three {
  a: Effects
  b: Effects
  c: Effects
}

export const createEffects = `create table effect (id int primary key, note text not null default '')`

export interface EffectsDatabase extends TestDatabase {
  /** The ids of all effects, ascending. */
  effects(): Promise<number[]>
  /** How many of this database's transactions are prepared. */
  prepared(): Promise<number>
  count(table: string): Promise<number>
}

export async function effectsDatabase(t: TestContext, server: ServerName = 'a'): Promise<EffectsDatabase> {
  const database = await testDatabase(t, { server })
  await database.sql.unsafe(createEffects)
  return withEffects(database)
}

export function withEffects<T extends Pick<TestDatabase, 'sql'>>(
  database: T,
): T & Pick<EffectsDatabase, 'effects' | 'prepared' | 'count'> {
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

/** A client that is closed when the test ends. */
export function client<D extends { [Name in keyof D]: object }>(
  t: TestContext,
  databases: PgonceOptions<D>['databases'],
  options: Omit<PgonceOptions<D>, 'databases'> = {},
): Pgonce<D> {
  const once = pgonce<D>({ connectTimeout: 5_000, ...options, databases })
  t.teardown(() => once.close())
  return once
}

export interface Shop {
  readonly a: EffectsDatabase
  readonly b: EffectsDatabase
  readonly c: EffectsDatabase
  readonly once: Pgonce<Three>
}

/** Three databases on two clusters (a and c on one) and a client over them. */
export async function shop(
  t: TestContext,
  options: Omit<PgonceOptions<Three>, 'databases'> = {},
): Promise<Shop> {
  const [a, b, c] = await Promise.all([
    effectsDatabase(t, 'a'),
    effectsDatabase(t, 'b'),
    effectsDatabase(t, 'a'),
  ])
  return { a, b, c, once: client<Three>(t, { a: a.url, b: b.url, c: c.url }, options) }
}

/** A Kysely instance on `pg`, destroyed when the test ends. */
export function kyselyOnPg<DB>(
  t: TestContext,
  url: string,
  { max = 4, plugins = [] }: { max?: number; plugins?: KyselyPlugin[] } = {},
): Kysely<DB> {
  const pool = new pg.Pool({ connectionString: url, max })
  // As pg's manual asks: otherwise a connection that dies while nobody uses it ends the process.
  pool.on('error', () => {})
  pool.on('connect', (one) => one.on('error', () => {}))
  const db = new Kysely<DB>({ dialect: new PostgresDialect({ pool }), plugins })
  t.teardown(() => db.destroy())
  return db
}

/** Waits until a condition holds. It is asked again and again; the deadline only bounds a test that hangs. */
export async function until<T>(
  what: string,
  condition: () => Promise<T | undefined | false> | T | undefined | false,
): Promise<T> {
  const deadline = performance.now() + 30_000
  for (;;) {
    const found = await condition()
    if (found !== undefined && found !== false) return found
    if (performance.now() > deadline) throw new Error(`Waited in vain until ${what}`)
    await sleep(10)
  }
}

/** Ends the sessions of a database that run a client of ours (or those a condition picks); how many there were. */
export async function killSessions(
  sql: postgres.Sql,
  where = "application_name = 'pgonce'",
): Promise<number> {
  const rows = await sql.unsafe(
    `select pg_terminate_backend(pid, 10000) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and ${where}`,
  )
  return rows.length
}

/** Teardowns of what all tests of a file share: ava has none in its hooks. */
export function fileContext(after: (fn: () => Promise<void>) => void): TestContext {
  const teardowns: (() => unknown)[] = []
  after(async () => {
    for (const teardown of teardowns.reverse()) await teardown()
  })
  return { teardown: (fn) => void teardowns.push(fn) }
}
