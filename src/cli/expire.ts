/**
 * `pgonce expire`: applies the retention of the key ledger until there is nothing left to do.
 */
import type { Command } from 'commander'
import { type Database, withSession } from '../connection/database.ts'
import { fromSql, InvalidInputError, withHint } from '../errors.ts'
import { several } from './arguments.ts'
import { chooseDatabases, type DatabaseFlags, withDatabases, withEach } from './databases.ts'
import { count, paint, print, printJson, progress, table } from './output.ts'

interface ExpireFlags extends DatabaseFlags {
  readonly retention?: readonly string[]
  readonly json?: boolean
}

/** A row of `once.expire()`. */
interface Action {
  readonly action: string
  readonly scope: string | null
  readonly detail: string
  readonly count: number
}

interface Expired {
  readonly database: string
  /** How often once.expire() was called. */
  readonly steps: number
  /** What was done, added up over all steps. */
  readonly actions: readonly Action[]
  /** Partitions were in use at the last step; the next call takes them. */
  readonly busy: boolean
  readonly error: string | null
}

/** Adds the command to the program. */
export function expireCommand(program: Command): void {
  withDatabases(program.command('expire'))
    .description('apply the retention of the key ledger: expire, drop and delete what is past it')
    .option(
      '--retention <scope=interval>',
      "first set how long a scope remembers its keys, as in stripe='30 days' or stripe=forever; may be repeated",
      several,
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
  for (const { database, steps, actions, busy, error } of expired) {
    const total = (action: string) =>
      actions.filter((one) => one.action === action).reduce((sum, one) => sum + one.count, 0)
    if (error !== null) print(paint(`${database}: ${error}`, 'red'))
    else {
      print(
        `${database}: ${count(total('delete'), 'key')} deleted, ${count(total('drop'), 'partition')} dropped, ` +
          `${total('create')} created, in ${count(steps, 'step')}${busy ? '; some partitions were in use: run it again later' : ''}`,
      )
    }
  }
}

const connectTimeout = 5_000

/** @see sql/ledger/expire.sql, sql/ledger/set_retention.sql */
async function expireOne(database: Database, retentions: readonly Retention[]): Promise<Expired> {
  const done = new Map<string, Action>()
  const shown = progress()
  let [steps, busy, error] = [0, false, null as string | null]
  try {
    await database.identify()
    await withSession(database.connect(), async (session) => {
      for (const { scope, interval } of retentions)
        await session.query('select once.set_retention($1, $2::text::interval)', [scope, interval])
      for (let more = true; more; ) {
        const { rows } = await session.query<Action & { readonly more: boolean }>(
          'select s.action, s.scope, s.detail, s.count::float8 as count, s.more from once.expire() s',
        )
        steps += 1
        more = rows.some((row) => row.more)
        busy = rows.some(({ action }) => action === 'busy')
        // Rows that count nothing and ask for more only say how far the step has come.
        for (const row of rows) if (!row.more || row.count > 0) add(done, row)
        const total = [...done.values()].reduce((sum, one) => sum + one.count, 0)
        if (more) shown.say(`${database.name}: step ${steps}, ${total} done`)
      }
    })
  } catch (raw) {
    error = withHint(fromSql(raw))
  } finally {
    shown.end()
  }
  const actions = [...done.values()].filter(({ action }) => action !== 'busy')
  return { database: database.name, steps, actions, busy, error }
}

function add(done: Map<string, Action>, { action, scope, detail, count: n }: Action): void {
  // A horizon moves on with each step: the last one tells.
  const key = action === 'horizon' ? `${action} ${scope}` : `${action} ${scope} ${detail}`
  done.set(key, { action, scope, detail, count: n + (done.get(key)?.count ?? 0) })
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
