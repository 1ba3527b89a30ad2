/**
 * Recovery: finishes branches that a coordinator left in doubt, and purges what is proven.
 *
 * It may run at any time, anywhere, any number of times, beside live coordinators and other recoverers: the
 * home decides (`once.branch_outcome`), a branch is finished by whoever comes first, and no clock decides anything. A
 * branch's age only says whether it is worth a look yet.
 *
 * A run finishes, then proves and purges. On the way, and in the audit, it finds what no protocol can repair, a
 * decision or a branch that was lost with a server's storage; both are recorded in `once.loss`. All of that is decided
 * in SQL; here is when to look, and `courier.ts` carries.
 *
 * @see sql/recovery/
 */
import { inspect } from 'node:util'
import { checkBoolean, checkFunction, checkMilliseconds, checkObject } from '../check.ts'
import type { Database } from '../connection/database.ts'
import { environment } from '../environment.ts'
import { type Courier, courierAmong, requestOf, type Step } from './courier.ts'
import { type Loss, merged, newTally, type RecoveryReport, type Tally } from './report.ts'

export interface RunOptions {
  /** Leave branches alone that are younger (milliseconds): their coordinator is probably at them. @defaultValue 0 */
  readonly settle?: number
  /** Purge what is proven for longer (milliseconds). @defaultValue 600000, ten minutes */
  readonly keep?: number
  /** Prove and purge, too. @defaultValue true */
  readonly purge?: boolean
  /** Compare all evidence with the decisions at its homes, as {@link Recovery.audit} does. @defaultValue false */
  readonly audit?: boolean
}

export interface StartOptions extends Pick<RunOptions, 'keep'> {
  /**
   * Milliseconds between two looks at a database; a quarter of it while branches are young or pending there.
   * @defaultValue 1000
   */
  readonly interval?: number
  /**
   * Called after each look at a database that found anything, and after the first that found nothing any more. Counts
   * and losses are of this look; what is unfinished and who is unreachable, of the last look at every database.
   */
  readonly onReport?: (report: RecoveryReport) => unknown
}

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
  /**
   * Compares all evidence with the decisions at its homes; new losses are recorded and returned. What does not
   * answer is passed over; a run with `audit` tells which.
   */
  audit(): Promise<readonly Loss[]>
}

const defaults = { settle: 0, keep: 600_000, interval: 1_000 } as const

/** While running: branches younger than this are left to their coordinators, and purging can wait. */
const runningSettle = 150
const purgeEvery = 2_000
const auditEvery = 60_000
/** So long a look waits for those who have been asked. */
const grace = 1_000

/** Looks once: finishes what is in doubt, then proves and purges. What does not answer is reported and passed over. */
export async function runRecovery(
  databases: readonly Database[],
  options: RunOptions = {},
): Promise<RecoveryReport> {
  checkObject('options', options)
  const settle = checkMilliseconds('settle', options.settle ?? defaults.settle)
  const keep = checkMilliseconds('keep', options.keep ?? defaults.keep)
  const purges = checkBoolean('purge', options.purge, true)
  const audits = checkBoolean('audit', options.audit, false)
  const steps: Step[] = ['finish']
  if (purges) steps.push('prove', 'confirm', 'purge')
  if (audits) steps.push('audit', 'judge')
  return await runSteps(databases, steps, { settle, keep })
}

/** Compares all evidence with the decisions at its homes, and decisions with what was forced by hand. */
export async function audit(databases: readonly Database[]): Promise<RecoveryReport> {
  return await runSteps(databases, ['audit', 'judge'], defaults)
}

/** One step after the other, each in all databases at once: what one has done, the next finds. */
async function runSteps(
  databases: readonly Database[],
  steps: readonly Step[],
  times: { readonly settle: number; readonly keep: number },
): Promise<RecoveryReport> {
  let report = newTally()
  const courier = courierAmong(databases)
  for (const step of steps) {
    await Promise.all(
      databases.map(async (database) => {
        const requests = [requestOf([step], times)]
        for (let request = requests.shift(); request !== undefined; request = requests.shift()) {
          if (courier.isSilent(database)) return
          const look = await courier.look(database, request)
          report = merged(report, look.report)
          requests.push(...look.next)
        }
      }),
    )
  }
  return report
}

// ---------------------------------------------------------------------------------------------------
// Running

export function startRecovery(databases: readonly Database[], options: StartOptions = {}): RunningRecovery {
  checkObject('options', options)
  if (options.onReport !== undefined) checkFunction('onReport', options.onReport)
  const { onReport = () => {} } = options
  const interval = checkMilliseconds('interval', options.interval ?? defaults.interval)
  const keep = checkMilliseconds('keep', options.keep ?? defaults.keep)
  const courier = courierAmong(databases)
  const say = reporter(onReport)
  // Each database for itself: one that is silent holds up no other.
  const loops = databases.map((database) => startLoop(courier, database, { interval, keep }, say))
  const stop = async () => {
    await Promise.all(loops.map((loop) => loop.stop()))
    await courier.settled()
  }
  return {
    poke: () => {
      for (const { poke } of loops) poke()
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

function startLoop(
  courier: Courier,
  database: Database,
  { interval, keep }: { readonly interval: number; readonly keep: number },
  say: (database: Database, report: Tally) => void,
): { poke(): void; stop(): Promise<void> } {
  const times = { settle: runningSettle, keep }
  let stopped = false
  let wake = new AbortController()
  let purged = Number.NEGATIVE_INFINITY
  let audited = environment.now()
  /** Requests for what is left of long lists, a page a look, so that branches in doubt need not wait for all. */
  const rest: string[] = []

  const lookOnce = async (): Promise<{ soon: boolean }> => {
    const now = environment.now()
    const steps: Step[] = ['finish']
    if (rest.length === 0 && now - purged >= purgeEvery) {
      purged = now
      steps.push('prove', 'confirm', 'purge')
    }
    if (rest.length === 0 && now - audited >= auditEvery) {
      audited = now
      steps.push('audit', 'judge')
    }
    const more = rest.shift()
    const first = await courier.look(database, requestOf(steps, times), grace)
    rest.push(...first.next)
    let { report } = first
    if (more !== undefined) {
      const second = await courier.look(database, more, grace)
      rest.push(...second.next)
      report = merged(report, second.report)
    }
    say(database, report)
    return { soon: first.again || report.pending > 0 }
  }
  const loop = (async () => {
    while (!stopped) {
      const { soon } = await lookOnce()
      if (stopped) break
      const pause = rest.length > 0 ? 0 : soon ? interval / 4 : interval
      await environment.sleep(pause, wake.signal).catch(() => {})
      if (wake.signal.aborted) wake = new AbortController()
    }
  })()
  return {
    poke: () => wake.abort(),
    async stop() {
      stopped = true
      wake.abort()
      await loop
    },
  }
}

/** Tells a listener what is new, and once that there is nothing any more. */
function reporter(
  onReport: (report: RecoveryReport) => unknown,
): (database: Database, report: Tally) => void {
  const last = new Map<Database, Tally>()
  let hadNews = false
  return (database, report) => {
    last.set(database, report)
    const { unfinished, unreachable } = [...last.values()].reduce(merged)
    const told = { ...report, unfinished, unreachable }
    const news = isNews(told)
    // What the listener does wrong must neither leave branches in doubt nor end the process.
    if (news || hadNews) new Promise((resolve) => resolve(onReport(told))).catch(warn)
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

function isNews({ committed, rolledBack, unfinished, unreachable, losses }: RecoveryReport): boolean {
  return committed + rolledBack + unfinished.length + unreachable.length + losses.length > 0
}
