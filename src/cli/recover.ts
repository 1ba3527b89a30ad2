/**
 * `pgonce recover`: finishes what is in doubt, once or for as long as it runs.
 */

import { tracingChannel } from 'node:diagnostics_channel'
import type { Command } from 'commander'
import { maxInt32 } from '../check.ts'
import { pgonce } from '../client.ts'
import type { StepEvent } from '../commit/channels.ts'
import type { Recovery } from '../recovery/recovery.ts'
import type { Loss, RecoveryReport } from '../recovery/report.ts'
import { wholeNumber } from './arguments.ts'
import { chooseDatabases, type DatabaseFlags, soon, withDatabases } from './databases.ts'
import { count, paint, print, printJson } from './output.ts'
import { aborted, interruption } from './signals.ts'

interface RecoverFlags extends DatabaseFlags {
  readonly watch?: boolean
  readonly keep?: number
  readonly json?: boolean
}

/** Adds the command to the program. */
export function recoverCommand(program: Command): void {
  withDatabases(program.command('recover'))
    .description('finish the branches in doubt as their homes decided, audit, and purge what is proven')
    .option('--watch', 'go on until Ctrl-C, through outages')
    .option(
      '--keep <ms>',
      'purge decisions that are proven for longer (default: 600000, ten minutes)',
      wholeNumber(0, Number(maxInt32)),
    )
    .option('--json', 'print one JSON object; with --watch one a line, whenever there is something to say')
    .action(runRecover)
}

/**
 * Runs the command. Once: exits with 1 if a branch could not be finished, a database did not answer, or a loss
 * was found. A branch whose home's transaction still runs is no fault.
 */
async function runRecover(urls: readonly string[], flags: RecoverFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const databases = Object.fromEntries(chosen.map(({ name, url }) => [name, url]))
  const once = pgonce<Record<string, object>>({ databases, maxConnections: 2, connectTimeout: 5_000 })
  if (!flags.json) sayFinished(flags.watch ?? false)
  try {
    const names = chosen.map(({ name }) => name)
    if (flags.watch) await watch(once.recovery, names, flags)
    else await recoverOnce(once.recovery, names, flags)
  } finally {
    await soon(once.close())
  }
}

async function recoverOnce(recovery: Recovery, names: readonly string[], flags: RecoverFlags): Promise<void> {
  const report = await recovery.run({ ...keepOf(flags), audit: true })
  if (report.unfinished.length + report.unreachable.length + report.losses.length > 0) process.exitCode = 1
  if (flags.json) return printJson(report)
  for (const { said } of troubles(report)) print(paint(said, 'red'))
  for (const loss of report.losses) print(paint(sayLoss(loss), 'red'))
  if (report.pending > 0) {
    print(
      `${count(report.pending, 'branch', 'branches')} pending: the home's transaction still runs. Run again, or with --watch.`,
    )
  }
  print(`${summary(report)} in ${names.join(', ')}.`)
}

async function watch(recovery: Recovery, names: readonly string[], flags: RecoverFlags): Promise<void> {
  const stop = interruption()
  const log = (text: string) => print(`${paint(new Date().toISOString(), 'dim')}  ${text}`)
  if (!flags.json) log(`watching ${names.join(', ')}; Ctrl-C ends`)
  // A trouble is said when it comes and when it goes, not at each of the four looks a second.
  let before = new Map<string, Trouble>()
  const totals = { committed: 0, rolledBack: 0 }
  await using running = recovery.start({
    ...keepOf(flags),
    onReport(report) {
      totals.committed += report.committed
      totals.rolledBack += report.rolledBack
      const now = new Map(troubles(report).map((trouble) => [trouble.key, trouble]))
      const changed = now.size !== before.size || [...now.keys()].some((key) => !before.has(key))
      if (flags.json) {
        if (changed || report.committed + report.rolledBack + report.losses.length > 0) {
          printJson({ at: new Date().toISOString(), ...report })
        }
      } else {
        for (const [key, { said }] of now) if (!before.has(key)) log(paint(said, 'red'))
        for (const [key, { over }] of before) if (!now.has(key)) log(paint(over, 'green'))
        for (const loss of report.losses) log(paint(sayLoss(loss), 'red'))
      }
      before = now
    },
  })
  await aborted(stop)
  await running.stop()
  if (!flags.json) log(`stopped; ${totals.committed} committed, ${totals.rolledBack} rolled back`)
}

/** Says each branch as it is finished: the report has only their number. */
function sayFinished(withTime: boolean): void {
  tracingChannel<unknown, StepEvent & { result?: unknown }>('pgonce:recover').subscribe({
    asyncEnd({ database, transactionId, outcome, result }) {
      // False: somebody else was faster, perhaps its own coordinator.
      if (result !== true) return
      const what = outcome === 'committed' ? paint('committed', 'green') : paint('rolled back', 'yellow')
      const time = withTime ? `${paint(new Date().toISOString(), 'dim')}  ` : ''
      print(`${time}${database}: ${what} the branch of transaction ${transactionId}`)
    },
    start() {},
    end() {},
    asyncStart() {},
    error() {},
  })
}

interface Trouble {
  /** The same for as long as it lasts, whatever reason each look finds. */
  readonly key: string
  readonly said: string
  readonly over: string
}

function troubles({ unfinished, unreachable }: RecoveryReport): Trouble[] {
  return [
    ...unreachable.map(({ database, reason }) => ({
      key: database,
      said: `${database} is passed over: ${reason}`,
      over: `${database} answers again`,
    })),
    ...unfinished.map(({ database, gid, reason }) => ({
      key: `${database} ${gid}`,
      said: `${database}: cannot finish ${gid}: ${reason}`,
      over: `${database}: nothing keeps ${gid} from being finished any more`,
    })),
  ]
}

function sayLoss({ kind, transactionId, participant, home }: Loss): string {
  const what =
    kind === 'lost branch'
      ? `the home ${home} committed, participant ${participant} did not`
      : `participant ${participant} committed, the home ${home} has no decision`
  return `LOSS (${kind}) of transaction ${transactionId}: ${what}. Recorded in once.loss; repair it by hand.`
}

function summary({ committed, rolledBack, unfinished, proven, purged, losses }: RecoveryReport): string {
  const parts = [`${committed} committed`, `${rolledBack} rolled back`, `${unfinished.length} unfinished`]
  if (proven > 0) parts.push(`${proven} proven`)
  if (purged > 0) parts.push(`${purged} purged`)
  parts.push(`${count(losses.length, 'new loss', 'new losses')}`)
  return parts.join(', ')
}

function keepOf({ keep }: RecoverFlags): { keep?: number } {
  return keep === undefined ? {} : { keep }
}
