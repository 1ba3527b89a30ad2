/**
 * What `pgonce doctor` looks at in one database besides `once.health`: what SQL cannot ask, what must be known before
 * schema once is there, and what concerns the connecting role. Each finding says what to type.
 */
import { schemaVersion } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { literal } from '../connection/quote.ts'
import { fromSql, PgonceError } from '../errors.ts'
import { type ChosenDatabase, commandFor } from './databases.ts'

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

// ---------------------------------------------------------------------------------------------------
// The server

export interface Server {
  readonly release: string
  readonly server: number
  readonly standby: boolean
  readonly read_only: string
  /** Seconds since 1970, by its clock. */
  readonly clock: number
  readonly slots: number
  readonly login: string
  readonly superuser: boolean
  /** Schema once: whether it exists, we may look inside, and pgonce made it. */
  readonly exists: boolean
  readonly usage: boolean
  readonly installed: boolean
  readonly allowed: boolean
}

/** Seconds. Keys are dated and retention is applied by the servers' clocks. */
const clockTolerance = 60

/** @param maxConnections transactions that clients run at once, each of which may prepare */
export async function checkServer(session: Link, add: Add, maxConnections: number): Promise<Server> {
  const server = await askServer(session)
  const { release, standby, read_only, slots } = server
  /** The first fault that there is, or that all is well. */
  const say = (check: string, well: string, ...faults: (Fault | false)[]) =>
    add({ check, ...(faults.find((fault) => fault !== false) ?? { status: 'ok', found: well }) })
  say(
    'server',
    `Postgres ${release}`,
    server.server < 150_000 &&
      critical(`Postgres ${release}; pgonce needs 15 or later`, 'upgrade the server'),
  )
  say(
    'primary',
    'yes',
    standby && critical('a standby: it can neither write nor decide', 'give the URL of its primary'),
    read_only === 'on' &&
      critical(
        'default_transaction_read_only is on: whoever writes is refused with 25006',
        'select * from pg_db_role_setting;   -- who set it? A full disk is a reason. Then, for example:\n' +
          'alter database … reset default_transaction_read_only;',
      ),
  )
  const ahead = Math.round(server.clock - Date.now() / 1000)
  const apart = `${Math.abs(ahead)} s ${ahead < 0 ? 'behind' : 'ahead of'} the clock here`
  const byNtp = 'set the clocks by NTP: keys are dated and expired by those of the servers'
  say('clock', apart, Math.abs(ahead) > clockTolerance && { status: 'warn', found: apart, hint: byNtp })
  const most = Math.max(100, maxConnections)
  const hint = `alter system set max_prepared_transactions = ${most};   -- then restart the server`
  const few = `${slots} at once, fewer than the ${maxConnections} transactions that may prepare`
  say(
    'prepared transactions',
    `${slots} at once`,
    slots === 0 && critical('max_prepared_transactions is 0: no transaction over several databases', hint),
    slots < maxConnections && { status: 'warn', found: few, hint },
  )
  return server
}

type Fault = Omit<Finding, 'check'>

function critical(found: string, hint: string): Fault {
  return { status: 'critical', found, hint }
}

/** Works on any Postgres, and without schema once. */
async function askServer(session: Link): Promise<Server> {
  const { rows } = await session.query<Server>(`
    select pg_catalog.current_setting('server_version') as release,
           pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as server,
           pg_catalog.pg_is_in_recovery() as standby,
           pg_catalog.current_setting('default_transaction_read_only') as read_only,
           pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) as clock,
           pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4 as slots,
           current_user::pg_catalog.text as login,
           (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) as superuser,
           n.oid is not null as "exists",
           coalesce(pg_catalog.has_schema_privilege(n.oid, 'usage'), false) as usage,
           p.oid is not null as installed,
           coalesce(pg_catalog.has_function_privilege(p.oid, 'execute'), false) as allowed
      from (select) x
      left join pg_catalog.pg_namespace n on n.nspname = 'once'
      left join pg_catalog.pg_proc p on p.pronamespace = n.oid and p.proname = 'schema_version'`)
  return rows[0] as Server
}

// ---------------------------------------------------------------------------------------------------
// Schema once, and who we are in it

/** Whether all further checks can be made. */
export async function checkSchema(
  session: Link,
  { exists, installed, usage, allowed, login }: Server,
  add: Add,
  database: ChosenDatabase,
): Promise<boolean> {
  const install = commandFor('migrate', [database])
  const refuse = (found: string, hint: string) => {
    add({ check: 'schema', status: 'critical', found, hint })
    return false
  }
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
  if (version > schemaVersion)
    return refuse(`version ${version}; this pgonce knows only ${schemaVersion}`, 'npm install pgonce@latest')
  add({ check: 'schema', status: 'ok', found: `version ${version}` })
  return true
}

/** As in once.database; undefined if it could not be read or is a copy's. That it is well is said by the caller. */
export async function checkDatabaseId(session: Link, add: Add): Promise<string | undefined> {
  try {
    const { rows } = await session.query<{ id: string }>('select once.database_id()::text as id')
    return rows[0]?.id
  } catch (raw) {
    const error = fromSql(raw)
    if (!(error instanceof PgonceError)) throw error
    const isCopy = error.code === 'ONCPY'
    add({
      check: 'database id',
      status: 'critical',
      found: `${error.message}. ${error.detail ?? ''}`.trim(),
      hint: isCopy
        ? "select once.renew_database_id('copied');   -- if the original lives on\n" +
          "select once.adopt_database_id('moved');    -- if this replaces the original for good"
        : (error.hint ?? null),
    })
    return undefined
  }
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

export function grantLine(kind: string, login: string): string {
  return `select once.grant_${kind}(${literal(login)});   -- as the owner of schema once`
}
