/** The commands of `pgonce`, put together. */
import { Command } from 'commander'
import { describeTarget } from '../connection/url.ts'
import { devCommand } from './dev.ts'
import { doctorCommand } from './doctor.ts'
import { expireCommand } from './expire.ts'
import { inDoubtCommand } from './in-doubt.ts'
import { metricsCommand } from './metrics.ts'
import { migrateCommand } from './migrate.ts'
import { recoverCommand } from './recover.ts'

const commands = [
  migrateCommand,
  doctorCommand,
  inDoubtCommand,
  recoverCommand,
  expireCommand,
  metricsCommand,
  devCommand,
]

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
  for (const add of commands) add(program)
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
