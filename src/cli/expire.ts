/**
 * `pgonce expire`: applies the retention of the key ledger until there is nothing left to do.
 */
import type { Command } from 'commander'
import { type Database, withLink } from '../connection/database.ts'
import { fromSql, InvalidInputError, withHint } from '../errors.ts'
import { chooseDatabases, type DatabaseFlags, withDatabases, withEach } from './databases.ts'
import { count, paint, print, printJson, progress, table } from './output.ts'

interface ExpireFlags extends DatabaseFlags {
  readonly retention?: readonly string[]
  readonly json?: boolean
}

/** What was done, added up over all steps. */
interface Done {
  readonly action: string
  readonly scope: string | null
  readonly detail: string
  count: number
}

interface Expired {
  readonly database: string
  /** How often once.expire() was called. */
  steps: number
  readonly actions: readonly Done[]
  /** Why the last step left something to a later call. */
  waits: string | null
  error: string | null
}

/** Adds the command to the program. */
export function expireCommand(program: Command): void {
  withDatabases(program.command('expire'))
    .description('apply the retention of the key ledger: expire and delete what is past it')
    .option(
      '--retention <scope=interval>',
      "first set how long a scope remembers its keys, as in stripe='30 days' or stripe=forever; may be repeated",
      (value: string, before: readonly string[] = []) => [...before, value],
    )
    .option('--json', 'print one JSON object')
    .action(runExpire)
}

/** Runs the command, on each database in turn. One that fails does not keep the others from it. */
async function runExpire(urls: readonly string[], flags: ExpireFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const retentions = (flags.retention ?? []).map(parseRetention)
  const expired = await withEach(chosen, connectTimeout, async (databases) => {
    const results: Expired[] = []
    for (const database of databases) results.push(await expireOne(database, retentions))
    return results
  })
  if (expired.some(({ error }) => error !== null)) process.exitCode = 1
  if (flags.json) return printJson({ databases: expired })

  const rows = expired.flatMap(({ database, actions }) =>
    actions.map(({ action, scope, detail, count: n }) => ({
      cells: [database, action, scope ?? '', n > 0 ? String(n) : '', detail],
    })),
  )
  if (rows.length > 0) print(`${table(['database', 'action', 'scope', 'count', 'detail'], rows)}\n`)
  for (const { database, steps, actions, waits, error } of expired) {
    const total = (action: string) =>
      actions
        .filter((one) => one.action === action && one.detail !== ofRecords)
        .reduce((sum, one) => sum + one.count, 0)
    if (error !== null) print(paint(`${database}: ${error}`, 'red'))
    else {
      print(
        `${database}: ${count(total('delete'), 'key')} deleted, in ${count(steps, 'step')}` +
          `${waits === null ? '' : `; run it again later: ${waits}`}`,
      )
    }
  }
}

const connectTimeout = 5_000

/** What is deleted besides keys. @see sql/ledger/expire.sql */
const ofRecords = 'records of expired claims'

interface StepRow {
  readonly action: string
  readonly scope: string | null
  readonly detail: string
  readonly count: string
  readonly more: boolean
}

/** @see sql/ledger/expire.sql, sql/ledger/set_retention.sql */
async function expireOne(database: Database, retentions: readonly Retention[]): Promise<Expired> {
  const done = new Map<string, Done>()
  const expired = {
    database: database.name,
    steps: 0,
    actions: [] as Done[],
    waits: null as string | null,
    error: null as string | null,
  }
  const shown = progress()
  try {
    await database.identify()
    await withLink(database.connect(), async (session) => {
      for (const { scope, interval } of retentions) {
        await session.query('select once.set_retention($1, $2::text::interval)', [scope, interval])
      }
      for (let more = true; more; ) {
        const { rows } = await session.query<StepRow>(
          'select s.action, s.scope, s.detail, s.count::text as count, s.more from once.expire() s',
        )
        expired.steps += 1
        more = rows.some((row) => row.more)
        expired.waits = rows.find(({ action }) => action === 'wait' || action === 'busy')?.detail ?? null
        // Rows that count nothing and ask for more only say how far the step has come.
        for (const row of rows) if (!row.more || Number(row.count) > 0) add(done, row)
        const total = [...done.values()].reduce((sum, one) => sum + one.count, 0)
        if (more) shown.say(`${database.name}: step ${expired.steps}, ${total} done`)
      }
    })
  } catch (error) {
    expired.error = withHint(fromSql(error))
  } finally {
    shown.end()
  }
  expired.actions = [...done.values()].filter(({ action }) => action !== 'busy' && action !== 'wait')
  return expired
}

function add(done: Map<string, Done>, { action, scope, detail, count: n }: StepRow): void {
  // A horizon moves on with each step: the last one tells.
  const key = action === 'horizon' ? `${action} ${scope}` : `${action} ${scope} ${detail}`
  const before = done.get(key)
  done.set(key, { action, scope, detail, count: Number(n) + (before?.count ?? 0) })
}

interface Retention {
  readonly scope: string
  /** Null: for ever. */
  readonly interval: string | null
}

function parseRetention(text: string): Retention {
  // A scope may contain "=", an interval cannot.
  const at = text.lastIndexOf('=')
  const [scope, interval] = [text.slice(0, at), text.slice(at + 1).trim()]
  if (at < 1 || interval === '') {
    throw new InvalidInputError('ONARG', 'Expected --retention to have the form scope=interval', {
      hint: "For example: --retention stripe='30 days', or stripe=forever",
    })
  }
  return { scope, interval: interval === 'forever' ? null : interval }
}
