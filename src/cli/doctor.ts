/**
 * `pgonce doctor`: looks at every database and says what is wrong with it, and what to type.
 */

import { type Command, InvalidArgumentError } from 'commander'
import { type Database, withLink } from '../connection/database.ts'
import { describeTarget } from '../connection/url.ts'
import {
  type Add,
  type CheckStatus,
  checkDatabaseId,
  checkInDoubt,
  checkLedger,
  checkLosses,
  checkPositions,
  checkPrivileges,
  checkRecovery,
  checkSchema,
  checkServer,
  type Finding,
} from './checks.ts'
import {
  type ChosenDatabase,
  chooseDatabases,
  type DatabaseFlags,
  withDatabases,
  withEach,
} from './databases.ts'
import { count, paint, print, printJson, type Row, type Style, table } from './output.ts'

/** One thing that was looked at. */
export interface Check extends Required<Finding> {
  readonly database: string
}

interface DoctorFlags extends DatabaseFlags {
  readonly orphanAge: number
  readonly maxConnections: number
  readonly json?: boolean
}

/** Adds the command to the program. */
export function doctorCommand(program: Command): void {
  withDatabases(program.command('doctor'))
    .description('check every database, and say what to type where something is wrong (then exit 1)')
    .option('--orphan-age <seconds>', 'branches in doubt for longer are orphans', wholeNumber, 30)
    .option(
      '--max-connections <n>',
      'transactions that your clients run at once, all together',
      wholeNumber,
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

  const styles = { ok: 'green', warn: 'yellow', critical: 'red', skipped: 'dim' } as const satisfies Record<
    CheckStatus,
    Style
  >
  const rows = checks.map(
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
  databaseId?: string | undefined
  /** The homes of its orphans. */
  homes?: readonly string[]
}

async function examineAll(chosen: readonly ChosenDatabase[], flags: DoctorFlags): Promise<readonly Check[]> {
  const examined = await withEach(chosen, connectTimeout, (databases) =>
    Promise.all(
      databases.map(async (database, index) => {
        const one: Examined = { database: chosen[index] as ChosenDatabase, checks: [] }
        await examine(database, one, chosen, flags)
        return one
      }),
    ),
  )
  for (const one of examined) {
    checkDistinct(one, examined)
    sayMissingHomes(one, examined)
  }
  return examined.flatMap(({ checks }) => checks)
}

async function examine(
  database: Database,
  one: Examined,
  chosen: readonly ChosenDatabase[],
  flags: DoctorFlags,
): Promise<void> {
  const add: Add = ({ check, status, found, hint = null }) =>
    void one.checks.push({ database: database.name, check, status, found, hint })
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
        one.databaseId = await checkDatabaseId(session, add)
        if (server.standby) return
        await checkPrivileges(session, server, add)
        one.homes = await checkInDoubt(session, server, add, chosen, flags.orphanAge)
        await checkRecovery(session, add, chosen)
        await checkLosses(session, add)
        await checkLedger(session, add)
        await checkPositions(session, add)
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

/** Says who it is, unless another of the given databases says the same. */
function checkDistinct({ database, checks, databaseId }: Examined, all: readonly Examined[]): void {
  if (databaseId === undefined) return
  const same = all.filter((one) => one.databaseId === databaseId && one.database !== database)
  const check: Check =
    same.length === 0
      ? { database: database.name, check: 'database id', status: 'ok', found: databaseId, hint: null }
      : {
          database: database.name,
          check: 'database id',
          status: 'critical',
          found: `the same database as ${same.map((one) => one.database.name).join(', ')} (${databaseId})`,
          hint: 'give each database one name only: both halves of a transaction would wait for each other',
        }
  const after = checks.findIndex((one) => one.check === 'schema')
  checks.splice(after + 1, 0, check)
}

/** Recovery finishes nothing whose home it cannot ask, so what is to be typed must name that too. */
function sayMissingHomes({ checks, homes = [] }: Examined, all: readonly Examined[]): void {
  const missing = homes.filter((home) => !all.some(({ databaseId }) => databaseId === home))
  const index = checks.findIndex(({ check, status }) => check === 'in doubt' && status === 'critical')
  const check = checks[index]
  if (missing.length === 0 || check === undefined) return
  const lines = missing.map(
    (home) =>
      `# first name the home too: no database given here answers ${home} to "select once.database_id()"`,
  )
  checks[index] = { ...check, hint: [...lines, check.hint].join('\n') }
}

function wholeNumber(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('Expected a whole number.')
}
