/** Clients over throwaway databases, with a table for effects in each, and what they do there. */
import { Kysely, type KyselyPlugin, PostgresDialect } from 'kysely'
import pg from 'pg'
import type postgres from 'postgres'
import { type Pgonce, type PgonceOptions, pgonce, type TransactionOptions } from '../../src/index.ts'
import type { TestContext } from './database.ts'
import { type Effects, type EffectsDatabase, threeDatabases } from './effects.ts'

/** Two databases, each of a cluster of its own. */
export interface Two {
  a: Effects
  b: Effects
}

/** Three databases, two of them of one cluster. */
export interface Three extends Two {
  c: Effects
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
  const [a, b, c] = await threeDatabases(t)
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

/** What reaches a database by either driver. */
export const reach = (t: TestContext, driver: string, url: string): string | Kysely<Effects> =>
  driver === 'pg' ? kyselyOnPg<Effects>(t, url) : url

/** What a handler does: an effect in each of the databases named. */
export async function insert<Name extends string>(
  handles: Readonly<Record<Name, Kysely<Effects>>>,
  id: number,
  ...names: Name[]
): Promise<void> {
  for (const name of names) await handles[name].insertInto('effect').values({ id }).execute()
}

/** One transaction with an effect in each of the databases named, such as 'ab'. */
export const write = (
  once: Pgonce<Two>,
  id: number,
  names: string,
  options: TransactionOptions = {},
  then = () => {},
) =>
  once.transaction(async (tx) => {
    await insert(tx, id, ...([...names] as (keyof Two)[]))
    then()
    return 'written'
  }, options)

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
