import { randomUUID } from 'node:crypto'
import test, { type ExecutionContext } from 'ava'
import { connect, randomName, type TestDatabase, testDatabase, testRole } from '../support/database.ts'
import { expireAll } from '../support/ledger.ts'
import { oneValue, openSession, refused, rowsOf } from '../support/sql.ts'
import { until } from '../support/until.ts'

type Grant = 'app' | 'recover' | 'monitor'

async function withRole(t: ExecutionContext, grant: Grant, database?: TestDatabase) {
  const own = database ?? (await testDatabase(t))
  const role = await testRole(t, own)
  await own.sql.unsafe(`select once.grant_${grant}('${role}')`)
  return { database: own, role, session: await openSession(t, own.urlAs(role)) }
}

/** Each of these statements fails for want of a privilege. */
async function allForbidden(t: ExecutionContext, url: string, statements: readonly string[]): Promise<void> {
  const a = await openSession(t, url)
  const others: unknown[] = []
  for (const statement of statements) {
    await a.sql`begin`
    const answer = await a.rows(statement).then(
      () => 'no error',
      (error) => error.code,
    )
    if (answer !== '42501') others.push([statement, answer])
    await a.sql`rollback`
  }
  t.deepEqual(others, [])
}

const tables = [
  'privilege',
  'database',
  'intervention',
  'producer',
  'scope',
  'message',
  'claimed_ahead',
  'expiry',
  'expired_claim',
  'consumer_position',
  'topic_end',
  'global_transaction',
  'evidence',
  'loss',
  'heuristic',
  'recovery',
  'peer',
]
const views = [
  'producers',
  'lag',
  'in_doubt',
  'blocked',
  'in_doubt_elsewhere',
  'heuristics',
  'health',
  'branch',
]
const destruction = tables.flatMap((name) => [
  `truncate once.${name}`,
  `drop table once.${name}`,
  `alter table once.${name} add column x int`,
])

const id = '11111111-1111-4111-8111-111111111111'
const operators = [
  `select once.set_watermark('p', 5, 'x')`,
  `select once.set_retention('s', '1 day')`,
  `select once.set_key_times('s', true)`,
  `select once.reset_position('g', 't', 0, 5, 'x')`,
  `select once.acknowledge('${id}', 'x')`,
  `select once.force('x', 'commit', 'x')`,
  `select once.add_peer('x')`,
  `select once.grant_operator('postgres')`,
  `select once.renew_database_id('x')`,
  `select once.adopt_database_id('x')`,
  `select once.record_intervention('x', '{}', 'x')`,
  `select once.grant_app('postgres')`,
  `select once.grant_recover('postgres')`,
  `select once.grant_monitor('postgres')`,
  `select once.grant_kind('app', 'postgres')`,
  `call once.allow('app', 'expire')`,
]

test('A login that was granted nothing can do nothing', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.claim_key('s', 'k', '2024-01-01')`
  const calls = await rowsOf(
    database.sql,
    `select format('select * from once.%I(%s)', proname,
                   (select string_agg('null::' || t, ', ') from unnest(proargtypes::regtype[]) t))
       from pg_proc where pronamespace = 'once'::regnamespace`,
  )
  t.true(calls.length > 40)
  await allForbidden(t, database.urlAs(role), [
    ...calls.map(([call]) => String(call)),
    ...[...tables, ...views].map((name) => `select * from once.${name}`),
    'create table once.mine (n int)',
    `select 'once.database'::regclass`,
  ])
})

test('grant_app is enough to claim, keep results and expire', async (t) => {
  const { database, session: a } = await withRole(t, 'app')
  t.is(await a.value(`select once.schema_version()`), 1)
  t.is(await a.value(`select once.claim('p', 0)`), 'claimed')
  t.is(await a.value(`select once.claim('p', 5)`), 'claimed')
  t.is(await a.value(`select once.claim('p', 5, 1)`), 'duplicate')
  t.deepEqual(await a.rows(`select once.claim_batch('p', array[1, 2, 5], 1, true)`), [['1'], ['2']])
  await refused(t, a.rows(`select once.claim('p', 9, 1, true)`), 'ONGAP')
  await refused(t, a.rows(`select once.claim('p', 9)`), 'ONFEN')
  for (const time of ['null', `'2024-01-01'`]) {
    t.is(await a.value(`select status from once.claim_key('s', 'a', ${time}, '\\x01')`), 'claimed')
    await a.rows(`select once.keep_result('s', 'a', '7', ${time})`)
    t.deepEqual(await a.rows(`select * from once.claim_key('s', 'a', ${time}, '\\x01')`), [['duplicate', 7]])
    await refused(t, a.rows(`select * from once.claim_key('s', 'a', ${time}, '\\x02')`), 'ONPAY')
  }
  t.deepEqual(
    await a.rows(`select status from once.claim_key_batch('s', '{a,b}', '{2024-01-01,2024-01-02}')`),
    [['duplicate'], ['claimed']],
  )
  t.is(await a.value(`select once.claim('new', 3, start_at => 3)`), 'claimed')
  t.is(await a.value(`select once.claim_ranges('p', '{[3,4]}', 1)::text`), '{[3,5)}')
  t.is(await a.value(`select once.claim_keys('s', '{c,d}')`), 'claimed')
  t.is(await a.value(`select once.claim_keys('s', '{a,e}')`), '[{"result":7},"claimed"]')
  await database.sql`select once.set_key_times('v7', true)`
  t.is(
    await a.value(`select status from once.claim_key('v7', '018dfb74-1f40-7000-8000-000000000000')`),
    'claimed',
  )
  await database.sql`select once.set_retention('s', '1 day')`
  await database.sql`select once.expire()`
  t.is(await a.value(`select status from once.claim_key('s', 'new', '2024-01-01')`), 'expired')
  t.is(await a.value(`select status from once.claim_key('other', 'new', '2024-01-01')`), 'claimed')
  t.is(await a.value(`select once.message_time('x')`), null)
  t.true((await a.rows('select * from once.producers')).length > 0)
})

test('grant_app is enough to move positions', async (t) => {
  const { session: a } = await withRole(t, 'app')
  await a.rows(`select once.take_partition('g', 't', 0, 'me')`)
  t.is(await a.value(`select epoch from once.take_partition('g', 't', 0, 'me')`), 2)
  await a.rows(`select once.advance('g', 't', 0, 2, null, 5)`)
  await refused(t, a.rows(`select once.advance('g', 't', 0, 1, 5, 6)`), 'ONFEN')
  await refused(t, a.rows(`select once.advance('g', 'other', 0, 1, 5, 6)`), 'ONTKN')
  await a.rows(`select once.report_end('t', 0, 9)`)
  await a.rows(`select once.report_end('t', 0, 10)`)
  t.deepEqual(await a.rows('select lag, owner from once.lag'), [['5', 'me']])
  t.deepEqual(await a.rows(`select position from once.read_position('g', 't', 0)`), [['5']])
  await a.rows(`select once.take_partition('h', 't', 0)`)
  await a.rows(`select once.advance_token('h', 't', 0, 1, null, 'x')`)
})

test('grant_app is enough to be the home of a global transaction, and a branch of one', async (t) => {
  const { database, session: a } = await withRole(t, 'app')
  const homeId = await a.value('select once.database_id()')
  const transaction = randomUUID()
  await a.sql`begin`
  await a.rows(`call once.open('${transaction}', 1000, 1000)`)
  await a.rows(`select once.claim('p', 0)`)
  await a.rows(`select once.vote('${transaction}', '${id}', 'a')`)
  await a.rows(`select once.seal('${transaction}')`)
  const xid = await a.value(`select once.begin_global('${transaction}', '{b,c}', '{${id},${id}}')`)
  await a.rows(`select once.assert_branch('${transaction}')`)
  await a.sql`commit`
  t.is(await a.value(`select once.branch_outcome('${homeId}', '${transaction}', '${xid}')`), 'committed')
  t.is(await a.value(`select once.outcome('${homeId}', '${transaction}', '${xid}')`), 'committed')

  const other = randomUUID()
  await a.sql`begin`
  await a.rows(`call once.open('${other}')`)
  await a.rows(`select once.claim_key('s', 'k', '2024-01-01')`)
  t.true(await a.value(`select once.vote('${other}', '${id}', 'b')`))
  const gid = `once:1:${id}:${other}:${xid}:b`
  await a.rows(`prepare transaction '${gid}'`)
  t.deepEqual(await a.rows('select ours, can_finish from once.in_doubt'), [[true, true]])
  await a.rows(`commit prepared '${gid}'`)
  t.deepEqual(await a.rows(`select * from once.find_evidence('{${other}}')`), [[other]])
  t.is(await oneValue(database.sql, 'select count(*)::int from once.evidence'), 2)
})

test('grant_app gives no way to take back a key, to touch decisions, or to overrule the protocol', async (t) => {
  const { database, session: a } = await withRole(t, 'app')
  await a.rows(`select once.claim_key('s', 'k', '2024-01-01')`)
  await allForbidden(t, database.urlAs(await a.value('select current_user').then(String)), [
    ...destruction,
    ...operators,
    // Ranges are a producer's counter, which it must be trusted with.
    ...tables.filter((name) => name !== 'claimed_ahead').map((name) => `delete from once.${name}`),
    'select once.expire()',
    'select once.unproven()',
    'select once.proven()',
    'select once.evidence_page()',
    `select once.find_decisions('{}')`,
    `select once.mark_proven('{}')`,
    `select once.mark_confirmed('{}')`,
    'select once.confirmed()',
    `select once.delete_evidence('${id}', '{}')`,
    `select once.purge('{}')`,
    `select once.record_loss('${id}', 'b', '${id}', 'lost branch')`,
    'select * from once.loss',
    'select * from once.intervention',
    `update once.message set digest = gen_random_uuid()`,
    `delete from once.message`,
    `update once.message set payload_hash = ''`,
    `update once.message set claimed_on = '2000-01-01'`,
    `update once.scope set horizon = null`,
    `update once.scope set retention = '0'`,
    `insert into once.scope (scope, retention) values ('x', '0')`,
    `update once.scope set key_times = true`,
    `update once.scope set delete_before = '2000-01-01'`,
    `insert into once.scope (scope, key_times) values ('x', true)`,
    `update once.expiry set next_block = 0`,
    `select once.set_key_times('s', true)`,
    `select once.await_claims()`,
    `select once.delete_keys(1)`,
    `update once.producer set max_gaps = 100000`,
    `update once.producer set producer = 'q'`,
    `insert into once.producer (producer, max_gaps) values ('q', 99)`,
    `update once.claimed_ahead set first = 0`,
    `update once.consumer_position set consumer_group = 'x'`,
    `update once.database set id = gen_random_uuid()`,
    `update once.database set purged_xid = '9'`,
    `insert into once.database (system_identifier, database_oid) values (1, 1)`,
    `update once.global_transaction set proven_at = now()`,
    `update once.global_transaction set participants = '{}'`,
    `insert into once.global_transaction (transaction_id, home_xid, participants, database_ids) values ('${id}', '3', '{}', '{}')`,
    `update once.evidence set transaction_id = gen_random_uuid()`,
    `update once.evidence set recorded_at = now()`,
    'create table once.mine (n int)',
    'create function once.mine() returns int language sql return 1',
    'drop schema once cascade',
    'drop function once.expire(integer)',
    'alter function once.expire(integer) security invoker',
    'lock table once.message in access exclusive mode',
    'lock table once.expiry in share mode',
    `create index on once.producer (epoch)`,
    `create trigger x before update on once.producer for each row execute function suppress_redundant_updates_trigger()`,
  ])
})

test('An application’s own types and tables never run code with the rights of the ledger’s owner', async (t) => {
  const { session: a } = await withRole(t, 'app')
  await a.sql`begin`
  await a.rows(`call once.open('${id}')`)
  await a.rows(`select once.claim('p', 0)`)
  await a.rows(`select once.vote('${id}', '${id}', 'a')`)
  await a.rows(`select once.begin_global('${id}', '{b}', '{${id}}')`)
  // Where a search_path does not name pg_temp, Postgres looks there first for types and tables, before pg_catalog.
  await a.sql.unsafe(`
    create temp table seen (who name);
    create function pg_temp.trap(anyelement) returns boolean language plpgsql as $$
    begin
      insert into pg_temp.seen values (current_user);
      return true;
    end $$;
    create temp view trap as select pg_temp.trap(1)`)
  for (const type of ['date', 'text', 'uuid', 'xid', 'xid8', 'tid', 'regclass', 'bytea', 'int8', 'bool'])
    await a.sql.unsafe(`create domain pg_temp."${type}" as pg_catalog."${type}" check (pg_temp.trap(value))`)
  for (const relation of ['pg_locks', 'pg_stat_activity', 'scope', 'message', 'expiry'])
    await a.sql.unsafe(`create view pg_temp.${relation} as select pg_temp.trap(1)`)
  t.deepEqual(await a.rows('select who from pg_temp.seen where who <> current_user'), [])
  t.deepEqual(await a.rows('select who from pg_temp.seen'), [], 'not even with its own')
  await a.sql`rollback`
})

test('grant_recover is enough to recover, purge, audit and expire keys', async (t) => {
  const app = await withRole(t, 'app')
  const { database } = app
  const { session: a, role } = await withRole(t, 'recover', database)
  await database.sql.unsafe(`grant ${app.role} to ${role}`)
  const homeId = await a.value('select once.database_id()')

  const transaction = randomUUID()
  await app.session.sql`begin`
  await app.session.rows(`call once.open('${transaction}')`)
  await app.session.rows(`select once.claim('p', 0)`)
  await app.session.rows(`select once.vote('${transaction}', '${homeId}', 'b')`)
  const gid = `once:1:${homeId}:${transaction}:3:b`
  await app.session.rows(`prepare transaction '${gid}'`)
  const [row] = await a.rows('select owner, ours, can_finish, home_xid from once.in_doubt')
  t.deepEqual(row, [app.role, true, true, '3'])
  t.is(await a.value(`select once.branch_outcome('${homeId}', '${transaction}', '3')`), 'aborted')
  await a.rows(`set role ${row?.[0]}`)
  await a.rows(`rollback prepared '${gid}'`)
  await a.rows('reset role')

  const [decided] = await database.sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    values (${transaction}, '{b}', ${[`${homeId}`]}) returning home_xid::text as xid`
  await database.sql`insert into once.evidence values (${transaction}, ${`${homeId}`}, 'b')`
  const ids = `array['${transaction}']::uuid[]`
  t.is((await a.rows('select * from once.unproven()')).length, 1)
  t.is((await a.rows(`select * from once.find_evidence(${ids})`)).length, 1)
  t.is((await a.rows('select * from once.evidence_page()')).length, 1)
  t.is((await a.rows(`select * from once.find_decisions(${ids})`)).length, 1)
  t.is(await a.value(`select once.mark_proven(${ids})`), '1')
  t.is((await a.rows(`select * from once.proven(10, '0')`)).length, 1)
  t.is(await a.value(`select once.mark_confirmed(${ids})`), '1')
  t.is((await a.rows(`select * from once.confirmed(10, '0')`)).length, 1)
  t.is(await a.value(`select once.delete_evidence('${homeId}', ${ids})`), '1')
  t.is(await a.value(`select once.purge(${ids})`), '1')
  t.is(await a.value(`select once.outcome('${homeId}', '${transaction}', '${decided?.xid}')`), 'purged')
  t.true(await a.value(`select once.record_loss('${id}', 'b', '${id}', 'lost branch')`))
  t.false(await a.value(`select once.record_loss('${id}', 'b', '${id}', 'lost branch')`))
  t.is((await a.rows('select * from once.loss')).length, 1)

  await database.sql`select once.claim_key('s', 'k', '2024-01-01')`
  await database.sql`select once.claim_key('s', 'k')`
  await database.sql`update once.message set claimed_on = '2024-01-01' where claimed_on is not null`
  await database.sql`select once.set_retention('s', '1 day')`
  const steps: unknown[][] = []
  await until('the keys are deleted', async () => {
    steps.push(...(await expireAll(a.sql)).filter(([action]) => action !== 'wait'))
    return steps.some(([action, , , count]) => action === 'delete' && count !== '0')
  })
  t.deepEqual(
    steps.map(([action, , , count]) => [action, count]),
    [
      ['horizon', '0'],
      ['delete', '0'],
      ['delete', '2'],
    ],
    JSON.stringify(steps),
  )
  t.is((await a.rows('select * from once.scope')).length, 1)
})

test('grant_recover without membership in the owner’s role finishes nothing', async (t) => {
  const app = await withRole(t, 'app')
  const { session: a } = await withRole(t, 'recover', app.database)
  const gid = `once:1:${id}:${randomUUID()}:3:b`
  await app.session.sql`begin`
  await app.session.rows(`select once.claim('p', 0)`)
  await app.session.rows(`prepare transaction '${gid}'`)
  t.deepEqual(await a.rows('select ours, can_finish from once.in_doubt'), [[true, false]])
  await refused(t, a.rows(`rollback prepared '${gid}'`), '42501')
  await refused(t, a.rows(`set role ${app.role}`), '42501')
})

test('grant_recover gives no way to claim, decide, or overrule the protocol', async (t) => {
  const { database, role } = await withRole(t, 'recover')
  await database.sql`select once.claim_key('s', 'k', '2024-01-01')`
  await allForbidden(t, database.urlAs(role), [
    ...tables.map((name) => `truncate once.${name}`),
    ...operators,
    `select once.claim('p', 0)`,
    `select once.claim_batch('p', '{1}')`,
    `select once.claim_key('s', 'k')`,
    `select once.claim_key_batch('s', '{k}')`,
    `select once.keep_result('s', 'k', '1')`,
    `select once.take_partition('g', 't', 0)`,
    `select once.advance('g', 't', 0, 1, null, 1)`,
    `select once.claim_keys('s', '{k}')`,
    `select once.claim_ranges('p', '{[0,1]}')`,
    `select once.await_claims()`,
    `select once.delete_keys(1)`,
    `call once.open('${id}')`,
    `select once.vote('${id}', '${id}', 'b')`,
    `select once.begin_global('${id}', '{}', '{}')`,
    `select once.seal('${id}')`,
    'select * from once.message',
    'select * from once.claimed_ahead',
    'select * from once.producer',
    'select * from once.consumer_position',
    'delete from once.message',
    'delete from once.claimed_ahead',
    'delete from once.producer',
    'delete from once.loss',
    'delete from once.database',
    'delete from once.scope',
    `update once.scope set horizon = null`,
    `update once.database set id = gen_random_uuid()`,
    `update once.loss set acknowledged_at = now()`,
    `update once.global_transaction set participants = '{}'`,
    `update once.global_transaction set transaction_id = gen_random_uuid()`,
    `update once.evidence set participant = 'x'`,
    `insert into once.global_transaction (transaction_id, participants, database_ids) values ('${id}', '{}', '{}')`,
    `insert into once.evidence values ('${id}', '${id}', 'b')`,
    'create table once.mine (n int)',
  ])
})

test('grant_monitor is enough to look at everything but payloads and results, and to change nothing', async (t) => {
  const { database, role, session: a } = await withRole(t, 'monitor')
  await database.sql`select once.claim_key('s', 'k', '2024-01-01')`
  for (const name of tables.filter((one) => !/^(message|claimed_ahead|expired_claim|producer)$/.test(one)))
    await t.notThrowsAsync(a.rows(`select * from once.${name}`), name)
  for (const name of views) await t.notThrowsAsync(a.rows(`select * from once.${name}`), name)
  for (const call of ['schema_version()', 'database_id()', `read_position('g', 't', 0)`, 'unproven()'])
    await t.notThrowsAsync(a.rows(`select * from once.${call}`), call)
  await allForbidden(t, database.urlAs(role), [
    ...tables.flatMap((name) => [`truncate once.${name}`, `delete from once.${name}`]),
    ...operators,
    'select * from once.message',
    `select once.claim('p', 0)`,
    `select once.claim_key('s', 'k')`,
    `select once.take_partition('g', 't', 0)`,
    `select once.report_end('t', 0, 1)`,
    `select once.vote('${id}', '${id}', 'b')`,
    `select once.begin_global('${id}', '{}', '{}')`,
    `select once.mark_proven('{}')`,
    `select once.purge('{}')`,
    `select once.record_loss('${id}', 'b', '${id}', 'lost branch')`,
    'select once.expire()',
    `update once.database set purged_xid = '0'`,
    `insert into once.scope (scope) values ('x')`,
    'create table once.mine (n int)',
  ])
})

test('A grant can be repeated, and several can be given to one role', async (t) => {
  const { database, role, session: a } = await withRole(t, 'app')
  for (const grant of ['app', 'recover', 'monitor', 'app'])
    await database.sql.unsafe(`select once.grant_${grant}('${role}')`)
  t.is(await a.value(`select once.claim('p', 0)`), 'claimed')
  t.deepEqual(await a.rows('select * from once.expire()'), [])
  t.deepEqual(await a.rows('select * from once.intervention'), [])
})

test('A role may have any name, and one that does not exist is refused', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const role = `${randomName('o')}"'neill 😀; drop schema once`
  const [row] = await sql`select quote_ident(${role}) as quoted`
  await sql.unsafe(`create role ${row?.quoted} login`)
  t.teardown(async () => {
    const again = connect({ teardown: () => {} }, database.url)
    await again.unsafe(`drop owned by ${row?.quoted}`)
    await again.unsafe(`drop role ${row?.quoted}`)
    await again.end()
  })
  for (const grant of ['app', 'recover', 'monitor']) {
    await sql.unsafe(`select once.grant_${grant}($1)`, [role])
    for (const missing of ['nobody there', 'public', '', role.toUpperCase()])
      await refused(
        t,
        sql.unsafe(`select once.grant_${grant}($1)`, [missing]),
        'ONARG',
        'no role named',
        'create role',
      )
    await refused(t, sql.unsafe(`select once.grant_${grant}(null)`), 'ONARG', 'null')
  }
  t.true(
    await oneValue(
      sql,
      `select has_function_privilege(oid, 'once.claim(text, bigint, integer, boolean, bigint)', 'execute') from pg_roles where rolname = ${`'${role.replaceAll(`'`, `''`)}'`}`,
    ),
  )
})
