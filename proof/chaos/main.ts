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
 * printed. Exit code 2: the command line is wrong.
 */
import { number, oneOrMore, refuse, tool, wholeNumber } from '../../scripts/command.ts'
import { chooseMutants, runMutants } from '../rig/mutants.ts'
import { type FailoverReport, failover } from './failover.ts'
import { mutants, search } from './mutants.ts'
import { faults } from './nemesis.ts'
import { type Found, type RunReport, run } from './run.ts'
import { workloads } from './workloads/index.ts'

const names = workloads.map(({ name }) => name)
const flags = tool('chaos', 'Real faults on real servers, and a checker that does not trust us.')
  .option('--minutes <n>', 'how long faults strike', number(0.1), 3)
  .option('--seed <n>', 'else a random one', wholeNumber(0))
  .option('--workload <names>', `some of: ${names.join(', ')}`, oneOrMore(names), names)
  .option(
    '--faults <names>',
    `some of: ${[...faults, 'failover'].join(', ')}`,
    oneOrMore([...faults, 'failover']),
  )
  .option('--slots <n>', 'coordinators at a time', wholeNumber(1), 4)
  .option('--lanes <n>', 'of each workload in a coordinator, as a multiple of the usual', number(0.1), 1)
  .option('--life <ms>', 'of a coordinator, on average', number(1), 1_500)
  .option('--servers-every <ms>', 'between crashes of servers, on average', number(1), 2_000)
  .option('--proxies-every <ms>', 'between faults of proxies, on average', number(1), 500)
  .option('--patience <s>', 'that recovery has after the faults', number(0), 60)
  .option('--json', 'one JSON object on standard output', false)
  .option('--keep <folder>', 'for histories and logs, also if all is well')
  .option('--mutants', 'seeded bugs: each must be caught', false)
  .option('--only <names>', 'some of the mutants')
  .parse()
  .opts<{
    minutes: number
    seed?: number
    workload: readonly string[]
    faults?: readonly string[]
    slots: number
    lanes: number
    life: number
    serversEvery: number
    proxiesEvery: number
    patience: number
    json: boolean
    keep?: string
    mutants: boolean
    only?: string
  }>()

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.on(signal, () => process.exit(code))

const say = (text: string) => console.error(text)

if (flags.mutants) {
  const chosen = chooseMutants(mutants, flags.only)
  process.exit((await runMutants(chosen, (one) => search(one, say), { json: flags.json })) ? 0 : 1)
}
if (flags.only !== undefined) refuse('--only chooses among mutants: add --mutants')

const { seed = Math.floor(Math.random() * 1_000_000), faults: wanted = [...faults, 'failover'] } = flags
const began = performance.now()
const report = await run({
  seconds: flags.minutes * 60,
  seed,
  workloads: flags.workload,
  faults: new Set(faults.filter((fault) => wanted.includes(fault))),
  slots: flags.slots,
  lanes: flags.lanes,
  life: flags.life,
  serverEvery: flags.serversEvery,
  proxyEvery: flags.proxiesEvery,
  patience: flags.patience,
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
    losses: {
      recorded: main.losses.length + (phase?.detected ?? 0),
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
  const { committed, aborted, purged } = main.resolved
  console.log(`outcomes asked for afterwards: ${committed} committed, ${aborted} aborted, ${purged} purged`)
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
