/**
 * `pgonce doctor`: looks at every database and says what is wrong with it, and what to type: `once.health`, and what
 * must be known before schema once is there, concerns the connecting role, or what no database knows of the others.
 */
import { schemaVersion, withLink } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { literal } from '../connection/quote.ts'
import { describeTarget } from '../connection/url.ts'
import { codeOf, fromSql, PgonceError } from '../errors.ts'
import {
  type ChosenDatabase,
  chooseDatabases,
  type DatabaseFlags,
  databasesVariable,
  openOne,
} from './databases.ts'
import { count, paint, print, printJson, sayAge, table } from './output.ts'

const styles = { ok: 'green', warn: 'yellow', critical: 'red', skipped: 'dim' } as const

type Status = keyof typeof styles

/** One thing that was looked at. */
export interface Check {
  readonly database: string
  readonly check: string
  /** `skipped`: this role may not look there. */
  readonly status: Status
  readonly found: string
  /** What to type, a line each; null if there is nothing to do. */
  readonly hint: string | null
}

interface DoctorFlags extends DatabaseFlags {
  readonly maxConnections: number
}

export async function runDoctor(urls: readonly string[], flags: DoctorFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const examined = await Promise.all(chosen.map((one) => examine(one, flags.maxConnections)))
  for (const one of examined) compare(one, examined)
  const checks = examined.flatMap((one) => one.checks)
  const number = (status: Status) => checks.filter((one) => one.status === status).length
  const [critical, warnings] = [number('critical'), number('warn')]
  if (critical > 0) process.exitCode = 1
  if (flags.json) return printJson({ ok: critical === 0, critical, warnings, checks })

  const rows = checks
    .filter(({ found }) => found !== nothing)
    .map(({ database, check, status, found, hint }) => ({
      cells: [database, check, { text: status, style: styles[status] }, found],
      notes: hint?.split('\n').map((line) => `→ ${line}`) ?? [],
    }))
  print(`${table(['database', 'check', 'status', 'found'], rows)}\n`)
  const well = number('skipped') > 0 ? 'Nothing is wrong in what the role may look at, in' : 'All is well in'
  if (critical + warnings === 0) print(paint(`${well} ${count(chosen.length, 'database')}.`, 'green'))
  else print(`${critical} critical, ${count(warnings, 'warning')} in ${count(chosen.length, 'database')}.`)
}

/** What the table for people leaves out. */
const nothing = 'nothing to look at'

// ---------------------------------------------------------------------------------------------------
// One database

type Finding = readonly [status: Status, found: string, hint?: string | null | undefined]

interface Examined {
  readonly name: string
  readonly checks: Check[]
  add(check: string, ...finding: Finding): void
  /** As in once.database; undefined if it could not be read or is a copy's. */
  id?: string
  /** The homes of what is in doubt in it. */
  homes: readonly string[]
}

/** Milliseconds for all questions to a database together. */
const patience = 15_000

/** @param maxConnections transactions that clients run at once, each of which may prepare */
async function examine(chosen: ChosenDatabase, maxConnections: number): Promise<Examined> {
  const { name, url, from } = chosen
  // What is in the environment is found there by the next command, too.
  const flag = from === databasesVariable ? '' : ` --database ${name}='${describeTarget(url)}'`
  const install = `pgonce migrate${flag}`
  const checks: Check[] = []
  const add = (check: string, ...[status, found, hint = null]: Finding) =>
    void checks.push({ database: name, check, status, found, hint: status === 'ok' ? null : hint })
  const one: Examined = { name, checks, add, homes: [] }
  let connected = false
  const look = async (session: Link) => {
    connected = true
    const before = performance.now()
    const { rows } = await session.query<ServerRow>(askServer, [maxConnections, Date.now() / 1000, install])
    add('reachable', 'ok', `answers in ${(performance.now() - before).toFixed(1)} ms`)
    for (const { check, status, found, hint } of rows) add(check, status, found, hint)
    const [server] = rows
    if (!server?.usable) return
    const version = await only<number>(session, 'select once.schema_version() as value')
    if (version !== schemaVersion) {
      const [needs, hint] =
        version < schemaVersion ? ['needs', install] : ['knows only', 'npm install pgonce@latest']
      return add('schema', 'critical', `version ${version}; this pgonce ${needs} ${schemaVersion}`, hint)
    }
    add('schema', 'ok', `version ${version}`)
    try {
      one.id = await only<string>(session, 'select once.database_id()::text as value')
    } catch (error) {
      add('database id', ...notIdentified(error))
    }
    if (server.standby) return
    add('privileges', ...(await findPrivileges(session, server.login)))
    await examineHealth(session, server.login, one)
    const homes = 'select array(select distinct b.home::text from once.branch b where b.ours) as value'
    one.homes = await only<string[]>(session, homes)
  }
  try {
    await withLink(openOne(chosen).connect(), look, patience)
  } catch (error) {
    const { message } = error as Error
    const [check, found] = connected ? ['answers', `stopped looking: ${message}`] : ['reachable', message]
    add(check, 'critical', found, `psql '${describeTarget(url)}' -c 'select 1'`)
  }
  return one
}

interface ServerRow extends Omit<Check, 'database'> {
  readonly standby: boolean
  readonly login: string
  /** Schema once: whether it is there, pgonce made it, and we may look inside. */
  readonly usable: boolean
}

/**
 * Works on any Postgres, and without schema once. $1: transactions that may prepare at once. $2: the time here, in
 * seconds; by the servers' clocks keys are dated and retention is applied. $3: the command that installs.
 */
const askServer = `
  select c.*, s.standby, s.login, s.schema = 'open' as usable
    from (select pg_catalog.current_setting('server_version') as release,
                 pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as version,
                 pg_catalog.pg_is_in_recovery() as standby,
                 pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool as read_only,
                 (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
                  - $2::pg_catalog.float8)::pg_catalog.int4 as ahead,
                 pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4 as slots,
                 current_user::pg_catalog.text as login,
                 case when n.oid is null then 'missing'
                      when p.oid is null then 'foreign'
                      when pg_catalog.has_schema_privilege(n.oid, 'usage')
                           and pg_catalog.has_function_privilege(p.oid, 'execute') then 'open'
                      else 'closed' end as schema
            from (select) x
            left join pg_catalog.pg_namespace n on n.nspname = 'once'
            left join pg_catalog.pg_proc p on p.pronamespace = n.oid and p.proname = 'schema_version') s,
         lateral (values
           ('server', case when s.version < 150000 then 'critical' else 'ok' end,
            'Postgres ' || s.release, 'upgrade the server: pgonce needs 15 or later'),
           ('primary', case when s.standby or s.read_only then 'critical' else 'ok' end,
            case when s.standby then 'a standby: it can neither write nor decide'
                 when s.read_only
                 then 'default_transaction_read_only is on: whoever writes is refused with 25006'
                 else 'yes' end,
            case when s.standby then 'give the URL of its primary'
                 else 'select * from pg_db_role_setting;   -- who set it? A full disk is a reason. Then, '
                      'for example:\nalter database … reset default_transaction_read_only;' end),
           ('clock', case when pg_catalog.abs(s.ahead) > 60 then 'warn' else 'ok' end,
            pg_catalog.format('%s s %s the clock here', pg_catalog.abs(s.ahead),
                              case when s.ahead < 0 then 'behind' else 'ahead of' end),
            'set the clocks by NTP: keys are dated and expired by those of the servers'),
           ('prepared transactions',
            case when s.slots = 0 then 'critical' when s.slots < $1 then 'warn' else 'ok' end,
            pg_catalog.format('%s at once', s.slots),
            pg_catalog.format('alter system set max_prepared_transactions = %s;   -- then restart the server: '
                              '%s transactions may prepare at once', greatest(100, $1), $1::pg_catalog.int4)),
           ('schema', case when s.schema <> 'open' then 'critical' end,
            case s.schema when 'missing' then 'schema once is not installed'
                          when 'foreign'
                          then 'there is a schema once that pgonce did not make, or did not complete'
                          else pg_catalog.format('role %s may not use schema once', s.login) end,
            case s.schema when 'missing' then $3
                          when 'foreign' then 'alter schema once rename to other;   -- then: ' || $3
                          else pg_catalog.format('select once.grant_app(%L);   -- as the owner of schema once',
                                                 s.login) end)
         ) c ("check", status, found, hint)
   where c.status is not null`

function notIdentified(raw: unknown): Finding {
  const error = fromSql(raw)
  if (!(error instanceof PgonceError)) throw error
  return ['critical', `${error.message}. ${error.detail ?? ''}`.trim(), error.hint]
}

/**
 * Whether the role may execute what one of the grants gives, as the installed version has it: a role that was granted
 * before an update lacks what came with it.
 *
 * @see sql/role/privilege.sql
 */
async function findPrivileges(session: Link, login: string): Promise<Finding> {
  // First the grant that it was probably given, an update ago.
  const { rows } = await session.query<{ kind: string; may: string; missing: string[] }>(`
    select p.kind, case p.kind when 'app' then 'process' when 'monitor' then 'look'
                               else 'recover and expire keys' end as may,
           coalesce(array_agg(p.object order by p.object) filter (where f.may is not true), '{}') as missing
      from once.privilege p,
           lateral (select pg_catalog.has_function_privilege(
                      pg_catalog.to_regproc(pg_catalog.format('once.%I', p.object))::oid, 'execute') as may) f
     where p.privileges = 'execute' and p.kind <> 'operator'
     group by 1 order by avg((f.may is not true)::int4), 1`)
  const full = rows.filter(({ missing }) => missing.length === 0)
  if (full.length > 0) return ['ok', `role ${login} may ${full.map(({ may }) => may).join(', ')}`]
  const [{ kind, missing } = { kind: 'app', missing: [] }] = rows
  const more = missing.length > 1 ? ` and ${missing.length - 1} more` : ''
  return ['critical', `role ${login} may not execute once.${missing[0]}${more}`, grantLine(kind, login)]
}

function grantLine(kind: string, login: string): string {
  return `select once.grant_${kind}(${literal(login)});   -- as the owner of schema once`
}

interface HealthRow {
  /** Its unit stands last in it: `…_seconds`, `…_bytes`, `…_ratio`. */
  readonly name: string
  readonly status: 'ok' | 'warn' | 'critical'
  /** Null if there is nothing to look at. */
  readonly value: number | null
  readonly warn: number | null
  readonly critical: number | null
  readonly hint: string | null
}

/** Every check of `once.health`. Its limits are in SQL, and nowhere else. @see sql/operator/health.sql */
export async function readHealth(session: Link): Promise<readonly HealthRow[]> {
  const { rows } = await session.query<HealthRow>(
    `select h.name, h.status, h.value::float8 as value, h.warn::float8 as warn,
            h.critical::float8 as critical, h.hint
       from once.health h`,
  )
  return rows
}

async function examineHealth(session: Link, login: string, { add }: Examined): Promise<void> {
  try {
    for (const row of await readHealth(session)) add(row.name, row.status, sayHealth(row), row.hint)
  } catch (error) {
    if (codeOf(error) !== '42501') throw error
    add('health', 'skipped', 'not looked at: this role may not', grantLine('monitor', login))
  }
}

/** The value with its unit, and the limit that it has reached. */
function sayHealth({ name, status, value, ...limits }: HealthRow): string {
  if (value === null) return nothing
  const say = (number: number) => {
    if (name.endsWith('_seconds')) return sayAge(number)
    return name.endsWith('_ratio') ? `${Math.round(number * 100)} %` : number.toLocaleString('en-US')
  }
  const limit = status === 'ok' ? null : limits[status]
  return `${say(value)}${limit === null ? '' : ` (${status} from ${say(limit)} on)`}`
}

/** The only value of the only row. */
async function only<T>(session: Link, text: string): Promise<T> {
  return (await session.query<{ value: T }>(text)).rows[0]?.value as T
}

/** What no database knows of the others: whether they are one, and whether the homes of its branches are among them. */
function compare({ name, id, homes, add }: Examined, all: readonly Examined[]): void {
  const same = all.filter((other) => id !== undefined && other.id === id && other.name !== name)
  const names = same.map((other) => other.name).join(', ')
  const hint = 'give each database one name only: both halves of a transaction would wait for each other'
  if (same.length > 0) add('database id', 'critical', `the same database as ${names} (${id})`, hint)
  else if (id !== undefined) add('database id', 'ok', id)
  const missing = homes.filter((home) => !all.some((other) => other.id === home))
  const lines = missing.map((home) => `name the one too that answers ${home} to: select once.database_id();`)
  const found = 'branches are in doubt here whose home is none of the databases given'
  if (missing.length > 0) add('homes', 'warn', found, lines.join('\n'))
}
