import test from 'ava'
import type { Check } from '../../src/cli/doctor.ts'
import { named, pgonceCli } from '../support/cli.ts'
import {
  connect,
  emptyDatabase,
  installSchema,
  makeStandby,
  ownServer,
  randomName,
  testDatabase,
  testRole,
} from '../support/database.ts'
import { leaveBehind } from '../support/orphan.ts'
import { serverUrl } from '../support/servers.ts'

test('a healthy pair of databases passes every check', async (t) => {
  const [orders, billing] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const { exitCode, checks, ok } = await doctor(...named({ orders, billing }))
  t.is(exitCode, 0)
  t.true(ok)
  // The test servers run with fsync off, which is worth a warning.
  const bad = checks.filter(({ status }) => status !== 'ok')
  t.deepEqual([...new Set(bad.map(({ check }) => check))].filter(isOwn), ['unsafe_settings'])
  const names = (await orders.sql`select name from once.health`).map(({ name }) => name as string)
  t.true(names.length > 20)
  for (const check of [
    'reachable',
    'server',
    'primary',
    'clock',
    'schema',
    'database id',
    'privileges',
    ...names,
  ]) {
    t.deepEqual(
      checks.filter((one) => one.check === check).map(({ database }) => database),
      ['orders', 'billing'],
      check,
    )
  }
})

test('the table for people shows each finding, and what to type below it', async (t) => {
  const { url } = await emptyDatabase(t)
  const { exitCode, stdout } = await pgonceCli(['doctor', ...named({ orders: url })])
  t.is(exitCode, 1)
  t.regex(stdout, /^DATABASE +CHECK +STATUS +FOUND$/m)
  t.regex(stdout, /^orders +schema +critical +schema once is not installed$/m)
  t.true(stdout.includes(`    → pgonce migrate --database orders='${url}'\n`))
  t.regex(stdout, /^1 critical, 0 warnings in 1 database\.$/m)
  // Not a terminal: no colors.
  t.false(stdout.includes('\u001b'))
})

test('what doctor says to type installs the schema', async (t) => {
  const { url } = await emptyDatabase(t)
  const env = { PGONCE_DATABASES: `orders=${url}` }
  const before = await doctorIn(env)
  const line = find(before.checks, 'schema').hint
  t.is(line, 'pgonce migrate')
  t.is((await pgonceCli(['migrate'], env)).exitCode, 0)
  t.is((await doctorIn(env)).exitCode, 0)
})

test('a schema once of somebody else, of another version, or out of bounds is critical', async (t) => {
  const foreign = await emptyDatabase(t)
  await foreign.sql`create schema once`
  const newer = await testDatabase(t)
  await newer.sql.unsafe(
    'create or replace function once.schema_version() returns int language sql immutable as $$ select 999 $$',
  )
  const closed = await testDatabase(t)
  const role = await testRole(t, closed)
  const { exitCode, checks } = await doctor(...named({ foreign, newer, closed: closed.urlAs(role) }))
  t.is(exitCode, 1)
  const schema = (database: string) => find(checks, 'schema', database)
  t.deepEqual(
    ['foreign', 'newer', 'closed'].map((name) => schema(name).status),
    ['critical', 'critical', 'critical'],
  )
  t.regex(schema('foreign').found, /did not make/)
  t.regex(schema('newer').found, /version 999/)
  t.regex(schema('newer').hint ?? '', /npm install/)
  t.is(schema('closed').hint, `select once.grant_app('${role}');   -- as the owner of schema once`)
})

test('an unreachable database does not keep the others from being examined', async (t) => {
  const orders = await testDatabase(t)
  const gone = serverUrl('a', randomName('gone'))
  const { exitCode, checks } = await doctor(...named({ orders, gone }))
  t.is(exitCode, 1)
  t.is(find(checks, 'schema', 'orders').status, 'ok')
  t.deepEqual(
    checks.filter(({ database }) => database === 'gone').map(({ check, status }) => [check, status]),
    [['reachable', 'critical']],
  )
})

test('a copied database is told from its original, and what to type is said', async (t) => {
  const orders = await testDatabase(t)
  const copy = await testDatabase(t)
  // What a template, a dump or a restored backup carries: another database's database id.
  const [row] =
    await orders.sql`select id, system_identifier::text as system, database_oid::text as oid from once.database`
  await copy.sql`update once.database
                    set id = ${row?.id}, system_identifier = ${row?.system}::bigint, database_oid = ${row?.oid}::oid`
  const { exitCode, checks } = await doctor(...named({ orders, copy }))
  t.is(exitCode, 1)
  t.is(find(checks, 'database id', 'orders').status, 'ok')
  const databaseId = find(checks, 'database id', 'copy')
  t.is(databaseId.status, 'critical')
  t.regex(databaseId.found, /copy/)
  const [line] = /select once\.renew_database_id\('copied'\)/.exec(databaseId.hint ?? '') ?? []
  await copy.sql.unsafe(line ?? '')
  t.regex(databaseId.hint ?? '', /select once\.adopt_database_id\('moved'\)/)
  t.is((await doctor(...named({ orders, copy }))).exitCode, 0)
})

test('two names for one database are critical', async (t) => {
  const orders = await testDatabase(t)
  const { exitCode, checks } = await doctor(...named({ orders, billing: orders.url }))
  t.is(exitCode, 1)
  t.regex(find(checks, 'database id', 'orders').found, /same database as billing/)
  t.regex(find(checks, 'database id', 'billing').found, /same database as orders/)
})

test('privileges are those that the grants give, all of them', async (t) => {
  const { sql, urlAs, ...rest } = await testDatabase(t)
  const role = await testRole(t, { sql, urlAs, ...rest })
  const privileges = async () => find((await doctor(urlAs(role))).checks, 'privileges')

  await sql`select once.grant_monitor(${role})`
  t.like(await privileges(), { status: 'ok', found: `role ${role} may look` })
  await sql`select once.grant_app(${role})`
  await sql`select once.grant_recover(${role})`
  t.like(await privileges(), {
    status: 'ok',
    found: `role ${role} may process, look, recover and expire keys`,
  })
  // As after an update that brought a function: nobody was granted it yet.
  await sql.unsafe(`revoke execute on function once.database_id() from ${role};
                    grant execute on function once.database_id() to ${role};
                    revoke execute on function once.claim(text, bigint, integer, boolean, bigint) from ${role};
                    revoke execute on function once.unproven(integer, timestamptz, uuid) from ${role}`)
  const lacking = await privileges()
  t.is(lacking.status, 'critical')
  t.regex(lacking.found, /may not execute once\.(claim|unproven)$/)
  t.regex(lacking.hint ?? '', new RegExp(`^select once\\.grant_(app|monitor|recover)\\('${role}'\\);`))
  await sql.unsafe((lacking.hint ?? '').split(';')[0] ?? '')
  t.is((await privileges()).status, 'ok')
})

test('an application role passes', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  const { exitCode, checks } = await doctor(database.urlAs(role))
  t.is(exitCode, 0, JSON.stringify(checks.filter(({ status }) => status === 'critical')))
})

test('a server that takes no prepared transactions, or a standby, is critical', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 0, synchronous_commit: 'off' })
  await installSchema(server.url())
  const without = await doctor(server.url())
  t.is(without.exitCode, 1)
  const slots = find(without.checks, 'prepared transactions')
  t.is(slots.status, 'critical')
  t.regex(slots.hint ?? '', /^alter system set max_prepared_transactions = \d+;/)
  t.like(find(without.checks, 'unsafe_settings'), { status: 'warn', found: '2 (warn from 1 on)' })

  await makeStandby(server)
  const standby = await doctor(server.url())
  t.is(standby.exitCode, 1)
  t.is(find(standby.checks, 'primary').status, 'critical')
})

test('slots that run out are critical, and fewer than may be needed are worth a warning', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 2 })
  await installSchema(server.url())
  const slots = async (...args: string[]) =>
    find((await doctor(server.url(), ...args)).checks, 'prepared transactions')
  t.like(await slots(), { status: 'warn' })
  t.like(await slots('--max-connections', '2'), { status: 'ok' })
  const sql = connect(t, server.url())
  for (const gid of ['one', 'two']) {
    await sql.unsafe(`begin; select pg_current_xact_id()`)
    await sql.unsafe(`prepare transaction '${gid}'`)
  }
  const { checks } = await doctor(server.url())
  t.like(find(checks, 'prepared_slots_used_ratio'), {
    status: 'critical',
    found: '100 % (critical from 90 % on)',
  })
})

test('every check of once.health is shown with its value, its limit and what to type', async (t) => {
  const [orders, billing] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  await leaveBehind(orders, { billing })
  await orders.sql`select once.claim_batch('shop', array[2, 4, 6, 8, 10])`
  await orders.sql`update once.producer set max_gaps = 5`
  await orders.sql`select once.record_loss(gen_random_uuid(), 'billing', gen_random_uuid(), 'lost branch')`
  await orders.sql`update once.global_transaction set decided_at = now() - interval '1 hour'`
  const { exitCode, checks } = await doctor(...named({ orders, billing }))
  t.is(exitCode, 1)
  t.like(find(checks, 'in_doubt', 'billing'), { status: 'ok', found: '1', hint: null })
  t.like(find(checks, 'decided_unfinished_seconds', 'billing'), { found: 'nothing to look at' })
  const missing = find(checks, 'missing_evidence_seconds', 'orders')
  t.is(missing.status, 'critical')
  t.regex(missing.found, /^6\d min \(critical from 10 min on\)$/)
  for (const { name, status, hint } of await orders.sql`select name, status, hint from once.health`) {
    if (shared.includes(name)) continue
    t.like(find(checks, name, 'orders'), { status, hint }, name)
  }
  t.is(find(checks, 'unacknowledged_losses', 'orders').status, 'critical')
  t.regex(find(checks, 'producer_gaps_ratio', 'orders').hint ?? '', /once\.set_watermark/)
  const { stdout } = await pgonceCli(['doctor', ...named({ orders, billing })])
  t.regex(stdout, /^orders +unacknowledged_losses +critical +1 \(critical from 1 on\)$/m)
  t.notRegex(stdout, /nothing to look at/)
})

test('a branch whose home is not among the databases given is worth a warning that names it', async (t) => {
  const [orders, billing] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  await leaveBehind(orders, { billing })
  const [{ id }] = await orders.sql<[{ id: string }]>`select once.database_id()::text as id`
  const alone = find((await doctor(...named({ billing }))).checks, 'homes')
  t.like(alone, {
    status: 'warn',
    hint: `name the one too that answers ${id} to: select once.database_id();`,
  })
  const both = await doctor(...named({ orders, billing }))
  t.false(both.checks.some(({ check }) => check === 'homes'))
})

test('a database that somebody made read-only is critical', async (t) => {
  const database = await testDatabase(t)
  await database.sql.unsafe(`alter database ${database.name} set default_transaction_read_only = on`)
  const { exitCode, checks } = await doctor(...named({ orders: database }))
  t.is(exitCode, 1)
  t.like(find(checks, 'primary'), { status: 'critical' })
  t.regex(find(checks, 'primary').hint ?? '', /pg_db_role_setting/)
})

test('row level security on our tables is critical for the owner, and told from a copy for the others', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  await database.sql`alter table once.database enable row level security`
  const owner = await doctor(...named({ orders: database }))
  t.like(find(owner.checks, 'row_security_tables'), {
    status: 'critical',
    found: '1 (critical from 1 on)',
  })
  const { checks } = await doctor(database.urlAs(role))
  const databaseId = find(checks, 'database id')
  t.is(databaseId.status, 'critical')
  t.regex(databaseId.found, /row level security hides the id of database/)
  t.notRegex(databaseId.hint ?? '', /renew/)
  await database.sql.unsafe((databaseId.hint ?? '').split(';')[0] ?? '')
  t.is((await doctor(database.urlAs(role))).exitCode, 0)
})

test('what a role may not look at is skipped, not called well', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  const { exitCode, ok, checks } = await doctor(database.urlAs(role))
  t.is(exitCode, 0)
  t.true(ok)
  t.deepEqual(
    checks.filter(({ status }) => status === 'skipped').map(({ check, hint }) => [check, hint]),
    [['health', `select once.grant_monitor('${role}');   -- as the owner of schema once`]],
  )
  const { stdout } = await pgonceCli(['doctor', database.urlAs(role)])
  t.regex(stdout, / {2}skipped +not looked at: this role may not$/m)
  await database.sql`select once.grant_monitor(${role})`
  t.false((await doctor(database.urlAs(role))).checks.some(({ status }) => status === 'skipped'))
})

/** Checks of the whole cluster, on which other tests run. */
const shared = ['prepared_slots_used_ratio', 'elsewhere_xid_age']
const isOwn = (check: string) => !shared.includes(check)

async function doctor(...args: string[]) {
  return await doctorIn({}, ...args)
}

async function doctorIn(env: NodeJS.ProcessEnv, ...args: string[]) {
  const { exitCode, stdout, stderr } = await pgonceCli(['doctor', '--json', ...args], env)
  if (stderr !== '') throw new Error(stderr)
  const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: Check[] }
  return { exitCode, ok, checks }
}

function find(checks: readonly Check[], check: string, database?: string): Check {
  const found = checks.find(
    (one) => one.check === check && (database === undefined || one.database === database),
  )
  if (found === undefined) throw new Error(`no check ${check} of ${database} in ${JSON.stringify(checks)}`)
  return found
}
