/** `pgonce migrate`: installs schema once, or brings it up to date, in any number of databases. */
import { hostIn } from '../connection/url.ts'
import { type MigrateResult, migrate } from '../database/migrate.ts'
import { migrationSql } from '../database/migration.ts'
import { InvalidInputError } from '../errors.ts'
import { type ChosenDatabase, chooseDatabases, type DatabaseFlags, givenDatabases } from './databases.ts'
import { print, printable, printJson } from './output.ts'

interface MigrateFlags extends DatabaseFlags {
  readonly dryRun?: boolean
  readonly sql?: boolean
}

/**
 * Runs the command. Databases are done in order; the first that fails ends it, and those before it stay
 * installed: doing it again finds them up to date.
 *
 * @throws PgonceError as {@link migrate}
 */
export async function runMigrate(urls: readonly string[], flags: MigrateFlags): Promise<void> {
  if (flags.sql) return await printSql(givenDatabases(urls, flags))
  const results: (MigrateResult & { readonly name: string | null })[] = []
  for (const { name, url, from } of chooseDatabases(urls, flags)) {
    const result = await migrate(url, { dryRun: flags.dryRun ?? false })
    const given = from === 'a URL' ? null : name
    results.push({ name: given, ...result })
    if (!flags.json) print(summary(given ?? result.database, hostIn(url), result))
  }
  if (flags.json) printJson({ databases: results })
}

async function printSql([target, ...others]: readonly ChosenDatabase[]): Promise<void> {
  if (others.length > 0) {
    const message = `--sql is for one database, got ${others.length + 1}: versions may differ`
    throw new InvalidInputError('ONARG', message)
  }
  const from = target === undefined ? 0 : (await migrate(target.url, { dryRun: true })).schemaVersion
  process.stdout.write(await migrationSql({ from }))
}

/** Says which database it was, as it says itself: a name here, or a default, may stand for another than was meant. */
function summary(name: string, host: string, { database, schemaVersion, migrations }: MigrateResult): string {
  const place = `database ${printable(database)} on ${host}`
  const news = migrations.filter(({ status }) => status !== 'present')
  if (news.length === 0) return `${name}: schema once is up to date, version ${schemaVersion} (${place})`
  return news.map(({ name: step, status }) => `${name}: ${step} ${status} (${place})`).join('\n')
}
