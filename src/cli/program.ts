/** The command line of `pgonce`: its commands, what each takes, and what is said of it. */
import { Command } from 'commander'
import { maxInt32 } from '../check.ts'
import { describeTarget } from '../connection/url.ts'
import { several, wholeNumber } from './arguments.ts'
import { databasesVariable } from './databases.ts'
import { parseNames, runDev } from './dev.ts'
import { runDoctor } from './doctor.ts'
import { parseRetentions, runExpire } from './expire.ts'
import { runInDoubt } from './in-doubt.ts'
import { parseAddress, runMetrics } from './metrics.ts'
import { runMigrate } from './migrate.ts'
import { runRecover } from './recover.ts'

/** @param output where help goes, and complaints about the command line; by default the process's own streams */
export function createProgram(
  version: string,
  output: { writeOut?(text: string): void; writeErr?(text: string): void } = {},
): Command {
  const program = new Command('pgonce')
    .description('Every message takes effect once, in one Postgres or atomically in several.')
    .version(version)
    .showHelpAfterError('(add --help for what there is)')
    .exitOverride()
    .configureOutput({ ...output, outputError: (text, write) => write(inOurWords(text)) })
  const named = `a database by name, may be repeated; without any, ${databasesVariable} has them all`
  const json = ['--json', 'print one JSON object'] as const
  const command = (name: string, description: string) =>
    program
      .command(name)
      .description(description)
      .argument('[url...]', 'databases by URL')
      .option('--database <name=URL>', named, several)

  command('migrate', 'install schema once into databases that exist, or bring it up to date')
    .option('--dry-run', 'show what would run, change nothing')
    .option(
      '--sql',
      'print the SQL that a database lacks (all of it without a URL), for psql -1 -v ON_ERROR_STOP=1 -f',
    )
    .option(...json)
    .action(runMigrate)
  command(
    'doctor',
    'check every database, and say what to type where something is wrong; exit 1 if it is critical',
  )
    .option(
      '--max-connections <n>',
      'transactions that your clients run at once, all together',
      wholeNumber(0),
      10,
    )
    .option(...json)
    .action(runDoctor)
  command('in-doubt', 'list the branches in doubt, what their homes decided, and what to type')
    .option(...json)
    .action(runInDoubt)
  command('recover', 'finish the branches in doubt as their homes decided, audit, and purge what is proven')
    .option('--watch', 'go on until Ctrl-C, through outages')
    .option(
      '--keep <ms>',
      'purge decisions that are proven for longer',
      wholeNumber(0, Number(maxInt32)),
      600_000,
    )
    .option('--json', 'print one JSON object; with --watch one a line, whenever there is something to say')
    .action(runRecover)
  command('expire', 'apply the retention of the key ledger: expire and delete what is past it')
    .option(
      '--retention <scope=interval>',
      "first set how long a scope remembers its keys, as in stripe='30 days' or stripe=forever; may be repeated",
      parseRetentions,
    )
    .option(...json)
    .action(runExpire)
  command('metrics', 'print the checks of once.health as Prometheus metrics, or serve them')
    .option(
      '--listen <[host:]port>',
      'serve them at /metrics until Ctrl-C, read anew for each request (default host: 127.0.0.1)',
      parseAddress,
    )
    .action(runMetrics)
  program
    .command('dev')
    .description('start Postgres servers with databases ready for pgonce, until Ctrl-C')
    .option('--databases <names>', 'the databases, separated by commas', parseNames, ['orders', 'billing'])
    .option('--servers <n>', 'how many servers they are spread over', wholeNumber(1, 8), 2)
    .option(
      '--port <n>',
      'of the first server, the others follow (default: free ones)',
      wholeNumber(1, 65_535),
    )
    .option(
      '--directory <path>',
      'keep the data there, and find it there again (default: removed at the end)',
    )
    .option('--json', 'print one JSON object when everything is up')
    .action(runDev)
  return program
}

/** Commander quotes what it does not know: a URL in place of a command, or behind a mistyped option. */
function inOurWords(text: string): string {
  return (
    text
      .replace(/^error: /, 'pgonce: ')
      .replace(/'(.*)'/s, (_, quoted: string) => `'${describeTarget(quoted)}'`)
      // Arguments that are too many stand without quotes.
      .replaceAll(/:(?!\/\/)[^@\s]*@/g, ':…@')
  )
}
