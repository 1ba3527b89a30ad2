/**
 * What `pgonce doctor` looks at in one database. Each check asks one question, and says what to type if the answer
 * is not good.
 */
import { schemaVersion } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { identifier, literal } from '../connection/quote.ts'
import { codeOf, fromSql, PgonceError } from '../errors.ts'
import { type ChosenDatabase, commandFor } from './databases.ts'
import { count, sayAge } from './output.ts'

/** `skipped`: this role may not look there. */
export type CheckStatus = 'ok' | 'warn' | 'critical' | 'skipped'

/** What a check has found. */
export interface Finding {
  readonly check: string
  readonly status: CheckStatus
  readonly found: string
  /** What to type, a line each; null, as without, if there is nothing to do. */
  readonly hint?: string | null
}

/** Takes what was found, in the order in which it is shown. */
export type Add = (finding: Finding) => void

/** Open gaps of a producer, of the limit at which its claims are refused. */
const gapsWarning = 0.8
/** Prepared transactions, of all that the server takes. */
const slotsWarning = 0.7
/** Seconds after which a decision should have been proven, and a consumer that lags should have moved. */
const slow = 600

// ---------------------------------------------------------------------------------------------------
// The server

export interface Server {
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

/** @param maxConnections transactions that clients run at once, each of which may prepare */
export async function checkServer(session: Link, add: Add, maxConnections: number): Promise<Server> {
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
  if (server.server >= 150_000) {
    add({ check: 'server', status: 'ok', found: `Postgres ${server.release}` })
  } else {
    add({
      check: 'server',
      status: 'critical',
      found: `Postgres ${server.release}; pgonce needs 15 or later`,
      hint: 'upgrade the server',
    })
  }
  if (server.standby) {
    add({
      check: 'primary',
      status: 'critical',
      found: 'a standby: it can neither write nor decide',
      hint: 'give the URL of its primary',
    })
  } else {
    add({ check: 'primary', status: 'ok', found: 'yes' })
  }
  checkSlots(server, add, maxConnections)
  checkDurability(server, add)
  return server
}

function checkSlots({ slots, used, ours }: Server, add: Add, maxConnections: number): void {
  const check = 'prepared transactions'
  const list = 'select gid, owner, database, prepared from pg_prepared_xacts order by prepared;'
  const raise = (to: number) =>
    `alter system set max_prepared_transactions = ${to};   -- then restart the server`
  const foreign = used - ours
  const state = `${used} of ${slots} slots used${foreign > 0 ? `, ${foreign} by others than pgonce` : ''}`
  if (slots === 0) {
    const found = 'max_prepared_transactions is 0: no transaction over several databases'
    add({ check, status: 'critical', found, hint: raise(100) })
  } else if (used >= slots) {
    const found = `${state}: nothing more can be prepared`
    add({ check, status: 'critical', found, hint: `${list}\n${raise(slots * 2)}` })
  } else if (used >= slots * slotsWarning) {
    add({ check, status: 'warn', found: state, hint: list })
  } else if (slots < maxConnections) {
    const found = `${state}, fewer than the ${maxConnections} transactions that may prepare at once`
    add({ check, status: 'warn', found, hint: raise(Math.max(100, maxConnections)) })
  } else {
    add({ check, status: 'ok', found: state })
  }
}

function checkDurability({ fsync, full_page_writes, synchronous_commit }: Server, add: Add): void {
  const reload = (name: string) => `alter system set ${name} = on; select pg_reload_conf();`
  if (fsync === 'off') {
    const found = 'off: a crash of the machine loses or corrupts what was committed'
    add({ check: 'fsync', status: 'warn', found, hint: reload('fsync') })
  }
  if (full_page_writes === 'off') {
    const found = 'off: a crash of the machine can corrupt pages'
    add({ check: 'full_page_writes', status: 'warn', found, hint: reload('full_page_writes') })
  }
  if (synchronous_commit === 'off') {
    add({
      check: 'synchronous_commit',
      status: 'warn',
      found:
        'off for this role: claims and decisions turn it on, plain commits of yours can be lost in a crash',
      hint: `alter role current_user reset synchronous_commit;   -- or: ${reload('synchronous_commit')}`,
    })
  }
  if (![fsync, full_page_writes, synchronous_commit].includes('off')) {
    add({ check: 'durability', status: 'ok', found: 'commits are flushed' })
  }
}

// ---------------------------------------------------------------------------------------------------
// Schema once, and who we are in it

/** Whether all further checks can be made. */
export async function checkSchema(
  session: Link,
  server: Server,
  add: Add,
  database: ChosenDatabase,
): Promise<boolean> {
  const install = commandFor('migrate', [database])
  const refuse = (found: string, hint: string) => {
    add({ check: 'schema', status: 'critical', found, hint })
    return false
  }
  const { exists, installed, usage, allowed, login } = server
  if (!exists) return refuse('schema once is not installed', install)
  if (!installed) {
    return refuse(
      'there is a schema once that pgonce did not make, or did not complete',
      `alter schema once rename to other;   -- then: ${install}`,
    )
  }
  if (!usage || !allowed) return refuse(`role ${login} may not use schema once`, grantLine('app', login))
  const { rows } = await session.query<{ version: number }>('select once.schema_version() as version')
  const version = Number(rows[0]?.version)
  if (version < schemaVersion)
    return refuse(`version ${version}; this pgonce needs ${schemaVersion}`, install)
  if (version > schemaVersion) {
    return refuse(`version ${version}; this pgonce knows only ${schemaVersion}`, 'npm install pgonce@latest')
  }
  add({ check: 'schema', status: 'ok', found: `version ${version}` })
  return true
}

/** As in once.database; undefined if it could not be read or is a copy's. That it is well is said by the caller. */
export async function checkDatabaseId(session: Link, add: Add): Promise<string | undefined> {
  try {
    const { rows } = await session.query<{ id: string }>('select once.database_id()::text as id')
    if (rows[0] !== undefined) return rows[0].id
    add({
      check: 'database id',
      status: 'critical',
      found: 'once.database has no row',
      hint: `select once.renew_database_id('the row was gone');`,
    })
  } catch (raw) {
    const error = fromSql(raw)
    if (error instanceof PgonceError && error.code === 'ONCPY') {
      add({
        check: 'database id',
        status: 'critical',
        found: `a copy: it carries the id of another database. ${error.detail ?? ''}`.trim(),
        hint:
          "select once.renew_database_id('copied');   -- if the original lives on\n" +
          "select once.adopt_database_id('moved');    -- if this replaces the original for good",
      })
    } else if (!isDenied(raw)) throw error
  }
  return undefined
}

/**
 * Whether the role may execute what one of the grants gives, as the installed version has it: a role that was granted
 * before an update lacks what came with it.
 *
 * @see sql/role/privilege.sql
 */
export async function checkPrivileges(session: Link, { login, superuser }: Server, add: Add): Promise<void> {
  const check = 'privileges'
  if (superuser) return add({ check, status: 'ok', found: `role ${login} is a superuser and may do all` })
  const { rows } = await session.query<{ kind: string; missing: string[]; total: number }>(`
    select p.kind, count(*)::int4 as total,
           coalesce(array_agg(p.object order by p.object) filter (where f.may is not true), '{}') as missing
      from once.privilege p,
           lateral (select pg_catalog.has_function_privilege(
                      pg_catalog.to_regproc(pg_catalog.format('once.%I', p.object))::oid, 'execute') as may) f
     where p.privileges = 'execute' and p.kind <> 'operator'
     group by 1 order by 1`)
  const can: Record<string, string> = { app: 'process', recover: 'recover and expire keys', monitor: 'look' }
  const full = rows.filter(({ missing }) => missing.length === 0)
  if (full.length > 0) {
    const may = full.map(({ kind }) => can[kind] ?? kind).join(', ')
    return add({ check, status: 'ok', found: `role ${login} may ${may}` })
  }
  // The one that it was probably given, an update ago.
  const nearest = rows.toSorted((a, b) => a.missing.length / a.total - b.missing.length / b.total)[0]
  const missing = nearest?.missing ?? []
  const more = missing.length > 1 ? ` and ${missing.length - 1} more` : ''
  add({
    check,
    status: 'critical',
    found: `role ${login} may not execute once.${missing[0]}${more}`,
    hint: grantLine(nearest?.kind ?? 'app', login),
  })
}

// ---------------------------------------------------------------------------------------------------
// Transactions over several databases

/** The homes of its orphans, which recovery will have to ask. */
export async function checkInDoubt(
  session: Link,
  { login }: Server,
  add: Add,
  chosen: readonly ChosenDatabase[],
  orphanAge: number,
): Promise<readonly string[]> {
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
  if (row === undefined) return []
  const { ours, old, oldest, strange, barred, homes } = row
  if (old > 0) {
    const lines = [
      commandFor('recover', chosen),
      `${commandFor('in-doubt', chosen)}   # shows each, with its outcome`,
    ]
    if (barred !== null)
      lines.unshift(
        `grant ${identifier(barred)} to ${identifier(login)};   -- as a superuser, to finish what it owns`,
      )
    add({
      check: 'in doubt',
      status: 'critical',
      found: `${count(old, 'orphan')} in doubt for over ${sayAge(orphanAge)}, the oldest for ${sayAge(oldest)}`,
      hint: lines.join('\n'),
    })
  } else {
    const found =
      ours === 0 ? 'nothing' : `${count(ours, 'branch', 'branches')}, the oldest for ${sayAge(oldest)}`
    add({ check: 'in doubt', status: 'ok', found })
  }
  if (strange > 0) {
    add({
      check: 'strangers',
      status: 'warn',
      found: `${count(strange, 'prepared transaction')} with our prefix but not ours, left alone`,
      hint: "select gid, owner, prepared_at from once.in_doubt where not ours and gid like 'once:%';",
    })
  }
  return old > 0 ? (homes ?? []) : []
}

export async function checkRecovery(
  session: Link,
  add: Add,
  chosen: readonly ChosenDatabase[],
): Promise<void> {
  const check = 'recovery'
  const row = await look<{ late: number; oldest: number }>(
    session,
    add,
    check,
    `select count(*)::int4 as late, coalesce(extract(epoch from max(clock_timestamp() - g.decided_at)), 0)::float8 as oldest
       from once.global_transaction g
      where g.proven_at is null and g.decided_at < clock_timestamp() - $1::int4 * interval '1 second'`,
    [slow],
  )
  if (row === undefined) return
  if (row.late === 0) return add({ check, status: 'ok', found: 'no decision waits for its proof' })
  add({
    check,
    status: 'warn',
    found: `${count(row.late, 'decision')} not proven, the oldest for ${sayAge(row.oldest)}: does recovery run, and reach all?`,
    hint: `${commandFor('recover', chosen)} --watch   # or once.recovery.start() in a process that lives on`,
  })
}

export async function checkLosses(session: Link, add: Add): Promise<void> {
  const check = 'losses'
  const row = await look<{ n: number; kinds: string | null }>(
    session,
    add,
    check,
    `select count(*)::int4 as n, string_agg(distinct l.kind, ', ') as kinds from once.loss l where l.acknowledged_at is null`,
  )
  if (row === undefined) return
  if (row.n === 0) return add({ check, status: 'ok', found: 'none that is not acknowledged' })
  add({
    check,
    status: 'critical',
    found: `${row.n} not acknowledged (${row.kinds}): one side committed, the other did not`,
    hint:
      'select * from once.loss where acknowledged_at is null;   -- repair the data by hand, then:\n' +
      "select once.acknowledge('…', 'what was repaired');",
  })
}

// ---------------------------------------------------------------------------------------------------
// Messages and positions

export async function checkLedger(session: Link, add: Add): Promise<void> {
  const check = 'ledger'
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
    check,
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
  const { producers, near, full, worst, gaps, limit } = row
  if (near === 0)
    return add({ check, status: 'ok', found: `${count(producers, 'producer')}, none near its limit of gaps` })
  add({
    check,
    status: full > 0 ? 'critical' : 'warn',
    found:
      `${count(near, 'producer')} near or at the limit of gaps; ${worst} has ${gaps} of ${limit}` +
      (full > 0 ? ', so new gaps are refused' : ''),
    hint:
      'select * from once.producers order by gaps desc limit 10;   -- deliver what is missing, or, if it never comes:\n' +
      `select once.set_watermark(${literal(worst ?? '')}, <last sequence to give up>, '<why>');`,
  })
}

export async function checkPositions(session: Link, add: Add): Promise<void> {
  const check = 'positions'
  const row = await look<{ partitions: number; stuck: number; ahead: number }>(
    session,
    add,
    check,
    `select count(*)::int4 as partitions,
            count(*) filter (where l.lag > 0 and l.idle > $1::int4 * interval '1 second')::int4 as stuck,
            count(*) filter (where l.end_position < l."position")::int4 as ahead
       from once.lag l`,
    [slow],
  )
  if (row === undefined) return
  const { partitions, stuck, ahead } = row
  if (stuck > 0) {
    add({
      check,
      status: 'warn',
      found: `${count(stuck, 'partition')} of ${partitions} with lag and no progress for ${sayAge(slow)}`,
      hint: 'select * from once.lag where lag > 0 order by idle desc;',
    })
  }
  if (ahead > 0) {
    add({
      check,
      status: 'warn',
      found: `${count(ahead, 'partition')} of ${partitions} past the reported end: is it the right topic?`,
      hint: 'select * from once.lag where end_position < "position";',
    })
  }
  if (stuck + ahead === 0)
    add({ check, status: 'ok', found: `${count(partitions, 'partition')}, none stuck` })
}

// ---------------------------------------------------------------------------------------------------
// What checks share

/** One row; undefined if the role may not look, which is no fault of the database and is said. */
async function look<R>(
  session: Link,
  add: Add,
  check: string,
  text: string,
  parameters: readonly unknown[] = [],
): Promise<R | undefined> {
  try {
    return (await session.query<R>(text, parameters)).rows[0]
  } catch (error) {
    if (!isDenied(error)) throw error
    add({ check, status: 'skipped', found: 'not looked at: this role may not' })
    return undefined
  }
}

function isDenied(error: unknown): boolean {
  return codeOf(error) === '42501'
}

function grantLine(grant: string, login: string): string {
  return `select once.grant_${grant}(${literal(login)});   -- as the owner of schema once`
}
