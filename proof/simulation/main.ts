/**
 * `npm run simulate`: runs the real coordinator and the real recovery in a simulated world, one schedule a seed.
 *
 *     npm run simulate -- --seeds 50000             schedules 1 to 50000, on all cores
 *     npm run simulate -- --from 70000 --seeds 100  from another seed on
 *     npm run simulate -- --seed 4711               one schedule again, event by event
 *     npm run simulate -- --mutants                 the same against versions of the code with a bug in each
 *     … --json                                      the report as JSON, on standard output
 *
 * Ends with 1 if an invariant was violated, a point of many never hit, or a mutant survived; with 2 if misused.
 */
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { refuse, tool, wholeNumber } from '../../scripts/command.ts'
import { chooseMutants, runMutants } from '../rig/mutants.ts'
import { mutants, search } from './mutants.ts'
import { planOf } from './plan.ts'
import { points, reachable } from './points.ts'
import { join, noTotals, simulate, type Totals } from './run.ts'
import { shrink } from './shrink.ts'
import type { Range } from './worker.ts'

const values = tool(
  'simulate',
  'Runs the real coordinator and recovery in a simulated world, one schedule a seed.',
)
  .option('--seeds <n>', 'how many schedules; with --mutants, how many at most for each', wholeNumber(1))
  .option('--from <seed>', 'the first', wholeNumber(0), 1)
  .option('--seed <seed>', 'one schedule only, event by event', wholeNumber(0))
  .option('--threads <n>', 'instead of one a processor', wholeNumber(1), availableParallelism())
  .option('--first', 'end at the first violation', false)
  .option('--mutants', 'versions of the code with one bug each: every one must be caught', false)
  .option('--only <word>', 'of the mutants those whose name contains it; several by commas')
  .option('--json', 'the report as JSON, on standard output', false)
  .parse()
  .opts<{
    seeds?: number
    from: number
    seed?: number
    threads: number
    first: boolean
    mutants: boolean
    only?: string
    json: boolean
  }>()

/** Each schedule whose failure is shown shrunk, besides all that are listed. */
const mostShrunk = 3

/** From so many schedules on, a point that was never hit is a failure, too. */
const enoughSchedules = 10_000
/** The same for crashes of the server, which are fewer. */
const enoughCrashes = 50_000

if (values.mutants) {
  const chosen = chooseMutants(mutants, values.only)
  const options = { atOnce: availableParallelism(), json: values.json }
  process.exitCode = (await runMutants(chosen, (one) => search(one, values.seeds ?? 50_000), options)) ? 0 : 1
} else if (values.only !== undefined) {
  refuse('--only chooses among mutants: add --mutants')
} else if (values.seed === undefined) {
  process.exitCode = await runMany(values.from, values.seeds ?? 10_000)
} else {
  process.exitCode = await replay(values.seed)
}

async function runMany(from: number, seeds: number): Promise<number> {
  const begun = performance.now()
  let told = begun
  const totals = noTotals()
  await spread(from, seeds, (chunk) => {
    join(totals, chunk)
    const seconds = (performance.now() - begun) / 1000
    const progress = `${totals.schedules} of ${seeds} schedules, ${Math.round(totals.schedules / seconds)}/s, ${totals.failed} with violations`
    if (process.stderr.isTTY) process.stderr.write(`\r${progress} `)
    else if (performance.now() - told > 10_000) {
      process.stderr.write(`${progress}\n`)
      told = performance.now()
    }
    return !(values.first && totals.failed > 0)
  })
  if (process.stderr.isTTY) process.stderr.write('\n')
  const seconds = (performance.now() - begun) / 1000
  const coverage = coverageOf(totals)
  const isShort = totals.schedules < enoughSchedules
  const report = {
    from,
    schedules: totals.schedules,
    seconds: Number(seconds.toFixed(1)),
    schedulesPerSecond: Math.round(totals.schedules / seconds),
    events: totals.events,
    simulatedDays: Number((totals.time / 86_400_000).toFixed(1)),
    violations: totals.failed,
    failures: totals.failures.toSorted((one, other) => one.seed - other.seed).slice(0, 20),
    calls: sorted(totals.ends),
    faults: sorted(totals.faults),
    coverage,
  }
  if (values.json) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`)
  else tell(report)
  for (const { seed, violations } of report.failures.slice(0, mostShrunk)) {
    const [first] = violations
    if (first) await showShrunk(seed, first.invariant)
  }
  const missed =
    coverage.neverPassed.length +
    coverage.neverKilled.length +
    (totals.schedules < enoughCrashes ? 0 : coverage.neverCrashed.length)
  if (missed > 0 && !isShort) process.stderr.write('Some points were never hit: see coverage.\n')
  return totals.failed > 0 || (missed > 0 && !isShort) ? 1 : 0
}

/** Gives ranges of seeds to threads, the next to whoever is done. */
async function spread(from: number, seeds: number, done: (totals: Totals) => boolean): Promise<void> {
  const { threads } = values
  const size = Math.max(1, Math.min(500, Math.ceil(seeds / threads / 4)))
  let next = from
  let goOn = true
  await Promise.all(
    Array.from({ length: threads }, async () => {
      const worker = new Worker(new URL('./worker.ts', import.meta.url), {
        // A schedule leaves nothing behind: the more of them between two collections, the less is copied.
        resourceLimits: { maxYoungGenerationSizeMb: 64 },
      })
      try {
        while (goOn && next < from + seeds) {
          const range: Range = { from: next, count: Math.min(size, from + seeds - next) }
          next += range.count
          worker.postMessage(range)
          const [answer] = (await once(worker, 'message')) as [Totals | Error]
          if (answer instanceof Error) throw answer
          goOn = done(answer) && goOn
        }
      } finally {
        await worker.terminate()
      }
    }),
  )
}

function coverageOf({ passed, killed, crashed, cut }: Totals) {
  const never = (counts: readonly number[]) =>
    reachable.filter((point) => counts[point] === 0).map((point) => points[point] as string)
  // What is about to be sent concerns no server yet; a step of the code concerns one, but no message.
  return {
    points: reachable.length,
    neverPassed: never(passed),
    neverKilled: never(killed),
    neverCrashed: never(crashed),
    neverCut: never(cut),
    leastKilled: Math.min(...reachable.map((point) => killed[point] as number)),
    atPoints: Object.fromEntries(
      reachable.map((point) => [
        points[point],
        { passed: passed[point], killed: killed[point], crashed: crashed[point], cut: cut[point] },
      ]),
    ),
  }
}

function sorted(counts: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(counts).sort(([, one], [, other]) => other - one))
}

function tell({
  failures,
  coverage,
  ...report
}: Record<string, unknown> & {
  failures: readonly unknown[]
  coverage: ReturnType<typeof coverageOf>
}): void {
  const { atPoints, ...rest } = coverage
  console.log({ ...report, coverage: rest })
  for (const failure of failures) console.log(JSON.stringify(failure))
}

async function showShrunk(seed: number, invariant: string): Promise<void> {
  const { plan, tries } = await shrink(planOf(seed), invariant)
  const lines: string[] = []
  await simulate(plan, undefined, (line) => lines.push(line))
  process.stderr.write(
    `\nSeed ${seed} breaks “${invariant}”. Shrunk in ${tries} tries to:\n${JSON.stringify(plan)}\n`,
  )
  process.stderr.write(`${lines.slice(0, 200).join('\n')}\nAgain: npm run simulate -- --seed ${seed}\n`)
}

async function replay(seed: number): Promise<number> {
  const plan = planOf(seed)
  console.log(JSON.stringify(plan, null, 2))
  const { violations, ...outcome } = await simulate(plan, undefined, (line) => console.log(line))
  console.log({ ...outcome, violations })
  const [first] = violations
  if (first) await showShrunk(seed, first.invariant)
  return violations.length > 0 ? 1 : 0
}
