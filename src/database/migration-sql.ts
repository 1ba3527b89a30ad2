/**
 * The installation of schema `once` as SQL text, for whoever does not let `migrate()` run it.
 */
import { checkObject, show } from '../check.ts'
import { literal } from '../connection/quote.ts'
import { InvalidInputError } from '../errors.ts'
import { type MigrationFile, packageVersion, readMigrations, versionOf } from './migration-files.ts'

export interface MigrationSqlOptions {
  /**
   * The schema version that the database has already, as `once.schema_version()` gives it.
   * @defaultValue 0, not installed
   */
  readonly from?: number

  /**
   * The migrations, in order.
   * @defaultValue the ones that this package ships
   * @internal
   */
  readonly migrations?: readonly MigrationFile[]
}

/**
 * The whole installation as one SQL text, for people who review it first or who run it with tools of their
 * own: `psql -1 -v ON_ERROR_STOP=1 -f`, or a migration of their own chain. It contains no `begin` and no
 * `commit`, and must run in one transaction. Its bookkeeping is the same as that of `migrate()`, which
 * afterwards finds the schema installed.
 *
 * @throws InvalidInputError `ONARG` if there is no such version
 */
export async function migrationSql(options: MigrationSqlOptions = {}): Promise<string> {
  const { from = 0 } = checkObject('options', options)
  const migrations = options.migrations ?? (await readMigrations())
  const versions = migrations.map(({ name }) => versionOf(name))
  const latest = versions.at(-1) ?? 0
  if (from !== 0 && !versions.includes(from)) {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`from\` to be a schema version from 0 (not installed) to ${latest}, got ${show(from)}`,
      { hint: 'The database tells: select once.schema_version()' },
    )
  }
  const before = migrations.filter(({ name }) => versionOf(name) <= from)
  const wanted = migrations.filter(({ name }) => versionOf(name) > from)
  const head = `-- pgonce ${await packageVersion()}: schema once from version ${from} to ${latest}.\n`
  if (wanted.length === 0) return `${head}-- Nothing to do.\n`
  const parts = [
    `${head}${howToRun}`,
    from === 0 ? createBookkeeping : '',
    expectInstalled(before),
    ...wanted.map((file) => `-- ${file.name}\n${plain(file.sql)}\n${record(file.name)}`),
  ]
  return parts.filter((part) => part !== '').join('\n')
}

const howToRun = `-- Run it in one transaction, so that a failure leaves nothing behind. As a file:
--   psql -1 -v ON_ERROR_STOP=1 -f FILE 'postgres://user@host/database'
`

// As Kysely's Migrator creates them, so that it goes on from here. A schema of somebody else's is refused, as by
// migrate().
const createBookkeeping = `do $pgonce$
begin
  if pg_catalog.to_regnamespace('once') is null then
    create schema once;
  elsif pg_catalog.to_regclass('once.migration') is null
    and exists (select from pg_catalog.pg_class c where c.relnamespace = pg_catalog.to_regnamespace('once')) then
    raise exception 'there is a schema once in database "%" that pgonce did not make: it has no table once.migration', pg_catalog.current_database()
      using errcode = 'duplicate_schema',
            detail = 'Nothing was changed.',
            hint = 'Install into another database, or rename that schema: alter schema once rename to …';
  end if;
  if pg_catalog.to_regclass('once.migration') is null then
    create table once.migration (name varchar(255) not null primary key, "timestamp" varchar(255) not null);
    create table once.migration_lock (id varchar(255) not null primary key, is_locked integer not null default 0);
    insert into once.migration_lock (id, is_locked) values ('migration_lock', 0);
  end if;
end
$pgonce$;
`

/** Stops a script that was made for another version, before it changes anything. */
function expectInstalled(before: readonly MigrationFile[]): string {
  const names = before.map(({ name }) => literal(name)).join(', ')
  return `do $pgonce$
declare
  v_installed text[] := coalesce((select pg_catalog.array_agg(m.name::text order by m.name collate "C") from once.migration m), '{}');
begin
  if v_installed <> array[${names}]::text[] then
    raise exception 'this script updates pgonce from schema version ${versionOf(before.at(-1)?.name)}, but the database has %', v_installed
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'Make the script for this database: pgonce migrate --sql URL';
  end if;
end
$pgonce$;
`
}

function record(name: string): string {
  // An ISO time in UTC, as Kysely writes it. It orders the migrations by this text, so the next one must
  // not be earlier than the last, even where clocks differ.
  return `insert into once.migration (name, "timestamp")
select ${literal(name)},
       pg_catalog.to_char(
         greatest(pg_catalog.clock_timestamp(), max(m."timestamp"::timestamptz) + interval '1 millisecond') at time zone 'UTC',
         'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
  from once.migration m;
`
}

/**
 * Without graphile-migrate's own comments, which it refuses in a file that somebody includes in his chain,
 * and ready for another statement after it.
 */
function plain(text: string): string {
  const body = text
    .replace(/^(--! [A-Z][^\n]*\n)+/, '')
    .replace(/^--! Included (.*)$/gm, '-- $1')
    .replace(/^--! EndIncluded .*\n?/gm, '')
    .trim()
  return body.endsWith(';') ? `${body}\n` : `${body}\n;\n`
}
