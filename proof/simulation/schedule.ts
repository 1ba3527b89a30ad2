/**
 * One schedule: builds the world that a plan describes, runs the real coordinator and the real recovery in it, lets
 * faults strike, and then lets everything come to rest and looks.
 */
import { endOf, startCall } from './calls.ts'
import { strike } from './faults.ts'
import type { Call, Violation } from './oracle.ts'
import type { Plan } from './plan.ts'
import { within } from './ports.ts'
import { isRecovering, recoverInsideOnce, recoverOnce, startRunning } from './recoverers.ts'
import { heal, recoverAll, rest } from './rest.ts'
import { addProcess, createWorld, type Struck, type World } from './world.ts'

export interface Outcome {
  readonly violations: readonly Violation[]
  /** A number that differs if any event did. */
  readonly hash: number
  readonly events: number
  /** Milliseconds of the simulated world. */
  readonly time: number
  /** The faults that have struck, in order. */
  readonly struck: readonly Struck[]
  /** How many calls ended how. */
  readonly ends: Readonly<Record<string, number>>
}

/** @param trace gets every event as a line */
export function runPlan(plan: Plan, reached?: Uint32Array, trace?: (line: string) => void): Outcome {
  // To find out where an error was made takes longer than most events; who looks at one schedule gets to know.
  const limit = Error.stackTraceLimit
  if (trace === undefined) Error.stackTraceLimit = 0
  try {
    const world = createWorld(plan, reached, trace, strike)
    const ends = within(world, () => runWorld(world))
    if (world.broken !== undefined) throw world.broken
    return {
      violations: world.oracle.violations,
      hash: world.hash,
      events: world.scheduler.events,
      time: world.scheduler.now,
      struck: world.struck,
      ends,
    }
  } finally {
    Error.stackTraceLimit = limit
  }
}

/** No call may take longer than this for each millisecond of its timeout, and this besides. */
const longestFactor = 3
const longestBesides = 120_000

function runWorld(here: World): Record<string, number> {
  const { plan, scheduler: clock, oracle } = here
  plan.transactions.forEach((transaction, number) => {
    const process = here.processes[transaction.process]
    if (process) startCall(here, process, transaction, number)
  })
  plan.processes.forEach(({ recovers }, number) => {
    const process = here.processes[number]
    if (recovers && process) clock.after(0, process, () => startRunning(here, process))
  })
  plan.recoverers.forEach((recoverer) => {
    if (recoverer.inside) {
      for (let turn = 0; turn < recoverer.runs; turn += 1)
        clock.after(recoverer.at + turn * recoverer.every, undefined, () =>
          recoverInsideOnce(here, recoverer),
        )
      return
    }
    const drivers = here.databases.map(() => recoverer.driver)
    const process = addProcess(here, `recoverer ${here.processes.length + 1}`, recoverer.login, drivers, 2)
    for (let turn = 0; turn < recoverer.runs; turn += 1)
      clock.after(recoverer.at + turn * recoverer.every, process, () => recoverOnce(here, process, recoverer))
  })

  const isSettled = ({ settledAt, plan: { process } }: Call) =>
    settledAt !== undefined || here.processes[process]?.alive === false
  // Recovery is to be at work while faults still strike: the last run has begun, and is waited for like a call.
  const lastRun = 1 + Math.max(0, ...plan.recoverers.map(({ at, every, runs }) => at + (runs - 1) * every))
  clock.after(lastRun, undefined, () => {})
  const isQuiet = () =>
    oracle.calls.length === plan.transactions.length &&
    clock.now >= lastRun &&
    oracle.calls.every(isSettled) &&
    !isRecovering(here)
  clock.runUntil(isQuiet, 7_200_000)
  heal(here)
  if (!clock.runUntil(() => oracle.calls.every(isSettled), clock.now + 7_200_000))
    oracle.violate(
      'every call settles',
      `after ${clock.now} ms there is no end of call ${oracle.calls.find((call) => !isSettled(call))?.number}`,
    )
  for (const call of oracle.calls) {
    if (call.settledAt === undefined) continue
    const pauses = plan.faults.reduce((sum, { action, time }) => (action === 'pause' ? sum + time : sum), 0)
    const took = call.settledAt - call.startedAt
    if (took > longestFactor * call.plan.options.timeout + longestBesides + pauses)
      oracle.violate(
        'every call settles in time',
        `call ${call.number} took ${took} ms, its timeout is ${call.plan.options.timeout}`,
      )
  }
  rest(here)
  recoverAll(here)
  const ends: Record<string, number> = {}
  for (const call of oracle.calls) {
    const end = endOf(call)
    ends[end] = (ends[end] ?? 0) + 1
  }
  return ends
}
