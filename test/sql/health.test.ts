import test from 'ava'
import { connect, installSchema, ownServer, testDatabase, testRole } from '../support/database.ts'
import { effectsDatabase } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, openSession, refused, rowsOf } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'

type Sql = Parameters<typeof rowsOf>[0]

const check = async (sql: Sql, name: string) => {
  const rows = await rowsOf(sql, `select status, value, hint from once.health where name = '${name}'`)
  if (rows.length !== 1) throw new Error(`No check ${name}`)
  return { status: rows[0]?.[0], value: rows[0]?.[1], hint: rows[0]?.[2] }
}

/** Checks of the whole cluster, on which other tests run. */
const shared = ['prepared_slots_used_ratio', 'elsewhere_xid_age', 'unsafe_settings']

test('A new database is well: every check is ok, named for Prometheus, and without a hint', async (t) => {
  const { sql } = await testDatabase(t)
  const rows = await sql`select * from once.health`
  t.true(rows.length >= 18)
  t.is(new Set(rows.map(({ name }) => name)).size, rows.length)
  for (const { name, status, hint, warn, critical } of rows) {
    t.regex(name, /^[a-z][a-z0-9_]*$/)
    t.true(warn === null || critical === null || warn <= critical)
    if (shared.includes(name)) continue
    t.is(status, 'ok', name)
    t.is(hint, null, name)
  }
})

test('A decided branch that nobody finishes alarms at both ends, and more so as time goes by', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await leaveOrphan(a, b, 1)
  t.like(await check(b.sql, 'in_doubt'), { value: 1, status: 'ok' })
  t.like(await check(b.sql, 'oldest_in_doubt_seconds'), { status: 'ok', hint: null })
  t.true(Number((await check(b.sql, 'oldest_in_doubt_seconds')).value) < 30)
  t.like(await check(a.sql, 'decided_unfinished_seconds'), { status: 'ok' })
  const decided = (span: string) =>
    a.sql.unsafe(`update once.global_transaction set decided_at = clock_timestamp() - interval '${span}'`)
  await decided('31 seconds')
  t.like(await check(a.sql, 'decided_unfinished_seconds'), { status: 'warn' })
  await decided('6 minutes')
  t.like(await check(a.sql, 'decided_unfinished_seconds'), { status: 'critical' })
  t.like(await check(a.sql, 'missing_evidence_seconds'), { status: 'warn' })
  await decided('11 minutes')
  t.like(await check(a.sql, 'missing_evidence_seconds'), { status: 'critical' })
  t.truthy((await check(a.sql, 'missing_evidence_seconds')).hint)
})

test('Prepared transactions of others, slots, and xid age are counted, here and elsewhere', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 10 })
  const admin = connect(t, server.url())
  for (const name of ['one', 'two']) {
    await admin.unsafe(`create database ${name}`)
    await installSchema(server.url(name))
  }
  const [one, two] = [connect(t, server.url('one')), connect(t, server.url('two'))]
  await one`create table effect (id int)`
  await prepare(t, server.url('one'), 'x', 'insert into effect values (1)')
  for (let n = 0; n < 50; n++) await one`insert into effect values (2)`
  t.like(await check(one, 'foreign_prepared'), { value: 1 })
  t.true(Number((await check(one, 'foreign_oldest_seconds')).value) >= 0)
  t.true(Number((await check(one, 'prepared_xid_age')).value) >= 50)
  t.is((await check(two, 'prepared_xid_age')).value, null)
  t.true(Number((await check(two, 'elsewhere_xid_age')).value) >= 50)
  t.like(await check(two, 'prepared_slots_used_ratio'), { value: 0.1, status: 'ok' })
  for (let n = 1; n < 7; n++) await prepare(t, server.url('one'), `x${n}`, 'insert into effect values (1)')
  t.like(await check(two, 'prepared_slots_used_ratio'), { value: 0.7, status: 'warn' })
  for (let n = 7; n < 9; n++) await prepare(t, server.url('one'), `x${n}`, 'insert into effect values (1)')
  t.like(await check(two, 'prepared_slots_used_ratio'), { value: 0.9, status: 'critical' })
})

test('A recovery that has not looked for long alarms, but only where there is something to recover', async (t) => {
  const b = await effectsDatabase(t)
  const name = 'last_recovery_seconds'
  t.like(await check(b.sql, name), { status: 'ok', value: null })
  await b.sql`insert into once.evidence (transaction_id, home, participant) values (gen_random_uuid(), gen_random_uuid(), 'b')`
  await b.sql`select once.stamp_recovery('x')`
  t.like(await check(b.sql, name), { status: 'ok' })
  await b.sql`update once.recovery set recovered_at = now() - interval '2 minutes'`
  t.like(await check(b.sql, name), { status: 'warn' })
  await b.sql`update once.recovery set recovered_at = null`
  await b.sql`update once.database set created_at = now() - interval '1 hour'`
  t.like(await check(b.sql, name), { status: 'critical' })
})

test('Losses, gaps, stalled positions and a retention that nobody applies are seen', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`insert into once.loss (transaction_id, participant, home, kind) values (gen_random_uuid(), 'b', gen_random_uuid(), 'lost branch')`
  t.like(await check(sql, 'unacknowledged_losses'), { status: 'critical', value: 1 })

  await sql`select once.claim('p', 0)`
  await sql`update once.producer set max_gaps = 2`
  await sql`select once.claim('p', 2)`
  await sql`select once.claim('p', 4)`
  t.like(await check(sql, 'producer_gaps_ratio'), { status: 'critical', value: 1 })

  await sql`select once.take_partition('g', 't', 0)`
  await sql`select once.advance('g', 't', 0, 1, null, 10)`
  await sql`select once.report_end('t', 0, 25)`
  t.like(await check(sql, 'position_lag_messages'), { status: 'ok', value: 15 })
  t.like(await check(sql, 'position_stalled_seconds'), { status: 'ok' })
  await sql`update once.consumer_position set updated_at = now() - interval '2 minutes'`
  t.like(await check(sql, 'position_stalled_seconds'), { status: 'warn' })

  await sql`select once.set_retention('s', '1 day')`
  await sql`update once.database set created_at = now() - interval '30 days'`
  t.like(await check(sql, 'horizon_lag_seconds'), { status: 'critical' })
  await sql`select * from once.expire()`
  t.like(await check(sql, 'horizon_lag_seconds'), { status: 'ok' })
  t.true(Number((await check(sql, 'ledger_bytes')).value) > 0)
})

test('A monitor may look at all of it, and read what it cannot change', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const monitor = await testRole(t, b)
  await b.sql.unsafe(`select once.grant_monitor('${monitor}')`)
  await leaveOrphan(a, b, 1)
  const session = await openSession(t, b.urlAs(monitor))
  const views = ['in_doubt', 'blocked', 'in_doubt_elsewhere', 'health', 'heuristics', 'branch']
  for (const view of views) t.true(Array.isArray(await session.rows(`select * from once.${view}`)), view)
  t.deepEqual(await session.rows('select ours, can_finish from once.in_doubt'), [[true, false]])
  t.is(await oneValue(b.sql, `select status from once.health where name = 'in_doubt'`), 'ok')
})

test('Claims that are answered expired are counted by scope, until a day has passed', async (t) => {
  const { sql, ...database } = await testDatabase(t)
  const name = 'expired_claims_per_day'
  await sql`select once.set_retention('s', '10 days')`
  await sql`update once.scope set horizon = '2024-01-10 12:00Z'`
  const records = () => rowsOf(sql, 'select claims, oldest_day::text from once.expired_claim order by 1')
  await sql`select once.claim_key('s', 'new', '2024-01-11')`
  await sql`select once.claim_key('s', 'new', '2024-01-11')`
  t.deepEqual(await records(), [], 'neither a claim nor a duplicate is recorded')
  t.like(await check(sql, name), { status: 'ok', value: 0, hint: null })

  await sql`select once.claim_key('s', 'old', '2024-01-09')`
  await sql`select once.claim_key_batch('s', array['a', 'b', 'c', 'no time'], array['2023-12-24', '2024-01-12', '2024-01-01', null]::timestamptz[])`
  t.deepEqual(await records(), [
    [1, '2024-01-09'],
    [2, '2023-12-24'],
  ])
  const found = await check(sql, name)
  t.like(found, { status: 'warn', value: 3 })
  t.true(String(found.hint).includes('select * from once.expired_claims'))
  const summary = `select scope, claims::int, oldest_day::text, retention::text, first_at < last_at from once.expired_claims`
  t.deepEqual(await rowsOf(sql, summary), [['s', 3, '2023-12-24', '10 days', true]])

  // Who goes back has given up nothing.
  const session = await openSession(t, database.url)
  await session.rows(`begin; select once.claim_key('s', 'old', '2024-01-09')`)
  await session.rows('rollback')
  t.is((await check(sql, name)).value, 3)

  await sql`update once.expired_claim set answered_at = answered_at - interval '25 hours'`
  t.like(await check(sql, name), { status: 'ok', value: 0, hint: null })
  t.deepEqual(await rowsOf(sql, summary), [])
  const expired = () =>
    rowsOf(
      sql,
      `select action, count::int, more from once.expire(1) where detail = 'records of expired claims'`,
    )
  t.deepEqual(await expired(), [], 'kept for two days')
  await sql`update once.expired_claim set answered_at = answered_at - interval '1 day'`
  t.deepEqual(await expired(), [['delete', 1, true]])
  t.deepEqual(await expired(), [['delete', 1, true]])
  t.deepEqual(await expired(), [])
  t.deepEqual(await records(), [])
})

test('Claims that are answered expired wait for nobody and fail for nobody, at any isolation level', async (t) => {
  const { sql, ...database } = await testDatabase(t)
  for (const scope of ['x', 'y']) await sql`select once.set_retention(${scope}, '10 days')`
  await sql`update once.scope set horizon = '2024-01-10 12:00Z'`
  for (const level of ['read committed', 'repeatable read', 'serializable']) {
    const sessions = [await openSession(t, database.url), await openSession(t, database.url)]
    for (const { rows } of sessions)
      await rows(`set statement_timeout = '5s'; begin isolation level ${level}`)
    // Two scopes, each first in one of them: over a counter they would deadlock.
    for (const scopes of [
      ['x', 'y'],
      ['y', 'x'],
    ])
      for (const [index, scope] of scopes.entries())
        t.is(
          await sessions[index]?.value(`select status from once.claim_key('${scope}', 'old', '2024-01-09')`),
          'expired',
          level,
        )
    for (const { rows } of sessions) await rows('commit')
  }
  t.deepEqual(await rowsOf(sql, 'select scope, claims::int from once.expired_claims order by 1'), [
    ['x', 6],
    ['y', 6],
  ])
})

test('An application adds to the expired claims and can neither read nor take back, a monitor sees them', async (t) => {
  const { sql, ...database } = await testDatabase(t)
  const whole = { sql, ...database }
  const [app, monitor] = [await testRole(t, whole), await testRole(t, whole)]
  await sql.unsafe(`select once.grant_app('${app}'), once.grant_monitor('${monitor}')`)
  await sql`select once.set_retention('s', '10 days')`
  await sql`update once.scope set horizon = '2024-01-10 12:00Z'`
  const session = await openSession(t, database.urlAs(app))
  t.is(await session.value(`select status from once.claim_key('s', 'old', '2024-01-09')`), 'expired')
  for (const forbidden of [
    'select * from once.expired_claim',
    'delete from once.expired_claim',
    `insert into once.expired_claim (answered_at, scope_id, claims, oldest_day) values ('2000-01-01', 1, 1, '2000-01-01')`,
  ])
    await refused(t, session.rows(forbidden), '42501')
  const watcher = await openSession(t, database.urlAs(monitor))
  t.deepEqual(await watcher.rows('select scope, claims::int from once.expired_claims'), [['s', 1]])
  await refused(t, watcher.rows('select * from once.expired_claim'), '42501')
})
