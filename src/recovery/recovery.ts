/**
 * Recovery: finishes branches that a coordinator left in doubt, and purges what is proven.
 *
 * It may run at any time, anywhere, any number of times, beside live coordinators and other recoverers: the
 * home decides (`once.branch_outcome`), a branch is finished by whoever comes first, and no clock decides anything. A
 * branch's age only says whether it is worth a look yet.
 *
 * A run finishes (`finishing.ts`), then proves and purges (`purging.ts`). On the way, and in the audit
 * (`audit.ts`), it finds what no protocol can repair, a decision or a branch that was lost with a server's
 * storage; both are recorded in `once.loss`.
 *
 * @see sql/recovery/
 */
import { checkBoolean, checkFunction, checkMilliseconds, checkObject } from '../check.ts'
import { type Database, withLink } from '../connection/database.ts'
import { environment } from '../environment.ts'
import { audit } from './audit.ts'
import { askHomes, finishBranches, listInDoubt } from './finishing.ts'
import { confirm, prove, purge } from './purging.ts'
import { attempt, findHomes, type Loss, patience, type RecoveryReport, type Tally } from './report.ts'

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
  /** Milliseconds between two looks. @defaultValue 250 */
  readonly interval?: number
  /** Called after each run that found anything, and after the first that found nothing any more. */
  readonly onReport?: (report: RecoveryReport) => void
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

const defaults = { settle: 0, keep: 600_000, interval: 250 } as const

/** While running: branches younger than this are left to their coordinators, and purging can wait. */
const runningSettle = 150
const purgeEvery = 2_000
const auditEvery = 60_000

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
  const report: Tally = {
    committed: 0,
    rolledBack: 0,
    pending: 0,
    unfinished: [],
    unreachable: [],
    proven: 0,
    purged: 0,
    losses: [],
  }
  // Whoever was renewed, or is reached under an old address, is known by a wrong database id until it is asked again.
  const homes = await findHomes(databases, report, purges)
  const reachable = [...homes.values()]

  const lists = await Promise.all(
    reachable.map((database) => attempt(report, database, () => listInDoubt(database, settle))),
  )
  const branches = lists.flatMap((list) => list ?? [])
  if (branches.length > 0) {
    const outcomes = await askHomes(branches, homes, report)
    await Promise.all(
      reachable.map((database) => {
        const own = branches.filter((branch) => branch.database === database)
        return own.length === 0 ? undefined : finishBranches(database, own, outcomes, report)
      }),
    )
  }
  if (purges) {
    // Between the two looks, and between the second and what cannot be undone.
    const half = Math.ceil(keep / 2)
    for (const [home, database] of homes) {
      await attempt(report, database, () => prove(home, database, homes, report))
      await attempt(report, database, () => confirm(home, database, homes, half, report))
      await attempt(report, database, () => purge(home, database, homes, half, report))
    }
    await Promise.all(reachable.map(stamp))
  }
  if (audits) merge(report, await audit(databases))
  return report
}

/** Adds what an audit found: each database that was passed over once. */
function merge(report: Tally, { losses, unreachable }: Pick<Tally, 'losses' | 'unreachable'>): void {
  report.losses.push(...losses)
  for (const one of unreachable) {
    if (!report.unreachable.some(({ database }) => database === one.database)) report.unreachable.push(one)
  }
}

/** Notes that somebody looked after this database. That the role may not, or no more, is no fault of recovery. */
async function stamp(database: Database): Promise<void> {
  await withLink(
    database.connectApart(patience),
    (session) => session.query("select once.stamp_recovery('pgonce')"),
    patience,
  ).catch(() => {})
}
// ---------------------------------------------------------------------------------------------------
// Running

export function startRecovery(databases: readonly Database[], options: StartOptions = {}): RunningRecovery {
  checkObject('options', options)
  if (options.onReport !== undefined) checkFunction('onReport', options.onReport)
  const interval = checkMilliseconds('interval', options.interval ?? defaults.interval)
  const keep = checkMilliseconds('keep', options.keep ?? defaults.keep)
  let stopped = false
  let wake = new AbortController()
  let purged = 0
  let audited = environment.now()
  let hadNews = false

  const loop = (async () => {
    while (!stopped) {
      const now = environment.now()
      const purgeNow = now - purged >= purgeEvery
      if (purgeNow) purged = now
      const auditNow = now - audited >= auditEvery
      if (auditNow) audited = now
      const report = await runRecovery(databases, {
        settle: runningSettle,
        keep,
        purge: purgeNow,
        audit: auditNow,
      })
      const news = isNews(report)
      try {
        if (news || hadNews) options.onReport?.(report)
      } catch (error) {
        // What the listener does wrong must not leave branches in doubt.
        process.emitWarning(error as Error)
      }
      hadNews = news
      if (stopped) break
      await environment.sleep(interval, wake.signal).catch(() => {})
      if (wake.signal.aborted) wake = new AbortController()
    }
  })()
  const stop = async () => {
    stopped = true
    wake.abort()
    await loop
  }
  return { poke: () => wake.abort(), stop, [Symbol.asyncDispose]: stop }
}

function isNews({ committed, rolledBack, unfinished, unreachable, losses }: RecoveryReport): boolean {
  return committed + rolledBack + unfinished.length + unreachable.length + losses.length > 0
}
