/** From the command line to the exit code: 0 all is well; 1 what was found or done is not well; 2 wrong usage. */
import { type Command, CommanderError } from 'commander'
import { InvalidInputError, PgonceError } from '../errors.ts'
import { printable } from './output.ts'

/** Runs the command that the process was started with, and ends the process. */
export async function run(program: Command): Promise<never> {
  // `pgonce doctor | head`: the reader has had enough.
  for (const stream of [process.stdout, process.stderr]) {
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
  await Promise.all(
    [process.stdout, process.stderr].map((stream) => new Promise((done) => stream.write('', done))),
  )
  process.exit()
}

/** Says what went wrong, without a stack, and gives the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  const { message, detail, hint } = error as { message?: string; detail?: unknown; hint?: unknown }
  const lines = [`pgonce: ${message || String(error)}`]
  if (typeof detail === 'string') lines.push(`  ${detail}`)
  if (typeof hint === 'string') lines.push(`  → ${hint}`)
  process.stderr.write(
    `${lines
      .flatMap((line) => line.split('\n'))
      .map(printable)
      .join('\n')}\n`,
  )
  if (process.env.PGONCE_DEBUG || !(error instanceof PgonceError || hasCode(error))) {
    const stack = (error as Error).stack
    process.stderr.write(process.env.PGONCE_DEBUG ? `${stack}\n` : '  → PGONCE_DEBUG=1 shows where\n')
  }
  return error instanceof InvalidInputError ? 2 : 1
}

/** Errors of the system and of servers have one; a fault of ours has none. */
function hasCode(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'code' in error
}
