/** The migrations that this package ships, and the SQL text that installs them. */
import { readdir, readFile } from 'node:fs/promises'
import { expect } from '../check.ts'
import { literal } from '../connection/quote.ts'
import { complete, type MigrationSqlOptions, migrationSqlOptions } from '../options.ts'

/** One released file: SQL without `begin` and `commit`. */
export interface MigrationFile {
  /** The file's name without `.sql`; it begins with the schema version it brings, as in `000001-install`. */
  readonly name: string
  readonly sql: string
}

/** From src/ and from dist/ alike. Not made when loaded: a bundle has no such place. */
const inPackage = (path: string) => new URL(`../../${path}`, import.meta.url)

/** What this package ships, in order. @internal */
export async function readMigrations(): Promise<readonly MigrationFile[]> {
  const folder = inPackage('migrations/committed/')
  const files = (await readdir(folder)).filter((file) => file.endsWith('.sql')).sort()
  return Promise.all(
    files.map(async (file) => ({
      name: file.slice(0, -4),
      sql: await readFile(new URL(file, folder), 'utf8'),
    })),
  )
}

export async function packageVersion(): Promise<string> {
  return (JSON.parse(await readFile(inPackage('package.json'), 'utf8')) as { version: string }).version
}

/** The schema version that a migration brings, by its name; 0 for none. */
export function versionOf(name: string | undefined): number {
  return name === undefined ? 0 : Number.parseInt(name, 10)
}

/** What installs a migration where exactly those before it are: in one transaction, with its bookkeeping. */
export function installationOf(file: MigrationFile, before: readonly MigrationFile[]): string {
  return `-- ${file.name}
${expectInstalled(before)}
${plain(file.sql)}
insert into once.migration (name) values (${literal(file.name)});
`
}

/** Stops a text that was made for another version, or meets a schema of somebody else, before it changes anything. */
function expectInstalled(before: readonly MigrationFile[]): string {
  const names = before.map(({ name }) => literal(name)).join(', ')
  return `do $pgonce$
declare
  v_installed text[] := '{}';
begin
  if pg_catalog.to_regclass('once.migration') is not null then
    v_installed := array(select m.name from once.migration m order by m.name collate "C");
  elsif exists (select from pg_catalog.pg_class c where c.relnamespace = pg_catalog.to_regnamespace('once')) then
    raise exception 'there is a schema once in database "%" that pgonce did not make: it has no table once.migration', pg_catalog.current_database()
      using errcode = 'duplicate_schema',
            detail = 'Nothing was changed.',
            hint = 'Install into another database, or rename that schema: alter schema once rename to ...';
  end if;
  if v_installed <> array[${names}]::text[] then
    raise exception 'this script updates pgonce from schema version ${versionOf(before.at(-1)?.name)}, but the database has %', v_installed
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'Make the script for this database: pgonce migrate --sql URL';
  end if;
end
$pgonce$;`
}

/** Without graphile-migrate's own comments, which it refuses in a file that somebody includes; with a last semicolon. */
function plain(text: string): string {
  const body = text
    .replace(/^(--! [A-Z][^\n]*\n)+/, '')
    .replace(/^--! Included (.*)$/gm, '-- $1')
    .replace(/^--! EndIncluded .*\n?/gm, '')
    .trim()
  return body.endsWith(';') ? body : `${body}\n;`
}

/**
 * The whole installation as one SQL text, for people who review it first or who run it with tools of their
 * own: `psql -1 -v ON_ERROR_STOP=1 -f`, or a migration of their own chain. It contains no `begin` and no
 * `commit`, and must run in one transaction. `migrate()` afterwards finds the schema installed.
 *
 * @throws InvalidInputError `ONARG` if there is no such version
 */
export async function migrationSql(options: MigrationSqlOptions = {}): Promise<string> {
  const { from, ...given } = complete(migrationSqlOptions, options)
  const migrations = given.migrations ?? (await readMigrations())
  const latest = versionOf(migrations.at(-1)?.name)
  const isVersion = from === 0 || migrations.some(({ name }) => versionOf(name) === from)
  const hint = 'The database tells: select once.schema_version()'
  expect(isVersion, 'from', from, `a schema version from 0 (not installed) to ${latest}`, hint)
  const head = `-- pgonce ${await packageVersion()}: schema once from version ${from} to ${latest}.\n`
  const texts = migrations.flatMap((file, index) =>
    versionOf(file.name) > from ? [installationOf(file, migrations.slice(0, index))] : [],
  )
  if (texts.length === 0) return `${head}-- Nothing to do.\n`
  return [`${head}${howToRun}`, ...texts].join('\n')
}

const howToRun = `-- Run it in one transaction, so that a failure leaves nothing behind. As a file:
--   psql -1 -v ON_ERROR_STOP=1 -f FILE 'postgres://user@host/database'
`
