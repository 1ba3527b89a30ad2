/** Many schedules, one after the other, and what they had in common. */
import { stackOf, type Violation } from './oracle.ts'
import { type Plan, planOf } from './plan.ts'
import { points } from './points.ts'
import { type Outcome, runPlan } from './schedule.ts'

interface Failure {
  readonly seed: number
  readonly violations: readonly Violation[]
}

export interface Totals {
  schedules: number
  events: number
  /** Milliseconds of simulated time. */
  time: number
  failures: Failure[]
  /** Schedules with a violation, those that are not listed, too. */
  failed: number
  /** How many calls ended how. */
  readonly ends: Record<string, number>
  /** Faults that have struck. */
  readonly faults: Record<string, number>
  /** How often each point was passed, and how often it killed the process, the server, the connection there. */
  readonly passed: number[]
  readonly killed: number[]
  readonly crashed: number[]
  readonly cut: number[]
}

export function noTotals(): Totals {
  const zeros = () => points.map(() => 0)
  return {
    schedules: 0,
    events: 0,
    time: 0,
    failures: [],
    failed: 0,
    ends: {},
    faults: {},
    passed: zeros(),
    killed: zeros(),
    crashed: zeros(),
    cut: zeros(),
  }
}

const mostListed = 20

export function add(totals: Totals, seed: number, outcome: Outcome): void {
  totals.schedules += 1
  totals.events += outcome.events
  totals.time += outcome.time
  if (outcome.violations.length > 0) {
    totals.failed += 1
    if (totals.failures.length < mostListed) totals.failures.push({ seed, violations: outcome.violations })
  }
  for (const [end, count] of Object.entries(outcome.ends)) totals.ends[end] = (totals.ends[end] ?? 0) + count
  for (const { action, point } of outcome.struck) {
    totals.faults[action] = (totals.faults[action] ?? 0) + 1
    const by = { kill: totals.killed, crash: totals.crashed, cut: totals.cut }[action as string]
    if (by) by[point] = (by[point] as number) + 1
  }
}

export function join(totals: Totals, others: Totals): void {
  totals.schedules += others.schedules
  totals.events += others.events
  totals.time += others.time
  totals.failed += others.failed
  totals.failures.push(...others.failures)
  for (const what of ['ends', 'faults'] as const)
    for (const [name, count] of Object.entries(others[what]))
      totals[what][name] = (totals[what][name] ?? 0) + count
  for (const what of ['passed', 'killed', 'crashed', 'cut'] as const)
    others[what].forEach((count, point) => {
      totals[what][point] = (totals[what][point] as number) + count
    })
}

/** Errors that nobody handled: outside a simulation they end the process. */
const unhandled: unknown[] = []
let isSimulating = false
process.on('unhandledRejection', (error) => {
  // What is wrong with the simulation itself must end it.
  if (!isSimulating) throw error
  unhandled.push(error)
})

/**
 * Runs seeds in turn. Between two schedules Node's event loop turns, so that a rejection which nobody handles is
 * told, and laid to the schedule that it belongs to.
 *
 * @param report gets the totals every now and then; false ends the run
 */
export async function runSeeds(
  from: number,
  count: number,
  report: (totals: Totals) => boolean = () => true,
): Promise<Totals> {
  const totals = noTotals()
  const passed = new Uint32Array(points.length)
  for (let seed = from; seed < from + count; seed += 1) {
    const outcome = await simulate(planOf(seed), passed)
    add(totals, seed, outcome)
    if (totals.schedules % 100 === 0 && !report(totals)) break
    if (outcome.violations.length > 0 && !report(totals)) break
  }
  passed.forEach((times, point) => {
    totals.passed[point] = times
  })
  return totals
}

/** One schedule, with the rejections that it left unhandled. */
export async function simulate(
  plan: Plan,
  passed?: Uint32Array,
  trace?: (line: string) => void,
): Promise<Outcome> {
  isSimulating = true
  try {
    const outcome = await inTask(() => runPlan(plan, passed, trace))
    const strays = await inTask(() => unhandled.splice(0))
    const violations = strays.map((error) => ({
      invariant: 'no rejection is left unhandled',
      detail: stackOf(error),
    }))
    return { ...outcome, violations: [...outcome.violations, ...violations] }
  } finally {
    isSimulating = false
  }
}

/** In a task of its own: inside one that a promise has begun the microtasks cannot be emptied. */
function inTask<T>(task: () => T): Promise<T> {
  return new Promise((resolve, reject) => {
    setImmediate(() => {
      try {
        resolve(task())
      } catch (error) {
        reject(error)
      }
    })
  })
}
