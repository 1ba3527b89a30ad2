/**
 * One database from whatever the caller has: a URL, a postgres.js instance or a Kysely instance.
 */
import { Kysely } from 'kysely'
import postgres from 'postgres'
import { InvalidInputError } from '../errors.ts'
import { show } from '../names.ts'
import { type ConnectionSource, postgresJsDialect } from './dialect.ts'
import { callersPool, ownPool } from './pool.ts'

/** A database by its URL, by a postgres.js instance, or by a Kysely instance of any Postgres dialect. */
export type DatabaseTarget<DB = unknown> = string | URL | postgres.Sql | Kysely<DB>

export interface OpenDatabase<DB> {
  readonly db: Kysely<DB>
  /** How many connections the pool has; undefined where the caller's instance does not tell. */
  readonly maxConnections: number | undefined
  /** One more connection to the same database outside this pool; the caller's Kysely instance has only its own. */
  sibling(): OpenDatabase<DB>
  /** Ends only what was opened here. */
  close(): Promise<void>
}

export interface OpenOptions {
  /** @defaultValue 1 */
  readonly max?: number
  /** @defaultValue pgonce */
  readonly applicationName?: string
  /** Milliseconds. @defaultValue 10000 */
  readonly connectTimeout?: number
}

/** @throws InvalidInputError `ONARG` if it is none of the three */
export function open<DB>(target: unknown, options: OpenOptions = {}): OpenDatabase<DB> {
  const { max = 1, applicationName = 'pgonce', connectTimeout = 10_000 } = options
  const own = {
    onnotice: () => {},
    max: 1,
    connect_timeout: Math.max(1, Math.ceil(connectTimeout / 1000)),
    // postgres.js cannot end a connection that is reserved, and never ends it afterwards.
    max_lifetime: null,
    // A connection that breaks while postgres.js fetches them ends the process; see arrays.ts.
    fetch_types: false,
  }
  if (typeof target === 'string' || target instanceof URL) {
    const url = String(target)
    if (!/^postgres(ql)?:\/\//.test(url)) {
      throw new InvalidInputError(
        'ONARG',
        `Expected a URL such as postgres://user@host:5432/database, got ${show(describeTarget(url))}`,
      )
    }
    return overOwnPool(max, connectTimeout, applicationName, (name, onclose) =>
      postgres(url, { ...own, onclose, connection: { application_name: name } }),
    )
  }
  if (isKysely<DB>(target)) {
    if (target.isTransaction) {
      throw new InvalidInputError('ONARG', 'Expected a database, got a Kysely transaction', {
        hint: 'Pass the Kysely instance that the transaction came from',
      })
    }
    const borrowed: OpenDatabase<DB> = {
      db: target,
      maxConnections: undefined,
      sibling: () => borrowed,
      close: async () => {},
    }
    return borrowed
  }
  if (typeof target === 'function' && 'unsafe' in target && 'reserve' in target) {
    const client = target as unknown as postgres.Sql
    if (client.options.fetch_types === false) {
      throw new InvalidInputError('ONARG', 'Expected a postgres.js instance with `fetch_types` left on', {
        detail: 'Without it postgres.js (3.4.9) never hands out a reserved connection.',
        hint: 'Remove `fetch_types: false`, or pass a URL',
      })
    }
    // What postgres() made of the caller's options, put in again: hosts and ports are lists by now.
    const { host, port, database, user, pass, ssl, path, prepare, connection } =
      client.options as postgres.ParsedOptions & { path?: string }
    const again = { host, port, database, user, pass, ssl, prepare, ...(path ? { path } : {}) }
    const sibling = () =>
      overOwnPool<DB>(
        1,
        connectTimeout,
        `${connection.application_name ?? applicationName} recovery`,
        (name, onclose) =>
          postgres({
            ...own,
            ...again,
            onclose,
            connection: { ...connection, application_name: name },
          } as unknown as postgres.Options<Record<string, postgres.PostgresType>>),
      )
    return {
      db: overConnections(callersPool(client)),
      maxConnections: client.options.max,
      sibling,
      close: async () => {},
    }
  }
  throw new InvalidInputError(
    'ONARG',
    `Expected a URL, a postgres.js instance or a Kysely instance, got ${target === null ? 'null' : typeof target}`,
  )
}

/** What to call a target in a message: never with the password. */
export function describeTarget(target: unknown): string {
  return typeof target === 'string' || target instanceof URL
    ? withoutPassword(String(target))
    : 'the given database'
}

function withoutPassword(url: string): string {
  return url.replace(/^(\w+:\/\/[^:@/]*):[^/]*@/, '$1:…@').replace(/([?&]password=)[^&]*/, '$1…')
}

/** By what it can do: the caller's Kysely may be another copy of the module than ours. */
function isKysely<DB>(target: unknown): target is Kysely<DB> {
  return (
    typeof target === 'object' && target !== null && 'withoutPlugins' in target && 'getExecutor' in target
  )
}

function overOwnPool<DB>(
  max: number,
  connectTimeout: number,
  applicationName: string,
  make: (applicationName: string, onclose: () => void) => postgres.Sql,
): OpenDatabase<DB> {
  const pool = ownPool((onclose) => make(applicationName, onclose), max, connectTimeout)
  return {
    db: overConnections(pool),
    maxConnections: max,
    sibling: () => overOwnPool(1, connectTimeout, `${applicationName} recovery`, make),
    close: () => pool.end(),
  }
}

function overConnections<DB>(source: ConnectionSource): Kysely<DB> {
  return new Kysely<DB>({ dialect: postgresJsDialect(source) })
}
