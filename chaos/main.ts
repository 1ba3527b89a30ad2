/**
 * `npm run chaos`: real faults on real servers, and a checker that does not trust us.
 *
 *     npm run chaos -- --minutes 3 --seed 7        all workloads, all faults
 *     npm run chaos -- --workload bank,queue       some of the workloads
 *     npm run chaos -- --faults kill,server,proxy  some of the faults
 *     npm run chaos -- --json                      one JSON object on stdout
 *     npm run chaos -- --keep DIR                  keeps histories and logs there, also if all is well
 *     npm run chaos -- --mutants [--only NAME]     seeded bugs: each must be caught
 *
 * Exit code 1: something was violated, or a mutant survived; then histories and logs are kept, and the folder is
 * printed.
 */
import { parseArgs } from 'node:util'
import { type FailoverReport, failover } from './failover.ts'
import { runMutants } from './mutants.ts'
import { type Fault, faults } from './nemesis.ts'
import { type Found, type RunReport, run } from './run.ts'
import { workloads } from './workloads/index.ts'

const { values: flags } = parseArgs({
  options: {
    minutes: { type: 'string', default: '3' },
    seed: { type: 'string' },
    workload: { type: 'string', default: 'all' },
    faults: { type: 'string', default: 'all' },
    /** Coordinators at a time, and their lanes as a multiple of the usual. */
    slots: { type: 'string', default: '4' },
    lanes: { type: 'string', default: '1' },
    /** Mean milliseconds: a coordinator's life, between crashes of servers, between faults of proxies. */
    life: { type: 'string', default: '1500' },
    'servers-every': { type: 'string', default: '2000' },
    'proxies-every': { type: 'string', default: '500' },
    /** Seconds that recovery has. */
    patience: { type: 'string', default: '60' },
    json: { type: 'boolean', default: false },
    keep: { type: 'string' },
    mutants: { type: 'boolean', default: false },
    only: { type: 'string' },
  },
})

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.on(signal, () => process.exit(code))

const say = (text: string) => console.error(text)

if (flags.mutants) {
  process.exit((await runMutants(flags.only, say)) ? 0 : 1)
}

const seed = flags.seed === undefined ? Math.floor(Math.random() * 1_000_000) : number('seed', flags.seed)
const wanted = choose('fault', flags.faults, [...faults, 'failover'] as const)
const began = performance.now()
const report = await run({
  seconds: number('minutes', flags.minutes) * 60,
  seed,
  workloads: choose(
    'workload',
    flags.workload,
    workloads.map(({ name }) => name),
  ),
  faults: new Set<Fault>(wanted.filter((fault) => fault !== 'failover')),
  slots: number('slots', flags.slots),
  lanes: number('lanes', flags.lanes),
  life: number('life', flags.life),
  serverEvery: number('servers-every', flags['servers-every']),
  proxyEvery: number('proxies-every', flags['proxies-every']),
  patience: number('patience', flags.patience),
  keep: flags.keep,
  say,
})
const promotion = wanted.includes('failover') ? await failover(seed, say) : undefined
const anomalies: readonly Found[] = [
  ...report.anomalies,
  ...(promotion?.anomalies ?? []).map((anomaly) => ({ workload: 'failover', ...anomaly })),
]
const seconds = Math.round((performance.now() - began) / 1000)
if (flags.json) console.log(JSON.stringify(toJson(report, promotion)))
else print(report, promotion)
for (const { workload, name, count } of anomalies) say(`VIOLATION ${workload}: ${name}, ${count} times`)
if (report.folder !== undefined) say(`Histories and logs: ${report.folder}`)
// What is left are connections to servers that are gone.
process.exit(anomalies.length > 0 ? 1 : 0)

function toJson(main: RunReport, phase: FailoverReport | undefined) {
  return {
    seed,
    seconds,
    coordinator_kills: main.coordinatorKills,
    server_kills: main.serverKills,
    proxy_faults: main.proxyFaults,
    faults: main.faults,
    skipped: main.skipped,
    operations: main.operations,
    outcomes_resolved: main.resolved,
    violations: anomalies.reduce((total, { count }) => total + count, 0),
    anomalies,
    expected: main.expected.map(({ workload, name, count }) => ({ workload, name, count })),
    orphans_after_60s: main.orphans + (phase?.orphans ?? 0),
    settled_after_seconds: main.settledAfter,
    heuristics: {
      recorded: main.heuristics.length + (phase?.detected ?? 0),
      explained: phase?.detected ?? 0,
    },
    failover: phase && {
      acknowledged: phase.acknowledged,
      lost_in_part: phase.lostInPart,
      detected: phase.detected,
      proven_before: phase.provenBefore,
      lost_whole: phase.lostWhole,
    },
    folder: main.folder,
  }
}

function print(main: RunReport, phase: FailoverReport | undefined): void {
  console.log(`seed ${seed}, ${seconds} s`)
  console.log(
    `${main.coordinatorKills} coordinators killed, ${main.serverKills} server crashes, ${main.proxyFaults} proxy faults`,
  )
  for (const [what, times] of Object.entries(main.faults).sort()) console.log(`  ${what}: ${times}`)
  for (const what of main.skipped) console.log(`  SKIPPED ${what}`)
  for (const [name, { ok, fail, info }] of Object.entries(main.operations))
    console.log(`${name}: ${ok} ok, ${fail} failed, ${info} unknown`)
  const { committed, aborted, forgotten } = main.resolved
  console.log(
    `outcomes asked for afterwards: ${committed} committed, ${aborted} aborted, ${forgotten} forgotten`,
  )
  for (const { workload, name, count } of main.expected)
    console.log(`${workload}: ${name} ${count} times, which is allowed`)
  console.log(`nothing in doubt ${main.settledAfter.toFixed(1)} s after the faults; orphans: ${main.orphans}`)
  if (phase)
    console.log(
      `failover: of ${phase.acknowledged} acknowledged, ${phase.lostInPart} lost in part (${phase.detected} reported, ` +
        `${phase.provenBefore} proven before), ${phase.lostWhole} lost whole`,
    )
  console.log(anomalies.length === 0 ? 'no violation' : 'VIOLATED, see above')
}

function choose<T extends string>(what: string, text: string, known: readonly T[]): T[] {
  if (text === 'all') return [...known]
  const words = text.split(',').filter((word) => word !== '')
  const unknown = words.find((word) => !(known as readonly string[]).includes(word))
  if (unknown !== undefined) refuse(`No ${what} named ${unknown}. There are: all, ${known.join(', ')}`)
  return words as T[]
}

function number(what: string, text: string): number {
  const value = Number(text)
  if (!(value >= 0)) refuse(`Expected --${what} to be a number, got ${text}`)
  return value
}

function refuse(message: string): never {
  console.error(message)
  process.exit(2)
}
