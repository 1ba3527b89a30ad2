/**
 * `pgonce doctor`: looks at every database and says what is wrong with it, and what to type: `once.health`, and what
 * SQL cannot ask.
 */
import type { Command } from 'commander'
import { type Database, withLink } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { describeTarget } from '../connection/url.ts'
import { codeOf } from '../errors.ts'
import { wholeNumber } from './arguments.ts'
import {
  type Add,
  type CheckStatus,
  checkDatabaseId,
  checkPrivileges,
  checkSchema,
  checkServer,
  type Finding,
  grantLine,
} from './checks.ts'
import {
  type ChosenDatabase,
  chooseDatabases,
  type DatabaseFlags,
  withDatabases,
  withEach,
} from './databases.ts'
import { readHealth, sayHealth } from './health.ts'
import { count, paint, print, printJson, type Row, table } from './output.ts'

/** One thing that was looked at. */
export interface Check extends Required<Finding> {
  readonly database: string
}

interface DoctorFlags extends DatabaseFlags {
  readonly maxConnections: number
  readonly json?: boolean
}

/** Adds the command to the program. */
export function doctorCommand(program: Command): void {
  withDatabases(program.command('doctor'))
    .description('check every database, and say what to type where something is wrong (then exit 1)')
    .option(
      '--max-connections <n>',
      'transactions that your clients run at once, all together',
      wholeNumber(0),
      10,
    )
    .option('--json', 'print one JSON object')
    .action(runDoctor)
}

async function runDoctor(urls: readonly string[], flags: DoctorFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const checks = await examineAll(chosen, flags)
  const number = (status: CheckStatus) => checks.filter((one) => one.status === status).length
  const [critical, warnings] = [number('critical'), number('warn')]
  if (critical > 0) process.exitCode = 1
  if (flags.json) return printJson({ ok: critical === 0, critical, warnings, checks })

  const styles = { ok: 'green', warn: 'yellow', critical: 'red', skipped: 'dim' } as const
  const rows = checks
    .filter(({ found }) => found !== nothing)
    .map(
      ({ database, check, status, found, hint }): Row => ({
        cells: [database, check, { text: status, style: styles[status] }, found],
        ...(hint === null ? {} : { notes: hint.split('\n').map((line) => `→ ${line}`) }),
      }),
    )
  print(table(['database', 'check', 'status', 'found'], rows))
  print()
  const well = number('skipped') > 0 ? 'Nothing is wrong in what the role may look at, in' : 'All is well in'
  if (critical + warnings === 0) print(paint(`${well} ${count(chosen.length, 'database')}.`, 'green'))
  else print(`${critical} critical, ${count(warnings, 'warning')} in ${count(chosen.length, 'database')}.`)
}

// ---------------------------------------------------------------------------------------------------
// Examining

/** Milliseconds for a connection, and for all questions to a database together. */
const connectTimeout = 5_000
const patience = 15_000

/** What is known of a database. */
interface Examined {
  readonly database: ChosenDatabase
  readonly checks: Check[]
  /** As in once.database; undefined if it could not be read or is a copy's. */
  id?: string | undefined
  /** The homes of what is in doubt in it. */
  homes?: readonly string[]
}

async function examineAll(chosen: readonly ChosenDatabase[], flags: DoctorFlags): Promise<readonly Check[]> {
  const examined = await withEach(chosen, connectTimeout, (databases) =>
    Promise.all(
      databases.map(async (database, index) => {
        const one: Examined = { database: chosen[index] as ChosenDatabase, checks: [] }
        await examine(database, one, flags)
        return one
      }),
    ),
  )
  for (const one of examined) compare(one, examined)
  return examined.flatMap(({ checks }) => checks)
}

async function examine(database: Database, one: Examined, flags: DoctorFlags): Promise<void> {
  const add = adding(one)
  let connected = false
  try {
    await withLink(
      database.connect(),
      async (session) => {
        connected = true
        const before = performance.now()
        await session.query('select 1')
        const took = (performance.now() - before).toFixed(1)
        add({ check: 'reachable', status: 'ok', found: `answers in ${took} ms` })
        const server = await checkServer(session, add, flags.maxConnections)
        if (!(await checkSchema(session, server, add, one.database))) return
        one.id = await checkDatabaseId(session, add)
        if (server.standby) return
        await checkPrivileges(session, server, add)
        await checkHealth(session, add, server.login)
        one.homes = await homesInDoubt(session)
      },
      patience,
    )
  } catch (error) {
    const { message } = error as Error
    add({
      check: connected ? 'answers' : 'reachable',
      status: 'critical',
      found: connected ? `stopped looking: ${message}` : message,
      hint: `psql '${describeTarget(one.database.url)}' -c 'select 1'`,
    })
  }
}

function adding({ database, checks }: Examined): Add {
  return ({ check, status, found, hint = null }) =>
    void checks.push({ database: database.name, check, status, found, hint })
}

/** What the table for people leaves out. */
const nothing = 'nothing to look at'

async function checkHealth(session: Link, add: Add, login: string): Promise<void> {
  try {
    for (const row of await readHealth(session)) {
      const { name, status, value, hint } = row
      add({ check: name, status, found: value === null ? nothing : sayHealth({ ...row, value }), hint })
    }
  } catch (error) {
    if (codeOf(error) !== '42501') throw error
    const found = 'not looked at: this role may not'
    add({ check: 'health', status: 'skipped', found, hint: grantLine('monitor', login) })
  }
}

async function homesInDoubt(session: Link): Promise<readonly string[]> {
  const { rows } = await session.query<{ home: string }>(
    'select distinct b.home::text as home from once.branch b where b.ours',
  )
  return rows.map(({ home }) => home)
}

/** What no database knows of the others: whether they are one, and whether the homes of its branches are among them. */
function compare(one: Examined, all: readonly Examined[]): void {
  const { database, id, homes = [] } = one
  const add = adding(one)
  const same = all.filter((other) => id !== undefined && other.id === id && other.database !== database)
  if (same.length > 0) {
    add({
      check: 'database id',
      status: 'critical',
      found: `the same database as ${same.map((other) => other.database.name).join(', ')} (${id})`,
      hint: 'give each database one name only: both halves of a transaction would wait for each other',
    })
  } else if (id !== undefined) add({ check: 'database id', status: 'ok', found: id })
  const missing = homes.filter((home) => !all.some((other) => other.id === home))
  if (missing.length === 0) return
  add({
    check: 'homes',
    status: 'warn',
    found: 'branches are in doubt here whose home is none of the databases given',
    hint: missing
      .map((home) => `name the one too that answers ${home} to: select once.database_id();`)
      .join('\n'),
  })
}
