/** From the command line to the exit code: 0 all is well; 1 what was found or done is not well; 2 wrong usage. */
import { type Command, CommanderError } from 'commander'
import { codeOf, InvalidInputError } from '../errors.ts'
import { printable } from './output.ts'

/** Runs the command that the process was started with, and ends the process. */
export async function run(program: Command): Promise<never> {
  const streams = [process.stdout, process.stderr]
  // `pgonce doctor | head`: the reader has had enough.
  for (const stream of streams) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error
      process.exit()
    })
  }
  try {
    await program.parseAsync()
  } catch (error) {
    process.exitCode = report(error)
  }
  // A driver that still hangs on to a dead server must not keep us; but a pipe must be written to its end.
  await Promise.all(streams.map((stream) => new Promise((done) => stream.write('', done))))
  process.exit()
}

/** Says what went wrong, without a stack, and gives the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  const { message, detail, hint, stack } = error as { [name: string]: unknown }
  const lines = [`pgonce: ${message || String(error)}`]
  if (typeof detail === 'string') lines.push(`  ${detail}`)
  if (typeof hint === 'string') lines.push(`  → ${hint}`)
  const shown = lines.flatMap((line) => line.split('\n')).map(printable)
  if (process.env.PGONCE_DEBUG) shown.push(String(stack))
  // Errors of the system, of servers and our own have one; a fault of ours has none.
  else if (codeOf(error) === undefined) shown.push('  → PGONCE_DEBUG=1 shows where')
  process.stderr.write(`${shown.join('\n')}\n`)
  return error instanceof InvalidInputError ? 2 : 1
}
