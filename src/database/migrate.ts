/**
 * Installs schema `once` into a database that exists already, and brings an older one up to date. graphile-migrate, with
 * which the files of `migrations/` are written, does not run here: its bookkeeping schema is global to a database, so a
 * user's own chain and ours could not live side by side.
 */
import { type Kysely, sql } from 'kysely'
import { inTime, unreachable } from '../connection/database.ts'
import { identifier, literal } from '../connection/quote.ts'
import { type DatabaseTarget, open } from '../connection/target.ts'
import { checkUrl, databaseIn, describeTarget } from '../connection/url.ts'
import { codeOf, DatabaseError, InvalidInputError, LimitError, PgonceError } from '../errors.ts'
import { complete, type MigrateOptions, migrateOptions } from '../options.ts'
import { installationOf, type MigrationFile, packageVersion, readMigrations, versionOf } from './migration.ts'

export interface MigrationStep {
  readonly name: string
  /** `installed` now, `present` before, or `pending` (only with `dryRun`). */
  readonly status: 'installed' | 'present' | 'pending'
}

export interface MigrateResult {
  /** The database's own name for itself. */
  readonly database: string
  /** The version of schema `once` when we were done; 0 if it is not installed. */
  readonly schemaVersion: number
  /** Every migration of this package, in order. */
  readonly migrations: readonly MigrationStep[]
}

/** The oldest server on which every function works. */
const oldestServer = 150_000

/** One installer of a database holds it while others wait: a random number, the same in every version of the package. */
const installerLock = '2087155398171459377'

/**
 * Installs or updates schema `once`; does nothing where it is up to date. Each migration is a transaction of its own: a
 * failure leaves the database at the last complete version. Any number of processes may run it at once: one installs, the
 * others wait and find the work done. It needs the privilege to create a schema, or an empty schema `once` of its own; no
 * superuser. Where nothing is to be done, any of our grants is enough.
 *
 * @example
 * await migrate('postgres://app@localhost/orders')
 *
 * @throws InvalidInputError `ONARG`; LimitError `LOCK_TIMEOUT` a lock was not to be had in time; AbortedError
 *   `CONNECTION_LOST` nobody answered; DatabaseError `NO_DATABASE`, `LOGIN_REFUSED` we do not get in, `SERVER_VERSION`
 *   older than Postgres 15, `ONSTB` a standby, `SCHEMA_VERSION` newer than this package, `FOREIGN_SCHEMA` somebody
 *   else's, `NO_PRIVILEGE` not allowed to, `MIGRATION_FAILED` anything else
 */
export async function migrate<DB = unknown>(
  target: DatabaseTarget<DB>,
  options: MigrateOptions = {},
): Promise<MigrateResult> {
  const { dryRun, onProgress, connectTimeout, lockTimeout, ...given } = complete(migrateOptions, options)
  refuseTarget(target)
  const isUrl = typeof target === 'string' || target instanceof URL
  const migrations = given.migrations ?? (await readMigrations())
  const opened = open<unknown>(target, { applicationName: 'pgonce migrate', connectTimeout })
  // A plugin that renames columns would rename Postgres's own.
  const db = opened.db.withoutPlugins()
  const place: Place = { label: describeTarget(target) }
  try {
    // Where something else than Postgres takes the connection, it may never answer.
    const found = await (isUrl ? inTime(connectTimeout, look(db, place)) : look(db, place))
    const present = found.booked ? await installedNames(db) : []
    await refuseNewer(found.database, present, migrations)
    const isPending = migrations.some(({ name }) => !present.includes(name))
    if (isPending) refuseUnprivileged(found)
    const done: string[] = []
    while (isPending && !dryRun) {
      const name = await installNext(db, place, migrations, lockTimeout)
      if (name === undefined) break
      done.push(name)
      onProgress?.({ name, status: 'installed' })
    }
    const statusOf = (name: string) =>
      done.includes(name) ? 'installed' : dryRun && !present.includes(name) ? 'pending' : 'present'
    return {
      database: found.database,
      schemaVersion: versionOf(dryRun ? present.at(-1) : migrations.at(-1)?.name),
      migrations: migrations.map(({ name }) => ({ name, status: statusOf(name) })),
    }
  } catch (error) {
    throw explain(error, place)
  } finally {
    await opened.close()
  }
}

function refuseTarget(target: unknown): void {
  if (typeof target === 'string' || target instanceof URL) {
    // The server's default would be taken, which is hardly ever meant for an installation.
    if (databaseIn(checkUrl(String(target))) !== '' || process.env.PGDATABASE) return
    const hint = 'Add its name to the URL, as in postgres://user@host:5432/orders; or set PGDATABASE'
    throw new InvalidInputError('ONARG', `Which database? ${describeTarget(target)} names none`, { hint })
  }
  if (typeof target === 'object' && target !== null && 'isTransaction' in target && target.isTransaction) {
    const message = 'Expected a database, got a transaction: each migration has its own'
    const hint = 'To install as part of your transaction: sql.raw(await migrationSql()).execute(trx)'
    throw new InvalidInputError('ONARG', message, { hint })
  }
}

/** For messages: what the caller named, and, once we are in, where we are. */
interface Place {
  readonly label: string
  database?: string
  migration?: string
}

/**
 * What a database says of itself: who and what it is; whether we may create schemas; whether schema `once` exists, is
 * ours, holds relations, has once.migration, and whether we may read that.
 */
type Found = Readonly<Record<'release' | 'database' | 'login' | 'owner', string>> &
  Readonly<Record<'standby' | 'creator' | 'exists' | 'ours' | 'used' | 'booked' | 'readable', boolean>> & {
    readonly server: number
  }

async function look(db: Kysely<unknown>, place: Place): Promise<Found> {
  // Works on any Postgres, in any search_path, and takes no lock that anybody could wait for.
  const asked = sql<Found>`
    select pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as server,
           pg_catalog.current_setting('server_version') as release,
           pg_catalog.pg_is_in_recovery() as standby,
           pg_catalog.current_database() as database,
           current_user as login,
           pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create') as creator,
           n.oid is not null as exists,
           coalesce(pg_catalog.pg_get_userbyid(n.nspowner), '') as owner,
           pg_catalog.pg_has_role(n.nspowner, 'usage') as ours,
           exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid) as used,
           m.oid is not null as booked,
           pg_catalog.has_schema_privilege(n.oid, 'usage')
             and pg_catalog.has_table_privilege(m.oid, 'select') as readable
      from (select) x
      left join pg_catalog.pg_namespace n on n.nspname = 'once'
      left join pg_catalog.pg_class m on m.relnamespace = n.oid and m.relname = 'migration' and m.relkind = 'r'`
  const found = (await asked.execute(db)).rows[0] as Found
  place.database = found.database
  const { server, release, standby, booked, readable } = found
  const [database, login, owner] = quoted(found)
  if (server < oldestServer) {
    const message = `Database ${database} is on Postgres ${release}; pgonce needs 15 or later`
    throw new DatabaseError('SERVER_VERSION', message)
  }
  if (standby) {
    const message = `Database ${database} is on a standby, which cannot be written to`
    throw new DatabaseError('ONSTB', message, { hint: 'Give the URL of its primary' })
  }
  if (booked && !readable) {
    const message = `Role ${login} may not see which version schema once has in database ${database}`
    const grant = `select once.grant_app(${literal(found.login)});`
    throw denied(message, `Connect as ${owner}, who owns it, or let that role type: ${grant}`)
  }
  return found
}

const quoted = ({ database, login, owner }: Found) => [database, login, owner].map(identifier)
const denied = (message: string, hint: string) => new DatabaseError('NO_PRIVILEGE', message, { hint })

async function installedNames(db: Kysely<unknown>): Promise<string[]> {
  const names = sql<{ name: string }>`select name from once.migration order by name collate "C"`
  return (await names.execute(db)).rows.map(({ name }) => name)
}

async function refuseNewer(
  database: string,
  installed: readonly string[],
  migrations: readonly MigrationFile[],
): Promise<void> {
  const known = new Set(migrations.map(({ name }) => name))
  const unknown = installed.findLast((name) => !known.has(name))
  if (unknown === undefined) return
  const newest = migrations.at(-1)?.name
  const message =
    `Database ${identifier(database)} has schema once at version ${versionOf(installed.at(-1))} (${unknown}), but pgonce ` +
    `${await packageVersion()} knows only up to version ${versionOf(newest)} (${newest ?? 'none'}). Nothing was changed`
  const hint = 'Update the package: npm install pgonce@latest'
  throw new DatabaseError('SCHEMA_VERSION', message, { hint })
}

function refuseUnprivileged(found: Found): void {
  const [database, login, owner] = quoted(found)
  const { exists, creator, ours, used, booked } = found
  if (!exists && !creator) {
    const grant = `grant create on database ${database} to ${login}; or: create schema once authorization ${login};`
    const message = `Role ${login} may not create a schema in database ${database}`
    throw denied(message, `Let the owner of the database type: ${grant}`)
  }
  if (exists && !ours) {
    const message = `Schema once in database ${database} belongs to role ${owner}, and ${login} is no member of it`
    throw denied(message, `Connect as ${owner}, or let a superuser type: grant ${owner} to ${login};`)
  }
  if (exists && used && !booked) {
    const message = `There is a schema once in database ${database} that pgonce did not make: it has no table once.migration`
    const hint = 'Install into another database, or rename that schema: alter schema once rename to …'
    throw new DatabaseError('FOREIGN_SCHEMA', message, { hint })
  }
}

/** Runs the first migration that the database lacks and gives its name; undefined if it lacks none. */
function installNext(
  db: Kysely<unknown>,
  place: Place,
  migrations: readonly MigrationFile[],
  lockTimeout: number,
): Promise<string | undefined> {
  return db.transaction().execute(async (trx) => {
    // Several statements in one text go only without parameters; then both drivers send it as it is.
    const run = (text: string) => sql.raw(text).execute(trx)
    // The session's defaults are the user's own: a snapshot taken before another installer has committed
    // would not show what he did, and names must mean the same whatever the search_path.
    await run(
      `set transaction isolation level read committed, read write;
       set local search_path = '';
       set local standard_conforming_strings = on;
       set local client_min_messages = warning;
       set local statement_timeout = 0;
       set local lock_timeout = 0;
       select pg_catalog.pg_advisory_xact_lock(${installerLock})`,
    )
    // Asked in a statement of its own, after the lock: its snapshot shows what an earlier holder committed.
    const { rows } = await sql<{ booked: boolean }>`
      select pg_catalog.to_regclass('once.migration') is not null as booked`.execute(trx)
    const installed = rows[0]?.booked ? await installedNames(trx) : []
    await refuseNewer(place.database ?? '', installed, migrations)
    const index = migrations.findIndex(({ name }) => !installed.includes(name))
    const next = migrations[index]
    if (next === undefined) return undefined
    place.migration = next.name
    await run(`set local lock_timeout = ${lockTimeout};\n${installationOf(next, migrations.slice(0, index))}`)
    return next.name
  })
}

function explain(cause: unknown, { label, database, migration }: Place): Error {
  if (database === undefined) {
    // Nothing is known of a transaction yet that could be tried again.
    const isLate = cause instanceof PgonceError && cause.code === 'TIMEOUT'
    return unreachable(label, isLate ? new Error(cause.message) : cause)
  }
  if (cause instanceof PgonceError) return cause
  const { message, detail, hint } = cause as Error & { detail?: string; hint?: string }
  const what = `${migration === undefined ? 'The installation' : `Migration ${migration}`} of ${label}`
  const failed = `${what} failed: ${message}; nothing of it was kept`
  switch (codeOf(cause)) {
    case '55P03': {
      const gaveUp = `${what} gave up waiting for a lock; nothing of it was kept`
      const running = 'select * from pg_stat_activity where xact_start is not null'
      const advice = `Repeat it when long transactions have ended: ${running}`
      return new LimitError('LOCK_TIMEOUT', gaveUp, { cause, detail, hint: advice })
    }
    case '42501':
      return new DatabaseError('NO_PRIVILEGE', failed, { cause, detail, hint })
    default:
      return new DatabaseError('MIGRATION_FAILED', failed, { cause, detail, hint })
  }
}
