/**
 * `npm run model`: checks the protocol's model with Spin, and that the checks would notice: every mutant must be
 * refuted, for the right property, and every good end be reachable. Exit status 1 if anything is not as expected, 2
 * if Spin or a C compiler is missing, or the command line is wrong.
 *
 *     npm run model -- --quick            smaller bounds: fewer crashes, fewer branches
 *     npm run model -- --only commit      checks whose name begins like this; several times if you like
 *     npm run model -- --explain tag      one check, and its counterexample step by step
 *     npm run model -- --json             one JSON object, for programs
 *     npm run model -- --keep             leaves Spin's files where it says
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { refuse, several, tool } from '../../scripts/command.ts'
import { type Check, checks } from './checks.ts'
import { findTools, type Result, runCheck, type Tools } from './spin.ts'

const options = tool('model', 'Checks the model of the protocol with Spin, and that the checks would notice.')
  .option('--quick', 'smaller bounds: fewer crashes, fewer branches', false)
  .option('--only <name>', 'checks whose name begins like this; may be given several times', several)
  .option('--explain <name>', 'one check, and its counterexample step by step')
  .option('--json', 'one JSON object, for programs', false)
  .option('--keep', "leave Spin's files where it says", false)
  .parse()
  .opts<{ quick: boolean; only?: readonly string[]; explain?: string; json: boolean; keep: boolean }>()

const { tools, missing } = await findTools()
if (tools === undefined) {
  refuse(
    `Missing: ${missing.join(' and ')}. On Debian and Ubuntu: apt-get install ${missing.join(' ')}; elsewhere see https://spinroot.com`,
  )
}
const { only = [''], explain } = options
const known = checks.filter(({ quick }) => !(options.quick && quick === null))
const wanted = known.filter(({ name }) =>
  explain === undefined ? only.some((start) => name.startsWith(start)) : name === explain,
)
if (wanted.length === 0) {
  const those = options.quick ? 'Those with --quick are' : 'There are'
  refuse(`Nothing to check. ${those}:\n  ${known.map(({ name }) => name).join('\n  ')}`)
}

const stop = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
const folder = await mkdtemp(join(tmpdir(), 'pgonce-model-'))
const started = performance.now()
try {
  const results = await runAll(wanted, tools)
  const different = results.filter(({ check, got }) => got !== check.expected)
  if (options.json) {
    console.log(JSON.stringify(toJson(results), null, 2))
  } else {
    if (options.explain !== undefined) for (const { trail } of results) printTrail(trail)
    const seconds = ((performance.now() - started) / 1000).toFixed(0)
    console.log(
      `\n${results.length} checks in ${seconds} s: ${results.length - different.length} as expected, ${different.length} not`,
    )
    for (const { check, trail } of different) {
      console.log(`\n${check.name}: ${check.what}`)
      printTrail(trail)
    }
  }
  if (options.keep) console.error(`Spin's files: ${folder}`)
  process.exitCode = different.length === 0 ? 0 : 1
} catch (error) {
  if (!stop.signal.aborted) throw error
  process.exitCode = 130
} finally {
  if (!options.keep) await rm(folder, { recursive: true, force: true })
}

/** As many at once as there are processors, but no more than two: they want memory. */
async function runAll(list: readonly Check[], found: Tools): Promise<Result[]> {
  const waiting = [...list]
  const results = new Map<Check, Result>()
  let printed = 0
  if (!options.json) printRow(['check', 'states', 'MB', 's', 'expected', 'got', '', ''])
  const work = async () => {
    for (let check = waiting.shift(); check !== undefined; check = waiting.shift()) {
      if (options.json || process.stderr.isTTY)
        process.stderr.write(`${check.name} … (${results.size} of ${list.length} done)\n`)
      const place = join(folder, check.name)
      await mkdir(place)
      const search = {
        flags: options.quick ? (check.quick ?? check.flags) : check.flags,
        shortest: options.explain !== undefined && check.expected !== 'holds',
      }
      results.set(check, await runCheck(check, search, found, place, stop.signal))
      // In the order of the list, each as soon as those before it are there.
      for (; !options.json; printed += 1) {
        const result = list[printed] && results.get(list[printed] as Check)
        if (result === undefined) break
        printResult(result)
      }
    }
  }
  try {
    await Promise.all(Array.from({ length: Math.min(availableParallelism(), 2) }, work))
  } catch (error) {
    stop.abort()
    throw error
  }
  return list.map((check) => results.get(check) as Result)
}

function printResult({ check, states, megabytes, seconds, got }: Result): void {
  printRow([
    check.name,
    states.toLocaleString('en-US'),
    megabytes.toFixed(0),
    seconds.toFixed(1),
    check.expected,
    got,
    got === check.expected ? 'ok' : 'DIFFERENT',
    check.what,
  ])
}

function printRow(cells: readonly string[]): void {
  const widths = [24, -12, -6, -7, 22, 22, 10, 0]
  const padded = cells.map((cell, column) => {
    const width = widths[column] ?? 0
    return width < 0 ? cell.padStart(-width) : cell.padEnd(width)
  })
  console.log(padded.join(' ').trimEnd())
}

function printTrail(trail: readonly string[]): void {
  if (trail.length === 0) console.log('no counterexample')
  trail.forEach((line, index) => {
    console.log(`${String(index + 1).padStart(4)}  ${line}`)
  })
}

function toJson(results: readonly Result[]): Record<string, unknown> {
  return {
    quick: options.quick,
    seconds: Math.round((performance.now() - started) / 1000),
    different: results.filter(({ check, got }) => got !== check.expected).map(({ check }) => check.name),
    checks: results.map(({ check, flags, got, states, megabytes, seconds, trail }) => ({
      name: check.name,
      kind: check.kind,
      what: check.what,
      flags,
      expected: check.expected,
      got,
      states,
      megabytes,
      seconds: Math.round(seconds * 10) / 10,
      trail,
    })),
  }
}
