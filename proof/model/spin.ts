/** One check with Spin: model -> C -> program -> result, in a folder of its own. */
import { spawn } from 'node:child_process'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Check, Outcome, Property } from './checks.ts'

export interface Tools {
  readonly spin: string
  readonly compiler: string
}

export interface Result {
  readonly check: Check
  readonly flags: readonly string[]
  readonly got: Outcome
  readonly states: number
  readonly seconds: number
  readonly megabytes: number
  /** The counterexample or the witness, a line a step; empty if there is none. */
  readonly trail: readonly string[]
}

const model = join(import.meta.dirname, 'protocol.pml')

/** The programs that are needed, or else the Debian packages that are missing. */
export async function findTools(): Promise<{ tools: Tools | undefined; missing: readonly string[] }> {
  const spin = await firstThatRuns(['spin'], '-V')
  const compiler = await firstThatRuns(['cc', 'gcc', 'clang'], '--version')
  const missing = [...(spin === undefined ? ['spin'] : []), ...(compiler === undefined ? ['gcc'] : [])]
  const tools = spin === undefined || compiler === undefined ? undefined : { spin, compiler }
  return { tools, missing }
}

async function firstThatRuns(programs: readonly string[], argument: string): Promise<string | undefined> {
  for (const program of programs) {
    const runs = await run(program, [argument], '.').then(
      ({ code }) => code === 0,
      () => false,
    )
    if (runs) return program
  }
  return undefined
}

/** How to search: `shortest` looks breadth first, so that the counterexample is as short as it can be. */
export interface Search {
  readonly flags: readonly string[]
  readonly shortest: boolean
}

/**
 * Exhaustive either way: no bitstate hashing, and a bound on depth or memory that is met makes the check
 * incomplete.
 *
 * @throws if the model does not compile
 */
export async function runCheck(
  check: Check,
  { flags, shortest }: Search,
  tools: Tools,
  folder: string,
  signal: AbortSignal,
): Promise<Result> {
  const started = performance.now()
  const defines = flags.map((flag) => `-D${flag}`)
  // Spin runs the preprocessor itself, by default gcc's.
  const preprocessor = `-P${tools.compiler} -E -x c`
  await must(tools.spin, [preprocessor, ...defines, '-a', model], folder, signal)
  const search = check.liveness ? ['-DNFAIR=3'] : ['-DSAFETY', '-DNOFAIR', ...(shortest ? ['-DBFS'] : [])]
  // A mutant is refuted sooner than an optimizer is done.
  const optimize = check.expected === 'holds' ? '-O2' : '-O0'
  await must(
    tools.compiler,
    [optimize, '-w', '-DMEMLIM=8000', ...search, '-o', 'pan', 'pan.c'],
    folder,
    signal,
  )
  const { output } = await run(
    join(folder, 'pan'),
    ['-m200000', ...(check.liveness ? ['-a', '-f'] : [])],
    folder,
    signal,
  )
  signal.throwIfAborted()
  const trailFile = (await readdir(folder)).find((name) => name.endsWith('.trail'))
  const replay =
    trailFile === undefined
      ? ''
      : (await run(tools.spin, [preprocessor, ...defines, '-T', '-k', trailFile, model], folder, signal))
          .output
  return {
    check,
    flags,
    got: outcomeOf(check, output, replay),
    states: Number(/^\s*([\d.e+]+) states, stored/m.exec(output)?.[1] ?? Number.NaN),
    seconds: (performance.now() - started) / 1000,
    megabytes: Number(/^\s*([\d.]+)\s+total actual memory usage/m.exec(output)?.[1] ?? Number.NaN),
    trail: readable(replay),
  }
}

function outcomeOf({ kind, liveness }: Check, output: string, replay: string): Outcome {
  const errors = /errors: (\d+)/.exec(output)?.[1]
  if (errors === undefined || /out of memory|max search depth too small|reached -DMEMLIM/.test(output))
    return 'incomplete'
  if (errors === '0')
    return /Search not completed/.test(output) ? 'incomplete' : kind === 'witness' ? 'not reached' : 'holds'
  if (/^REACHED$/m.test(replay)) return 'reached'
  const violated = /^VIOLATED (\w+)$/m.exec(replay)?.[1]
  if (violated !== undefined) return `refuted: ${violated as Property}`
  return liveness && /acceptance cycle/.test(output) ? 'refuted: orphan' : 'incomplete'
}

/** The process numbers that Spin gives out, in the order of the model. */
const processes: ReadonlyMap<string, string> = new Map([
  ['2', 'coordinator'],
  ['3', 'courier A'],
  ['4', 'courier B'],
])

/** Only what the model says, with the names of those who say it. */
function readable(replay: string): string[] {
  return replay
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => /^(\d+:|home:|branch \d:|coordinator:|judge:|VIOLATED|REACHED|<<<<<)/.test(line))
    .filter((line) => !/^\d+ processes|^\d+:\s+proc /.test(line))
    .map((line) => line.replace(/^(\d+): /, (all, number: string) => `${processes.get(number) ?? all}: `))
    .map((line) => line.replace(/^<<<<<START OF CYCLE>>>>>$/, '-- from here on again and again --'))
}

async function must(
  program: string,
  args: readonly string[],
  folder: string,
  signal: AbortSignal,
): Promise<void> {
  const { code, output } = await run(program, args, folder, signal)
  signal.throwIfAborted()
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} failed:\n${output.trim().slice(0, 4000)}`)
}

async function run(
  program: string,
  args: readonly string[],
  folder: string,
  signal?: AbortSignal,
): Promise<{ code: number | null; output: string }> {
  return await new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] })
    const kill = () => child.kill('SIGKILL')
    signal?.addEventListener('abort', kill, { once: true })
    let output = ''
    const collect = (chunk: Buffer) => {
      output += chunk
    }
    child.stdout.on('data', collect)
    child.stderr.on('data', collect)
    child.on('error', reject)
    child.on('close', (code) => {
      signal?.removeEventListener('abort', kill)
      resolve({ code, output })
    })
  })
}
