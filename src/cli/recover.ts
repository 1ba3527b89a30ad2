/** `pgonce recover`: finishes what is in doubt, once or for as long as it runs. */
import { subscribe } from 'node:diagnostics_channel'
import { pgonce } from '../client.ts'
import type { StepEvent } from '../commit/channels.ts'
import type { Recovery } from '../recovery/recovery.ts'
import type { Loss, RecoveryReport } from '../recovery/report.ts'
import { chooseDatabases, type DatabaseFlags } from './databases.ts'
import { count, paint, print, printJson } from './output.ts'
import { aborted, interruption } from './signals.ts'

interface RecoverFlags extends DatabaseFlags {
  readonly watch?: boolean
  readonly keep: number
}

/**
 * Runs the command. Once: exits with 1 if a branch could not be finished, a database did not answer, or a loss
 * was found. A branch whose home's transaction still runs is no fault.
 */
export async function runRecover(urls: readonly string[], flags: RecoverFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const databases = Object.fromEntries(chosen.map(({ name, url }) => [name, url]))
  const { recovery } = pgonce<Record<string, object>>({ databases, maxConnections: 2, connectTimeout: 5_000 })
  if (!flags.json) sayFinished(flags.watch ? log : print)
  await (flags.watch ? watch : recoverOnce)(recovery, Object.keys(databases).join(', '), flags)
}

async function recoverOnce(recovery: Recovery, names: string, flags: RecoverFlags): Promise<void> {
  const report = await recovery.run({ keep: flags.keep, audit: true })
  const { committed, rolledBack, pending, unfinished, unreachable, proven, purged, losses } = report
  if (unfinished.length + unreachable.length + losses.length > 0) process.exitCode = 1
  if (flags.json) return printJson(report)
  for (const [said] of troubles(report).values()) print(paint(said, 'red'))
  for (const loss of losses) print(paint(sayLoss(loss), 'red'))
  if (pending > 0) {
    const branches = count(pending, 'branch', 'branches')
    print(`${branches} pending: the home's transaction still runs. Run again, or with --watch.`)
  }
  const parts = [`${committed} committed`, `${rolledBack} rolled back`, `${unfinished.length} unfinished`]
  if (proven > 0) parts.push(`${proven} proven`)
  if (purged > 0) parts.push(`${purged} purged`)
  print(`${parts.join(', ')}, ${count(losses.length, 'new loss', 'new losses')} in ${names}.`)
}

async function watch(recovery: Recovery, names: string, flags: RecoverFlags): Promise<void> {
  const stop = interruption()
  const say = flags.json ? () => {} : log
  say(`watching ${names}; Ctrl-C ends`)
  // A trouble is said when it comes and when it goes, not at each of the four looks a second.
  let before: Troubles = new Map()
  let [committed, rolledBack] = [0, 0]
  const running = recovery.start({
    keep: flags.keep,
    onReport(report) {
      committed += report.committed
      rolledBack += report.rolledBack
      const now = troubles(report)
      const come = [...now].filter(([key]) => !before.has(key))
      const gone = [...before].filter(([key]) => !now.has(key))
      before = now
      for (const [, [said]] of come) say(paint(said, 'red'))
      for (const [, [, over]] of gone) say(paint(over, 'green'))
      for (const loss of report.losses) say(paint(sayLoss(loss), 'red'))
      const news = come.length + gone.length + report.committed + report.rolledBack + report.losses.length
      if (flags.json && news > 0) printJson({ at: new Date().toISOString(), ...report })
    },
  })
  await aborted(stop)
  await running.stop()
  say(`stopped; ${committed} committed, ${rolledBack} rolled back`)
}

function log(text: string): void {
  print(`${paint(new Date().toISOString(), 'dim')}  ${text}`)
}

/** Says each branch as it is finished: the report has only their number. */
function sayFinished(say: (text: string) => void): void {
  subscribe('tracing:pgonce:recover:asyncEnd', (message) => {
    const { database, transactionId, outcome, result } = message as StepEvent & { result?: unknown }
    // False: somebody else was faster, perhaps its own coordinator.
    if (result !== true) return
    const what = outcome === 'committed' ? paint('committed', 'green') : paint('rolled back', 'yellow')
    say(`${database}: ${what} the branch of transaction ${transactionId}`)
  })
}

/** What is said when each begins, and when it is over. The key stays, whatever reason each look finds. */
type Troubles = Map<string, readonly [said: string, over: string]>

function troubles({ unfinished, unreachable }: RecoveryReport): Troubles {
  const found: Troubles = new Map()
  for (const { database, reason } of unreachable)
    found.set(database, [`${database} is passed over: ${reason}`, `${database} answers again`])
  for (const { database, gid, reason } of unfinished) {
    const over = `${database}: nothing keeps ${gid} from being finished any more`
    found.set(`${database} ${gid}`, [`${database}: cannot finish ${gid}: ${reason}`, over])
  }
  return found
}

function sayLoss({ kind, transactionId, participant, home }: Loss): string {
  const what =
    kind === 'lost branch'
      ? `the home ${home} committed, participant ${participant} did not`
      : `participant ${participant} committed, the home ${home} has no decision`
  return `LOSS (${kind}) of transaction ${transactionId}: ${what}. Recorded in once.loss; repair it by hand.`
}
