/**
 * `pgonce doctor`: looks at every database and says what is wrong with it, and what to type.
 */

import { type Command, InvalidArgumentError } from 'commander'
import { type Database, schemaVersion, withSession } from '../database/database.ts'
import { describeTarget } from '../database/open.ts'
import { identifier, literal } from '../database/quote.ts'
import type { Session } from '../database/session.ts'
import { codeOf, fromSql, PgonceError } from '../errors.ts'
import {
  type ChosenDatabase,
  chooseDatabases,
  commandFor,
  type DatabaseFlags,
  withDatabases,
  withEach,
} from './databases.ts'
import { count, paint, print, printJson, type Row, type Style, sayAge, table } from './output.ts'

/** `skipped`: this role may not look there. */
export type CheckStatus = 'ok' | 'warn' | 'critical' | 'skipped'

/** One thing that was looked at. */
export interface Check {
  readonly database: string
  readonly check: string
  readonly status: CheckStatus
  readonly found: string
  /** What to type, a line each; null if there is nothing to do. */
  readonly hint: string | null
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

export async function runDoctor(urls: readonly string[], flags: DoctorFlags): Promise<void> {
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

/** Open gaps of a producer, of the limit at which its claims are refused. */
const gapsWarning = 0.8
/** Prepared transactions, of all that the server takes. */
const slotsWarning = 0.7
/** Seconds after which a decision should have been proven, and a consumer that lags should have moved. */
const slow = 600

interface Findings {
  readonly database: ChosenDatabase
  readonly checks: Check[]
  /** As in once.identity; undefined if it could not be read or is a copy's. */
  identity?: string
  /** The homes of its orphans. */
  homes?: readonly string[]
}

async function examineAll(chosen: readonly ChosenDatabase[], flags: DoctorFlags): Promise<readonly Check[]> {
  const findings = await withEach(chosen, connectTimeout, (databases) =>
    Promise.all(
      databases.map(async (database, index) => {
        const found: Findings = { database: chosen[index] as ChosenDatabase, checks: [] }
        await examine(database, found, chosen, flags)
        return found
      }),
    ),
  )
  for (const found of findings) {
    checkDistinct(found, findings)
    sayMissingHomes(found, findings)
  }
  return findings.flatMap(({ checks }) => checks)
}

async function examine(
  database: Database,
  found: Findings,
  chosen: readonly ChosenDatabase[],
  flags: DoctorFlags,
): Promise<void> {
  const add = (check: string, status: CheckStatus, what: string, hint: string | null = null) =>
    void found.checks.push({ database: database.name, check, status, found: what, hint })
  let connected = false
  try {
    await withSession(
      database.connect(),
      async (session) => {
        connected = true
        const before = performance.now()
        await session.query('select 1')
        add('reachable', 'ok', `answers in ${(performance.now() - before).toFixed(1)} ms`)
        const server = await checkServer(session, add, flags)
        if (!(await checkSchema(session, server, found.database, add))) return
        await checkIdentity(session, found, add)
        if (server.standby) return
        await checkPrivileges(session, server, add)
        await checkInDoubt(session, server, found, add, chosen, flags.orphanAge)
        await checkRecovery(session, add, chosen)
        await checkLosses(session, add)
        await checkLedger(session, add)
        await checkOffsets(session, add)
      },
      patience,
    )
  } catch (error) {
    const { message } = error as Error
    const [check, said] = connected ? ['answers', `stopped looking: ${message}`] : ['reachable', message]
    add(check, 'critical', said, `psql '${describeTarget(found.database.url)}' -c 'select 1'`)
  }
}

type Add = (check: string, status: CheckStatus, found: string, hint?: string | null) => void

interface Server {
  readonly release: string
  readonly server: number
  readonly standby: boolean
  readonly login: string
  readonly superuser: boolean
  readonly slots: number
  readonly used: number
  readonly ours: number
  readonly fsync: string
  readonly full_page_writes: string
  readonly synchronous_commit: string
  /** Schema once: whether it exists, we may look inside, and pgonce made it. */
  readonly exists: boolean
  readonly usage: boolean
  readonly installed: boolean
  readonly allowed: boolean
}

async function checkServer(session: Session, add: Add, flags: DoctorFlags): Promise<Server> {
  // Works on any Postgres, with any search_path, and without schema once.
  const { rows } = await session.query<Server>(`
    select current_setting('server_version') as release, current_setting('server_version_num')::int4 as server,
           pg_is_in_recovery() as standby, current_user::text as login,
           (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) as superuser,
           current_setting('max_prepared_transactions')::int4 as slots,
           (select count(*)::int4 from pg_catalog.pg_prepared_xacts) as used,
           (select count(*)::int4 from pg_catalog.pg_prepared_xacts p where p.gid like 'once:1:%') as ours,
           current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
           current_setting('synchronous_commit') as synchronous_commit,
           n.oid is not null as "exists", coalesce(has_schema_privilege(n.oid, 'usage'), false) as usage,
           p.oid is not null as installed, coalesce(has_function_privilege(p.oid, 'execute'), false) as allowed
      from (select) x
      left join pg_catalog.pg_namespace n on n.nspname = 'once'
      left join pg_catalog.pg_proc p on p.pronamespace = n.oid and p.proname = 'schema_version'`)
  const server = rows[0] as Server
  if (server.server >= 150_000) add('server', 'ok', `Postgres ${server.release}`)
  else add('server', 'critical', `Postgres ${server.release}; pgonce needs 15 or later`, 'upgrade the server')
  if (server.standby) {
    add('primary', 'critical', 'a standby: it can neither write nor decide', 'give the URL of its primary')
  } else {
    add('primary', 'ok', 'yes')
  }
  checkSlots(server, add, flags.maxConnections)
  checkDurability(server, add)
  return server
}

function checkSlots({ slots, used, ours }: Server, add: Add, maxConnections: number): void {
  const check = 'prepared transactions'
  const raise = (to: number) =>
    `alter system set max_prepared_transactions = ${to};   -- then restart the server`
  const foreign = used - ours
  const state = `${used} of ${slots} slots used${foreign > 0 ? `, ${foreign} by others than pgonce` : ''}`
  if (slots === 0) {
    add(
      check,
      'critical',
      'max_prepared_transactions is 0: no transaction over several databases',
      raise(100),
    )
  } else if (used >= slots) {
    add(
      check,
      'critical',
      `${state}: nothing more can be prepared`,
      `select gid, owner, database, prepared from pg_prepared_xacts order by prepared;\n${raise(slots * 2)}`,
    )
  } else if (used >= slots * slotsWarning) {
    add(
      check,
      'warn',
      state,
      `select gid, owner, database, prepared from pg_prepared_xacts order by prepared;`,
    )
  } else if (slots < maxConnections) {
    add(
      check,
      'warn',
      `${state}, fewer than the ${maxConnections} transactions that may prepare at once`,
      raise(Math.max(100, maxConnections)),
    )
  } else {
    add(check, 'ok', state)
  }
}

function checkDurability({ fsync, full_page_writes, synchronous_commit }: Server, add: Add): void {
  const reload = (name: string) => `alter system set ${name} = on; select pg_reload_conf();`
  const lost = []
  if (fsync === 'off')
    lost.push(['fsync', 'a crash of the machine loses or corrupts what was committed'] as const)
  if (full_page_writes === 'off')
    lost.push(['full_page_writes', 'a crash of the machine can corrupt pages'] as const)
  for (const [name, what] of lost) add(name, 'warn', `off: ${what}`, reload(name))
  if (synchronous_commit === 'off') {
    add(
      'synchronous_commit',
      'warn',
      'off for this role: claims and decisions turn it on, plain commits of yours can be lost in a crash',
      `alter role current_user reset synchronous_commit;   -- or: ${reload('synchronous_commit')}`,
    )
  }
  if (lost.length === 0 && synchronous_commit !== 'off') add('durability', 'ok', 'commits are flushed')
}

async function checkSchema(
  session: Session,
  server: Server,
  database: ChosenDatabase,
  add: Add,
): Promise<boolean> {
  const install = commandFor('migrate', [database])
  const { exists, installed, login } = server
  if (!exists) {
    add('schema', 'critical', 'schema once is not installed', install)
  } else if (!installed) {
    add(
      'schema',
      'critical',
      'there is a schema once that pgonce did not make, or did not complete',
      `alter schema once rename to other;   -- then: ${install}`,
    )
  } else if (!server.usage || !server.allowed) {
    add('schema', 'critical', `role ${login} may not use schema once`, grantLine('app', login))
  } else {
    const { rows } = await session.query<{ version: number }>('select once.schema_version() as version')
    const version = Number(rows[0]?.version)
    if (version < schemaVersion)
      add('schema', 'critical', `version ${version}; this pgonce needs ${schemaVersion}`, install)
    else if (version > schemaVersion) {
      add(
        'schema',
        'critical',
        `version ${version}; this pgonce knows only ${schemaVersion}`,
        'npm install pgonce@latest',
      )
    } else add('schema', 'ok', `version ${version}`)
    return version === schemaVersion
  }
  return false
}

async function checkIdentity(session: Session, found: Findings, add: Add): Promise<void> {
  try {
    const { rows } = await session.query<{ id: string }>('select once.home_id()::text as id')
    const id = rows[0]?.id
    if (id === undefined) {
      add(
        'identity',
        'critical',
        'once.identity has no row',
        `select once.renew_identity('the row was gone');`,
      )
      return
    }
    found.identity = id
  } catch (raw) {
    const error = fromSql(raw)
    if (error instanceof PgonceError && error.code === 'ONCPY') {
      add(
        'identity',
        'critical',
        `a copy: it carries the identity of another database. ${error.detail ?? ''}`.trim(),
        "select once.renew_identity('copied');   -- if the original lives on\n" +
          "select once.adopt_identity('moved');    -- if this replaces the original for good",
      )
    } else if (!isDenied(raw)) throw error
  }
}

/** Says who it is, unless another of the given databases says the same. */
function checkDistinct({ database, checks, identity }: Findings, all: readonly Findings[]): void {
  if (identity === undefined) return
  const same = all.filter((one) => one.identity === identity && one.database !== database)
  const check: Check =
    same.length === 0
      ? { database: database.name, check: 'identity', status: 'ok', found: identity, hint: null }
      : {
          database: database.name,
          check: 'identity',
          status: 'critical',
          found: `the same database as ${same.map((one) => one.database.name).join(', ')} (${identity})`,
          hint: 'give each database one name only: both halves of a transaction would wait for each other',
        }
  const after = checks.findIndex((one) => one.check === 'schema')
  checks.splice(after + 1, 0, check)
}

/** Recovery finishes nothing whose home it cannot ask, so what is to be typed must name that too. */
function sayMissingHomes({ checks, homes = [] }: Findings, all: readonly Findings[]): void {
  const missing = homes.filter((home) => !all.some(({ identity }) => identity === home))
  const index = checks.findIndex(({ check, status }) => check === 'in doubt' && status === 'critical')
  const check = checks[index]
  if (missing.length === 0 || check === undefined) return
  const lines = missing.map(
    (home) => `# first name the home too: no database given here answers ${home} to "select once.home_id()"`,
  )
  checks[index] = { ...check, hint: [...lines, check.hint].join('\n') }
}

/**
 * Whether the role has what one of the grants gives. The list comes from the granting function itself, so it
 * is that of the installed version: a role that was granted before an update lacks what came with it.
 */
async function checkPrivileges(session: Session, { login, superuser }: Server, add: Add): Promise<void> {
  if (superuser) return add('privileges', 'ok', `role ${login} is a superuser and may do all`)
  const { rows } = await session.query<{ grant: string; missing: string[]; total: number }>(`
    select substr(p.proname, 7) as "grant", count(*)::int4 as total,
           coalesce(array_agg(m[1] order by m[1]) filter (where not has_function_privilege(m[1], 'execute')), '{}') as missing
      from pg_catalog.pg_proc p
      join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'once',
           regexp_matches(split_part(p.prosrc, '$grant$', 2), 'once\\.[a-z_]+\\([^)]*\\)', 'g') m
     where p.proname in ('grant_app', 'grant_recover', 'grant_monitor')
     group by 1 order by 1`)
  const can: Record<string, string> = { app: 'process', recover: 'recover and sweep', monitor: 'look' }
  const full = rows.filter(({ missing }) => missing.length === 0)
  if (full.length > 0) {
    return add(
      'privileges',
      'ok',
      `role ${login} may ${full.map((row) => can[row.grant] ?? row.grant).join(', ')}`,
    )
  }
  // The one that it was probably given, an update ago.
  const nearest = rows.toSorted((a, b) => a.missing.length / a.total - b.missing.length / b.total)[0]
  const missing = nearest?.missing ?? []
  const more = missing.length > 1 ? ` and ${missing.length - 1} more` : ''
  add(
    'privileges',
    'critical',
    `role ${login} may not execute ${missing[0] ?? 'the functions of schema once'}${more}`,
    grantLine(nearest?.grant ?? 'app', login),
  )
}

async function checkInDoubt(
  session: Session,
  { login }: Server,
  found: Findings,
  add: Add,
  chosen: readonly ChosenDatabase[],
  orphanAge: number,
): Promise<void> {
  const row = await look<{
    ours: number
    old: number
    oldest: number
    strange: number
    barred: string | null
    homes: string[] | null
  }>(
    session,
    add,
    'in doubt',
    `select count(*) filter (where d.ours)::int4 as ours,
            count(*) filter (where d.ours and d.age >= $1::int4 * interval '1 second')::int4 as old,
            coalesce(extract(epoch from max(d.age) filter (where d.ours)), 0)::float8 as oldest,
            count(*) filter (where not d.ours and d.gid like 'once:%')::int4 as strange,
            min(d.owner) filter (where d.ours and not d.can_finish) as barred,
            array_agg(distinct d.home::text) filter (where d.ours) as homes
       from once.branch d`,
    [orphanAge],
  )
  if (row === undefined) return
  const { ours, old, oldest, strange, barred, homes } = row
  if (old > 0) found.homes = homes ?? []
  if (old > 0) {
    const lines = [
      commandFor('recover', chosen),
      `${commandFor('in-doubt', chosen)}   # shows each, with its decision`,
    ]
    if (barred !== null)
      lines.unshift(
        `grant ${identifier(barred)} to ${identifier(login)};   -- as a superuser, to finish what it owns`,
      )
    add(
      'in doubt',
      'critical',
      `${count(old, 'orphan')} in doubt for over ${sayAge(orphanAge)}, the oldest for ${sayAge(oldest)}`,
      lines.join('\n'),
    )
  } else {
    add(
      'in doubt',
      'ok',
      ours === 0 ? 'nothing' : `${count(ours, 'branch', 'branches')}, the oldest for ${sayAge(oldest)}`,
    )
  }
  if (strange > 0) {
    add(
      'strangers',
      'warn',
      `${count(strange, 'prepared transaction')} with our prefix but not ours, left alone`,
      "select gid, owner, prepared_at from once.in_doubt where not ours and gid like 'once:%';",
    )
  }
}

async function checkRecovery(session: Session, add: Add, chosen: readonly ChosenDatabase[]): Promise<void> {
  const row = await look<{ late: number; oldest: number }>(
    session,
    add,
    'recovery',
    `select count(*)::int4 as late, coalesce(extract(epoch from max(clock_timestamp() - g.decided_at)), 0)::float8 as oldest
       from once.global_transaction g
      where g.proven_at is null and g.decided_at < clock_timestamp() - $1::int4 * interval '1 second'`,
    [slow],
  )
  if (row === undefined) return
  if (row.late === 0) return add('recovery', 'ok', 'no decision waits for its proof')
  add(
    'recovery',
    'warn',
    `${count(row.late, 'decision')} not proven, the oldest for ${sayAge(row.oldest)}: does recovery run, and reach all?`,
    `${commandFor('recover', chosen)} --watch   # or once.recovery.start() in a process that lives on`,
  )
}

async function checkLosses(session: Session, add: Add): Promise<void> {
  const row = await look<{ n: number; kinds: string | null }>(
    session,
    add,
    'losses',
    `select count(*)::int4 as n, string_agg(distinct h.kind, ', ') as kinds from once.heuristic h where h.acknowledged_at is null`,
  )
  if (row === undefined) return
  if (row.n === 0) return add('losses', 'ok', 'none that is not acknowledged')
  add(
    'losses',
    'critical',
    `${row.n} not acknowledged (${row.kinds}): one side committed, the other did not`,
    'select * from once.heuristic where acknowledged_at is null;   -- repair the data by hand, then:\n' +
      "select once.forget('…', 'what was repaired');",
  )
}

async function checkLedger(session: Session, add: Add): Promise<void> {
  const row = await look<{
    producers: number
    near: number
    full: number
    worst: string | null
    gaps: string
    limit: number
  }>(
    session,
    add,
    'ledger',
    `select count(*)::int4 as producers,
            count(*) filter (where p.gaps > 0 and p.gaps >= p.max_gaps * $1::float8)::int4 as near,
            count(*) filter (where p.gaps > 0 and p.gaps >= p.max_gaps)::int4 as "full",
            (array_agg(p.producer order by p.gaps::float8 / greatest(p.max_gaps, 1) desc))[1] as worst,
            (array_agg(p.gaps order by p.gaps::float8 / greatest(p.max_gaps, 1) desc))[1]::text as gaps,
            (array_agg(p.max_gaps order by p.gaps::float8 / greatest(p.max_gaps, 1) desc))[1] as "limit"
       from once.producers p`,
    [gapsWarning],
  )
  if (row === undefined) return
  if (row.near === 0)
    return add('ledger', 'ok', `${count(row.producers, 'producer')}, none near its limit of gaps`)
  add(
    'ledger',
    row.full > 0 ? 'critical' : 'warn',
    `${count(row.near, 'producer')} near or at the limit of gaps; ${row.worst} has ${row.gaps} of ${row.limit}` +
      (row.full > 0 ? ', so new gaps are refused' : ''),
    'select * from once.producers order by gaps desc limit 10;   -- deliver what is missing, or, if it never comes:\n' +
      `select once.set_watermark(${literal(row.worst ?? '')}, <last sequence to give up>, '<why>');`,
  )
}

async function checkOffsets(session: Session, add: Add): Promise<void> {
  const row = await look<{ partitions: number; stuck: number; ahead: number }>(
    session,
    add,
    'offsets',
    `select count(*)::int4 as partitions,
            count(*) filter (where l.lag > 0 and l.idle > $1::int4 * interval '1 second')::int4 as stuck,
            count(*) filter (where l.end_position < l."position")::int4 as ahead
       from once.lag l`,
    [slow],
  )
  if (row === undefined) return
  if (row.stuck > 0) {
    add(
      'offsets',
      'warn',
      `${count(row.stuck, 'partition')} of ${row.partitions} with lag and no progress for ${sayAge(slow)}`,
      'select * from once.lag where lag > 0 order by idle desc;',
    )
  }
  if (row.ahead > 0) {
    add(
      'offsets',
      'warn',
      `${count(row.ahead, 'partition')} of ${row.partitions} past the reported end: is it the right topic?`,
      'select * from once.lag where end_position < "position";',
    )
  }
  if (row.stuck + row.ahead === 0) add('offsets', 'ok', `${count(row.partitions, 'partition')}, none stuck`)
}

/** One row; undefined if the role may not look, which is no fault of the database and is said. */
async function look<R>(
  session: Session,
  add: Add,
  check: string,
  text: string,
  parameters: readonly unknown[] = [],
): Promise<R | undefined> {
  try {
    return (await session.query<R>(text, parameters)).rows[0]
  } catch (error) {
    if (!isDenied(error)) throw error
    add(check, 'skipped', 'not looked at: this role may not')
    return undefined
  }
}

function isDenied(error: unknown): boolean {
  return codeOf(error) === '42501'
}

// ---------------------------------------------------------------------------------------------------
// Words

function grantLine(grant: string, login: string): string {
  return `select once.grant_${grant}(${literal(login)});   -- as the owner of schema once`
}

function wholeNumber(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('Expected a whole number.')
}
