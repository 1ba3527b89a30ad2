/** `pgonce expire`: applies the retention of the key ledger until there is nothing left to do. */
import { InvalidArgumentError } from 'commander'
import { type Database, withLink } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { chooseDatabases, type DatabaseFlags, openOne, tryAsking } from './databases.ts'
import { count, paint, print, printJson, progress, table } from './output.ts'

/** Runs the command, on each database in turn. One that fails does not keep the others from it. */
export async function runExpire(
  urls: readonly string[],
  flags: DatabaseFlags & { readonly retention?: readonly Retention[] },
): Promise<void> {
  const expired: Awaited<ReturnType<typeof expire>>[] = []
  for (const database of chooseDatabases(urls, flags).map(openOne))
    expired.push(await expire(database, flags.retention ?? []))
  if (expired.some(({ error }) => error !== null)) process.exitCode = 1
  if (flags.json) return printJson({ databases: expired })

  const rows = expired.flatMap(({ database, actions }) =>
    actions.map(({ action, scope, detail, count: n }) => ({
      cells: [database, action, scope ?? '', n > 0 ? String(n) : '', detail],
    })),
  )
  if (rows.length > 0) print(`${table(['database', 'action', 'scope', 'count', 'detail'], rows)}\n`)
  for (const { database, steps, actions, waits, error } of expired) {
    const keys = sum(actions.filter(({ action, detail }) => action === 'delete' && detail !== ofRecords))
    const later = waits === null ? '' : `; run it again later: ${waits}`
    if (error !== null) print(paint(`${database}: ${error}`, 'red'))
    else print(`${database}: ${count(keys, 'key')} deleted, in ${count(steps, 'step')}${later}`)
  }
}

/** What is deleted besides keys. @see sql/ledger/expire.sql */
const ofRecords = 'records of expired claims'

/** What was done, added up over all steps. */
interface Action {
  readonly action: string
  readonly scope: string | null
  readonly detail: string
  readonly count: number
}

type Retention = readonly [scope: string, interval: string | null]

/** Calls once.expire() until there is no more to do, or to a later call. @see sql/ledger/expire.sql */
async function expire(database: Database, retentions: readonly Retention[]) {
  const { name } = database
  const done = new Map<string, Action>()
  let [steps, waits] = [0, null as string | null]
  const shown = progress()
  const work = async (session: Link) => {
    for (const retention of retentions)
      await session.query('select once.set_retention($1, $2::text::interval)', retention)
    for (let isMore = true; isMore; ) {
      const { rows } = await session.query<Action & { readonly more: boolean }>(
        'select s.action, s.scope, s.detail, s.count::float8 as count, s.more from once.expire() s',
      )
      steps += 1
      isMore = rows.some(({ more }) => more)
      waits = null
      for (const { more, ...row } of rows) {
        if (row.action === 'wait' || row.action === 'busy') waits ??= row.detail
        // Rows that count nothing and ask for more only say how far the step has come.
        else if (!more || row.count > 0) add(done, row)
      }
      if (isMore) shown.say(`${name}: step ${steps}, ${sum([...done.values()])} done`)
    }
  }
  const { reason } = await tryAsking(database.identify().then(() => withLink(database.connect(), work)))
  shown.end()
  return { database: name, steps, actions: [...done.values()], waits, error: reason }
}

function add(done: Map<string, Action>, row: Action): void {
  // A horizon moves on with each step: the last one tells.
  const key = `${row.action} ${row.scope} ${row.action === 'horizon' ? '' : row.detail}`
  done.set(key, { ...row, count: row.count + (done.get(key)?.count ?? 0) })
}

function sum(actions: readonly Action[]): number {
  return actions.reduce((total, { count }) => total + count, 0)
}

/** Reads `--retention`, which may be given several times. */
export function parseRetentions(text: string, before: readonly Retention[] = []): readonly Retention[] {
  // A scope may contain "=", an interval cannot.
  const [, scope, interval] = /^(.+)=\s*([^=]*[^=\s])\s*$/s.exec(text) ?? []
  if (scope === undefined || interval === undefined)
    throw new InvalidArgumentError("Expected scope=interval, as in stripe='30 days' or stripe=forever.")
  return [...before, [scope, interval === 'forever' ? null : interval]]
}
