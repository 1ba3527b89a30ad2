#!/usr/bin/env node
/**
 * The command line `pgonce`. Exit codes: 0 all is well; 1 it ran, and what it found or did is not well;
 * 2 the command line is wrong, and nothing was done.
 */
import { CommanderError } from 'commander'
import { packageVersion } from '../database/migration-files.ts'
import { InvalidInputError, PgonceError } from '../errors.ts'
import { printable } from './output.ts'
import { createProgram } from './program.ts'

// `pgonce doctor | head`: whoever reads has had enough.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit()
  })
}

const program = createProgram(await packageVersion())

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
