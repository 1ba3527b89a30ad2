/**
 * `pgonce migrate`: installs schema once, or brings it up to date, in any number of databases.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { InvalidInputError } from '../errors.ts'
import { type MigrateResult, migrate, migrationSql } from '../migrate.ts'

interface MigrateFlags {
  readonly database: readonly NamedUrl[]
  readonly dryRun?: boolean
  readonly sql?: boolean
  readonly json?: boolean
}

interface NamedUrl {
  readonly name?: string
  readonly url: string
}

/** Adds the command to the program. */
export function migrateCommand(program: Command): void {
  program
    .command('migrate')
    .description('install schema once into databases that exist, or bring it up to date')
    .argument('[url...]', 'databases by URL')
    .option('--database <name=URL>', 'a database by name, may be repeated', collect, [])
    .option('--dry-run', 'show what would run, change nothing')
    .option('--sql', 'print the SQL that a database lacks (all of it without a URL) instead of running it')
    .option('--json', 'print one JSON object')
    .action(runMigrate)
}

/**
 * Runs the command. Databases are done in order; the first that fails ends it, and those before it stay
 * installed: doing it again finds them up to date.
 *
 * @throws PgonceError as {@link migrate}
 */
export async function runMigrate(urls: readonly string[], flags: MigrateFlags): Promise<void> {
  const targets: NamedUrl[] = [...urls.map((url) => ({ url })), ...flags.database]
  if (flags.sql) return await printSql(targets)
  if (targets.length === 0) {
    throw new InvalidInputError('ONARG', 'Which database?', {
      hint: 'For example: pgonce migrate postgres://app@localhost/orders',
    })
  }
  const results: (MigrateResult & { readonly name: string | null })[] = []
  for (const { name, url } of targets) {
    const result = await migrate(url, { dryRun: flags.dryRun ?? false })
    results.push({ name: name ?? null, ...result })
    if (!flags.json) console.log(summary(name ?? result.database, result))
  }
  if (flags.json) console.log(JSON.stringify({ databases: results }))
}

async function printSql(targets: readonly NamedUrl[]): Promise<void> {
  if (targets.length > 1) {
    throw new InvalidInputError(
      'ONARG',
      `--sql is for one database, got ${targets.length}: versions may differ`,
    )
  }
  const target = targets[0]
  const from = target === undefined ? 0 : (await migrate(target.url, { dryRun: true })).schemaVersion
  process.stdout.write(await migrationSql({ from }))
}

function summary(name: string, { schemaVersion, migrations }: MigrateResult): string {
  const news = migrations.filter(({ status }) => status !== 'present')
  if (news.length === 0) return `${name}: schema once is up to date, version ${schemaVersion}`
  return news.map(({ name: step, status }) => `${name}: ${step} ${status}`).join('\n')
}

function collect(value: string, before: readonly NamedUrl[]): readonly NamedUrl[] {
  const at = value.indexOf('=')
  if (at < 1)
    throw new InvalidArgumentError('Expected name=URL, for example orders=postgres://app@localhost/orders')
  return [...before, { name: value.slice(0, at), url: value.slice(at + 1) }]
}
