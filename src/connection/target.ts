/**
 * One database from whatever the caller has: a URL, options or an instance of postgres.js, or a Kysely instance.
 *
 * An instance of postgres.js gives us its options, and we open connections of our own with them: its pool takes and
 * gives connections in ways that lose what the protocol needs (a `reserve` that is never answered, a connection that
 * is opened again in the middle of a transaction).
 */
import {
  type Driver,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
} from 'kysely'
import type postgres from 'postgres'
import { checkInteger } from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import { takeKyselyLink } from './kysely-link.ts'
import type { Link } from './link.ts'
import { Pool, type PoolOptions } from './pool.ts'
import { checkUrl } from './url.ts'
import { type Address, openWire } from './wire.ts'

/**
 * A database by its URL, by options or an instance of postgres.js (then we open connections of our own with its
 * options), or by a Kysely instance of any Postgres dialect (then its connections are used; `maxConnections` says how
 * many of them are ours, where its pool has others than the client's option says).
 */
export type DatabaseTarget<DB = unknown> =
  | string
  | URL
  | postgres.Options<Record<string, postgres.PostgresType>>
  | postgres.Sql
  | Kysely<DB>
  | { readonly kysely: Kysely<DB>; readonly maxConnections: number }

export interface OpenDatabase<DB> {
  /** Compiles queries, with the caller's plugins; for those who need it, runs them as well. */
  readonly db: Kysely<DB>
  take(): Promise<Link>
  /** One that is free at once, of ours. */
  idle?(): Link | undefined
  /** How many connections there are; undefined where the caller's instance does not tell. */
  readonly maxConnections: number | undefined
  /** One more connection to the same database, that no handler uses; the caller's Kysely has only its own. */
  apart(): OpenDatabase<DB>
  /** Ends only what was opened here. */
  close(): Promise<void>
}

/** @defaultValue max 1, applicationName pgonce, connectTimeout 10000, net false */
export type OpenOptions = Partial<PoolOptions> & { readonly applicationName?: string }

/** @throws InvalidInputError `ONARG` if it is none of these */
export function open<DB>(target: unknown, options: OpenOptions = {}): OpenDatabase<DB> {
  if (typeof target === 'string' || target instanceof URL) return overOwn(checkUrl(String(target)), options)
  if (isKysely<DB>(target)) return overKysely(target, undefined)
  if (typeof target === 'object' && target !== null && 'kysely' in target && isKysely<DB>(target.kysely)) {
    const { maxConnections } = target as { maxConnections?: unknown }
    return overKysely(target.kysely, Number(checkInteger('maxConnections', maxConnections, 1n, 10_000n)))
  }
  if (typeof target === 'function' && 'unsafe' in target && 'reserve' in target) {
    const client = target as unknown as postgres.Sql
    return overOwn(optionsOf(client), { ...options, max: client.options.max })
  }
  if (isOptions(target)) {
    const { max } = target
    return overOwn(target, max === undefined ? options : { ...options, max })
  }
  const found = target === null ? 'null' : typeof target
  const expected = 'a URL, options or an instance of postgres.js, or a Kysely instance'
  throw new InvalidInputError('ONARG', `Expected ${expected}, got ${found}`)
}

function overKysely<DB>(db: Kysely<DB>, maxConnections: number | undefined): OpenDatabase<DB> {
  if (db.isTransaction) {
    const hint = 'Pass the Kysely instance that the transaction came from'
    throw new InvalidInputError('ONARG', 'Expected a database, got a Kysely transaction', { hint })
  }
  const borrowed: OpenDatabase<DB> = {
    db,
    take: () => takeKyselyLink(db as Kysely<unknown>),
    maxConnections,
    apart: () => borrowed,
    close: async () => {},
  }
  return borrowed
}

function overOwn<DB>(address: Address, options: OpenOptions): OpenDatabase<DB> {
  const { max = 1, applicationName = 'pgonce', connectTimeout = 10_000, net = false } = options
  // What it is called in pg_stat_activity is the caller's to say.
  const called = typeof address === 'string' ? undefined : address.connection?.application_name
  const name = typeof called === 'string' && called !== 'postgres.js' ? called : applicationName
  const make = (onclose: (error: unknown) => void) => openWire(address, name, connectTimeout, onclose)
  const pool = new Pool(make, { max, connectTimeout, net })
  return {
    db: new Kysely<DB>({ dialect: { ...postgresDialect, createDriver: () => driver(pool) } }),
    take: () => pool.take(),
    idle: () => pool.idle(),
    maxConnections: max,
    apart: () => overOwn(address, { max: 1, applicationName: `${name} recovery`, connectTimeout }),
    close: () => pool.end(),
  }
}

/** What postgres() made of the caller's options, put in again: hosts and ports are lists by now. */
function optionsOf(client: postgres.Sql): Address {
  const options = client.options as unknown as Record<string, unknown>
  const taken = kept.map((name) => [name, options[name]])
  const given = sometimes.filter((name) => options[name]).map((name) => [name, options[name]])
  return Object.fromEntries([...taken, ...given]) as Address
}

const kept = [
  ...['host', 'port', 'database', 'user', 'pass', 'ssl', 'prepare', 'target_session_attrs', 'connection'],
  ...['sslnegotiation', 'types', 'transform', 'keep_alive'],
]
/** Only where they say something. */
const sometimes = ['path', 'socket']

/** What postgres.js needs to know of a place; an object without any of it is none. */
const places = ['host', 'hostname', 'port', 'path', 'database', 'db', 'user', 'username']

function isOptions(target: unknown): target is postgres.Options<Record<string, postgres.PostgresType>> {
  return typeof target === 'object' && target !== null && places.some((name) => name in target)
}

/** By what it can do: the caller's Kysely may be another copy of the module than ours. */
function isKysely<DB>(target: unknown): target is Kysely<DB> {
  return (
    typeof target === 'object' && target !== null && 'withoutPlugins' in target && 'getExecutor' in target
  )
}

/** All of a dialect but the driver. */
export const postgresDialect = {
  createAdapter: () => new PostgresAdapter(),
  createIntrospector: (db: Kysely<unknown>) => new PostgresIntrospector(db),
  createQueryCompiler: () => new PostgresQueryCompiler(),
}

function driver(connections: Pool): Driver {
  const run = async (connection: unknown, text: string) => {
    await (connection as Link).query(text)
  }
  return Object.assign(new DummyDriver(), {
    acquireConnection: () => connections.take(),
    beginTransaction: (connection: unknown) => run(connection, 'begin read write'),
    commitTransaction: (connection: unknown) => run(connection, 'savepoint once; commit'),
    rollbackTransaction: (connection: unknown) => run(connection, 'rollback'),
    releaseConnection: async (connection: unknown) => (connection as Link).release(),
  }) as unknown as Driver
}
