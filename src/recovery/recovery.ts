/**
 * Recovery: finishes branches that a coordinator left in doubt, then proves and purges decisions. On the way, and in
 * the audit, it finds what no protocol can repair, a decision or a branch that was lost with a server's storage; both
 * are recorded in `once.loss`.
 *
 * It may run at any time, anywhere, any number of times, beside live coordinators and other recoverers: all is decided
 * in SQL, and no clock decides anything. A branch's age only says whether it is worth a look yet. Here is when to look;
 * `courier.ts` carries.
 *
 * @see sql/recovery/
 */
import { inspect } from 'node:util'
import type { Database } from '../connection/database.ts'
import { environment } from '../environment.ts'
import { complete, type RunOptions, runOptions, type StartOptions, startOptions } from '../options.ts'
import { look, type Place, placesOf, requestOf, type Step, takeReport } from './courier.ts'
import { type Loss, merged, type RecoveryReport } from './report.ts'

/** A recovery that runs until it is stopped. */
export interface RunningRecovery extends AsyncDisposable {
  /** Looks at once instead of after the interval. */
  poke(): void
  /** Stops after the run at hand. */
  stop(): Promise<void>
}

export interface Recovery {
  /** Looks once, at everything. Never throws for what it finds; the report says it. */
  run(options?: RunOptions): Promise<RecoveryReport>
  /** Looks again and again, through outages, until stopped or the client is closed. */
  start(options?: StartOptions): RunningRecovery
  /** Compares evidence and decisions; new losses are recorded and returned. What does not answer is passed over. */
  audit(): Promise<readonly Loss[]>
}

const purging = ['prove', 'confirm', 'purge'] as const
const auditing = ['audit', 'judge'] as const

/** Milliseconds while running: younger branches are left to their coordinators, and purging can wait. */
const runningSettle = 150
const purgeEvery = 2_000
const auditEvery = 60_000
/** So long a look waits for those who have been asked. */
const grace = 1_000

export async function runRecovery(
  databases: readonly Database[],
  options: RunOptions = {},
): Promise<RecoveryReport> {
  const { purge, audit, settle, keep } = complete(runOptions, options)
  const steps = ['finish', ...(purge ? purging : []), ...(audit ? auditing : [])] as const
  return await runSteps(databases, steps, settle, keep)
}

export async function audit(databases: readonly Database[]): Promise<RecoveryReport> {
  return await runSteps(databases, auditing, 0, 0)
}

/** One step after the other, each in all databases at once: what one has done, the next finds. */
async function runSteps(
  databases: readonly Database[],
  steps: readonly Step[],
  settle: number,
  keep: number,
): Promise<RecoveryReport> {
  const places = placesOf(databases)
  for (const step of steps) {
    const runStep = async (place: Place) => {
      const requests = [requestOf([step], settle, keep)]
      for (const request of requests) if (!place.isSilent) requests.push(...(await look(place, request)).next)
    }
    await Promise.all(places.map(runStep))
  }
  return places.map(takeReport).reduce(merged)
}

// ---------------------------------------------------------------------------------------------------
// Running

export function startRecovery(databases: readonly Database[], options: StartOptions = {}): RunningRecovery {
  const { onReport = () => {}, interval, keep } = complete(startOptions, options)
  const say = reporter(onReport)
  // Each database for itself: one that is silent holds up no other.
  const loops = placesOf(databases).map((place) => startLoop(place, interval, keep, say))
  const stop = async () => void (await Promise.all(loops.map((loop) => loop.stop())))
  return {
    poke() {
      for (const loop of loops) loop.poke()
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

function startLoop(
  place: Place,
  interval: number,
  keep: number,
  say: (place: Place, report: RecoveryReport) => void,
): { poke(): void; stop(): Promise<void> } {
  let stopped = false
  let wake = new AbortController()
  const duties = [
    { steps: purging, every: purgeEvery, last: Number.NEGATIVE_INFINITY },
    { steps: auditing, every: auditEvery, last: environment.now() },
  ]
  /** Requests for what is left of long lists, a page a look, so that branches in doubt need not wait for all. */
  const rest: string[] = []

  /** Returns the milliseconds until the next look. */
  const lookOnce = async (): Promise<number> => {
    const now = environment.now()
    const steps: Step[] = ['finish']
    for (const duty of duties) {
      if (rest.length > 0 || now - duty.last < duty.every) continue
      duty.last = now
      steps.push(...duty.steps)
    }
    let isSoon = false
    for (const request of [requestOf(steps, runningSettle, keep), ...rest.splice(0, 1)]) {
      const { next, again } = await look(place, request, grace)
      rest.push(...next)
      isSoon ||= again
    }
    const report = takeReport(place)
    say(place, report)
    if (rest.length > 0) return 0
    return isSoon || report.pending > 0 ? interval / 4 : interval
  }
  const loop = (async () => {
    while (!stopped) {
      const pause = await lookOnce()
      if (!stopped) await environment.sleep(pause, wake.signal).catch(() => {})
      if (wake.signal.aborted) wake = new AbortController()
    }
    await Promise.all(place.settling.values())
  })()
  return {
    poke: () => wake.abort(),
    stop() {
      stopped = true
      wake.abort()
      return loop
    },
  }
}

/** Tells a listener what is new, and once that there is nothing any more. */
function reporter(
  onReport: (report: RecoveryReport) => unknown,
): (place: Place, report: RecoveryReport) => void {
  const last = new Map<Place, RecoveryReport>()
  let hadNews = false
  return (place, report) => {
    last.set(place, report)
    const { unfinished, unreachable } = [...last.values()].reduce(merged)
    const { committed, rolledBack, losses } = report
    const news = committed + rolledBack + losses.length + unfinished.length + unreachable.length > 0
    // What the listener does wrong must neither leave branches in doubt nor end the process.
    if (news || hadNews)
      new Promise((resolve) => resolve(onReport({ ...report, unfinished, unreachable }))).catch(warn)
    hadNews = news
  }
}

/** As text, made with care: what was thrown may throw again where it is looked at. */
function warn(error: unknown): void {
  let what: string
  try {
    what = inspect(error)
  } catch {
    what = 'an error that cannot be shown'
  }
  process.emitWarning(`The onReport of a recovery failed: ${what}`)
}
