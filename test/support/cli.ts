/** The command line as what it is: a process. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { TestContext, TestDatabase } from './database.ts'

export const cliProgram = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

export interface CliResult {
  readonly exitCode: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs a command to its end. No databases come from the environment unless given here. */
export function pgonceCli(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<CliResult> {
  return runScript(cliProgram, args, env)
}

/** Runs any script of ours to its end. */
export async function runScript(
  script: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<CliResult> {
  const child = launch(script, args, env)
  const exit = new Promise<number | null>((resolve) => child.once('close', resolve))
  const [stdout, stderr, exitCode] = await Promise.all([read(child.stdout), read(child.stderr), exit])
  return { exitCode, stdout, stderr }
}

export interface RunningCli {
  readonly pid: number
  /** Waits for a line on stdout that matches, among all there were and will be. */
  line(pattern: RegExp): Promise<string>
  /** All lines so far. */
  readonly lines: readonly string[]
  /** Sends a signal and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<CliResult>
}

/** Starts a command that stays. It is killed at the end of the test if it still runs. */
export function startCli(t: TestContext, args: readonly string[], env: NodeJS.ProcessEnv = {}): RunningCli {
  const child = launch(cliProgram, args, env)
  const lines: string[] = []
  const waiting = new Set<() => void>()
  let ended: number | null | undefined
  const closed = new Promise<number | null>((resolve) => child.once('close', resolve))
  void closed.then((code) => {
    ended = code
    for (const look of waiting) look()
  })
  const errors = read(child.stderr)
  if (child.stdout) {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line)
      for (const look of waiting) look()
    })
  }
  // Also where the test runner gives up on this file before its teardown.
  process.once('exit', () => child.kill('SIGKILL'))
  t.teardown(async () => {
    if (ended === undefined) child.kill('SIGKILL')
    await closed
  })
  return {
    pid: child.pid ?? 0,
    lines,
    line: (pattern) =>
      new Promise((resolve, reject) => {
        const look = () => {
          const found = lines.find((line) => pattern.test(line))
          if (found === undefined && ended === undefined) return
          waiting.delete(look)
          if (found !== undefined) resolve(found)
          else void errors.then((said) => reject(new Error(`ended with ${ended} before ${pattern}: ${said}`)))
        }
        waiting.add(look)
        look()
      }),
    async stop(signal = 'SIGINT') {
      child.kill(signal)
      return { exitCode: await closed, stdout: lines.join('\n'), stderr: await errors }
    },
  }
}

/** The arguments that name databases. */
export function named(databases: Readonly<Record<string, string | Pick<TestDatabase, 'url'>>>): string[] {
  return Object.entries(databases).flatMap(([name, database]) => [
    '--database',
    `${name}=${typeof database === 'string' ? database : database.url}`,
  ])
}

function launch(script: string, args: readonly string[], env: NodeJS.ProcessEnv): ChildProcess {
  const { PGONCE_DATABASES: _, ...inherited } = process.env
  return spawn(process.execPath, [script, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...inherited, ...env },
  })
}

function read(stream: NodeJS.ReadableStream | null): Promise<string> {
  return stream === null ? Promise.resolve('') : text(stream)
}
