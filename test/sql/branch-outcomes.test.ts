/** What became of a home's transaction: committed, aborted, pending, and never the opposite. */
import { randomUUID } from 'node:crypto'
import test from 'ava'
import { connect, installSchema, makeStandby, ownServer, testDatabase } from '../support/database.ts'
import {
  databaseIdOf,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'
import { beginHome, decide, outcome, someHome } from '../support/two-phase.ts'

const shared = sharedDatabase()

test('A home that rolled back, or whose session was killed, has aborted; before it is over it is pending', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  for (const end of ['rollback', 'kill']) {
    const id = randomUUID()
    const home = await openSession(t, url)
    const xid = await beginHome(home, id)
    t.is(await decide(sql, homeId, id, xid), 'pending')
    t.is(await outcome(sql, homeId, id, xid), 'pending')
    if (end === 'rollback') await home.rows('rollback')
    else await sql`select pg_terminate_backend(${home.pid}, 5000)`
    t.is(await decide(sql, homeId, id, xid), 'aborted')
  }
})

test('A temporary table with the name of a catalog does not make a running home look aborted', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  for (const catalog of ['pg_locks', 'pg_prepared_xacts', 'pg_database']) {
    const id = randomUUID()
    const [home, asker] = [await openSession(t, url), await openSession(t, url)]
    const xid = await beginHome(home, id)
    // Where a search_path does not name pg_temp, Postgres looks there first for tables, before pg_catalog.
    await asker.rows(`create temp table ${catalog} as select * from pg_catalog.${catalog} where false`)
    t.is(await decide(asker.sql, homeId, id, xid), 'pending', catalog)
    await home.rows('commit')
    t.is(await decide(asker.sql, homeId, id, xid), 'committed', catalog)
  }
})

test('A home that fails after its decision row was inserted has aborted', async (t) => {
  const { sql, url } = shared()
  const id = randomUUID()
  const home = await openSession(t, url)
  const xid = await beginHome(home, id)
  await refused(t, home.rows('select 1 / 0'), '22012')
  t.is(await decide(sql, await databaseIdOf(sql), id, xid), 'aborted')
  await home.sql`commit`
  t.is(await decide(sql, await databaseIdOf(sql), id, xid), 'aborted', 'its commit was a rollback')
})

for (const [end, answer] of [
  ['commit', 'committed'],
  ['rollback', 'pending'],
] as const) {
  test(`A home that ends by ${end} between the reading of status and row is ${answer}, never the opposite`, async (t) => {
    const { sql, url } = await testDatabase(t)
    const [home, locker, asker] = [
      await openSession(t, url),
      await openSession(t, url),
      await openSession(t, url),
    ]
    const homeId = await databaseIdOf(sql)
    const id = randomUUID()
    // Once in advance, so that nothing but the reading of the row needs the table.
    await decide(asker.sql, homeId, randomUUID(), '3')
    const xid = await beginHome(home, id)
    await locker.sql`begin`
    const lock = locker.rows('lock table once.global_transaction in access exclusive mode')
    await untilBlocked(sql, locker)
    // The status is "in progress"; the row is read after the locker, which is after the home.
    const answered = decide(asker.sql, homeId, id, xid)
    await untilBlocked(sql, asker)
    await home.rows(end)
    await lock
    await locker.sql`rollback`
    t.is(await answered, answer)
    t.is(await decide(sql, homeId, id, xid), end === 'commit' ? 'committed' : 'aborted')
  })
}

test('However often it is asked while homes commit, none of them is ever called aborted', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  const [home, asker] = [await openSession(t, url), await openSession(t, url)]
  // Many strangers asked for in the same call, so that some time passes between statuses and rows.
  const others = `array(select gen_random_uuid() from generate_series(1, 3000)) || '$'::uuid`
  const xids = `array(select '3'::xid8 from generate_series(1, 3000)) || '$'::xid8`
  let pending = 0
  for (let round = 0; round < 40; round++) {
    const id = randomUUID()
    const xid = await beginHome(home, id)
    const call = `select outcome from once.branch_outcomes('${homeId}', ${others.replace('$', id)}, ${xids.replace('$', xid)}) where transaction_id = '${id}'`
    const first = asker.value(call)
    // A different moment of the call each time.
    await sql`select pg_sleep(${(round % 20) / 2000})`
    await home.sql`commit`
    const answer = await first
    t.not(answer, 'aborted')
    if (answer === 'pending') pending++
    t.is(await asker.value(call), 'committed')
  }
  t.log(`pending ${pending} times`)
})

test('An xid that was lost in a crash, or is too old to know, belongs to a transaction that is over', async (t) => {
  const { sql } = shared()
  const homeId = await databaseIdOf(sql)
  for (const xid of ['18446744073709551615', '9999999999', '0', '1', '2', '3'])
    t.is(await decide(sql, homeId, randomUUID(), xid), 'aborted', xid)
})

test('A stranger’s transaction under a reused xid delays the answer, and its commit proves nothing', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  for (const end of ['commit', 'rollback']) {
    const stranger = await openSession(t, url)
    await stranger.sql`begin`
    const xid = String(await stranger.value('select pg_current_xact_id()'))
    const id = randomUUID()
    t.is(await decide(sql, homeId, id, xid), 'pending')
    await stranger.rows(end)
    t.is(await decide(sql, homeId, id, xid), 'aborted')
  }
})

test('A row that another transaction inserted under the id in a gid is no decision', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  const id = randomUUID()
  const home = await openSession(t, url)
  const xid = await beginHome(home, id)
  await home.sql`rollback`
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    values (${id}, '{b}', ${[someHome]})`
  t.is(await decide(sql, homeId, id, xid), 'aborted')
})

test('A decision can be asked for inside a transaction that looked before, and still sees the newest', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  const [home, asker] = [await openSession(t, url), await openSession(t, url)]
  const id = randomUUID()
  const xid = await beginHome(home, id)
  await asker.sql`begin`
  t.is(await decide(asker.sql, homeId, id, xid), 'pending')
  await home.sql`commit`
  t.is(await decide(asker.sql, homeId, id, xid), 'committed')
  await asker.sql`commit`
})

test('A decision is refused under any isolation level that freezes the snapshot', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  const asker = await openSession(t, url)
  const calls = [
    `once.branch_outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.find_decisions(array['${randomUUID()}']::uuid[])`,
  ]
  for (const level of ['repeatable read', 'serializable']) {
    for (const call of calls) {
      await asker.rows(`begin isolation level ${level}`)
      await refused(t, asker.rows(`select ${call}`), 'ONISO', level, 'read committed')
      await asker.sql`rollback`
      await asker.rows(`set default_transaction_isolation = '${level}'`)
      await refused(t, asker.rows(`select ${call}`), 'ONISO', level)
      await asker.rows(`begin isolation level read committed`)
      await t.notThrowsAsync(asker.rows(`select ${call}`))
      await asker.rows('commit')
    }
  }
})

test('Only the database whose database id stands in the gid decides', async (t) => {
  const { sql } = shared()
  const homeId = await databaseIdOf(sql)
  await refused(t, decide(sql, someHome, randomUUID(), '3'), 'ONIDN', homeId, someHome, 'once.database')
  await refused(t, outcome(sql, someHome, randomUUID(), '3'), 'ONIDN')
  await refused(t, oneValue(sql, `select once.branch_outcome(null, '${randomUUID()}', '3')`), 'ONIDN')
  await refused(t, oneValue(sql, `select once.branch_outcome('${homeId}', null, '3')`), 'ONARG')
  await refused(t, oneValue(sql, `select once.branch_outcome('${homeId}', '${randomUUID()}', null)`), 'ONARG')
  await refused(t, oneValue(sql, `select once.outcome('${homeId}', null, null)`), 'ONARG')
})

test('A standby answers no question whose answer could be old', async (t) => {
  const server = await ownServer(t)
  await installSchema(server.url())
  const before = connect(t, server.url())
  const homeId = await databaseIdOf(before)
  await before.end()
  await makeStandby(server)
  const sql = connect(t, server.url())
  t.is(await databaseIdOf(sql), homeId, 'who it is, it may say')
  const calls = [
    `once.branch_outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.find_decisions(array['${randomUUID()}']::uuid[])`,
    `once.find_evidence(array['${randomUUID()}']::uuid[])`,
    `once.evidence_page()`,
  ]
  for (const call of calls) await refused(t, rowsOf(sql, `select ${call}`), 'ONSTB', 'standby', 'primary')
  await refused(t, rowsOf(sql, `select once.claim('p', 0)`), '25006')
  await refused(t, rowsOf(sql, `select once.claim_key('s', 'k')`), '25006')
})

for (const where of ['another database', 'the database of the home']) {
  test(`A branch that was given the xid which a home lost in a crash does not wait for itself: in ${where}`, async (t) => {
    const a = await testDatabase(t)
    const b = where === 'another database' ? await testDatabase(t) : a
    const [homeId, id] = [await databaseIdOf(a.sql), randomUUID()]
    const session = await openSession(t, b.url)
    await session.sql`begin`
    const xid = await session.value('select pg_current_xact_id()::text')
    t.is(await decide(a.sql, homeId, id, String(xid)), 'pending', 'whose it is cannot be told yet')
    // In the database of the home a branch has another home, and may wait for one that waits for ours.
    const gid = `once:1:${b === a ? someHome : homeId}:${id}:${xid}:b`
    await session.sql.unsafe(`prepare transaction '${gid}'`)
    t.is(await decide(a.sql, homeId, id, String(xid)), 'aborted')
    await b.sql.unsafe(`rollback prepared '${gid}'`)
  })
}

test('A branch whose subtransaction was given the lost xid does not wait for itself', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t)]
  const [homeId, id] = [await databaseIdOf(a.sql), randomUUID()]
  await b.sql`create table effect (n int)`
  const session = await openSession(t, b.url)
  await session.sql`begin`
  await session.sql`insert into effect values (1)`
  await session.sql`savepoint before`
  await session.sql`insert into effect values (2)`
  const xid = String(await session.value('select max(xmin::text::bigint)::text from effect'))
  t.not(xid, await session.value('select pg_current_xact_id()::text'))
  await session.sql`release before`
  const gid = `once:1:${homeId}:${id}:${xid}:b`
  await session.sql.unsafe(`prepare transaction '${gid}'`)
  t.is(await decide(a.sql, homeId, id, xid), 'aborted')
  await b.sql.unsafe(`rollback prepared '${gid}'`)
})

test('Whoever waits for a branch in doubt, with the xid that its home lost, does not hold up the answer', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t)]
  const [homeId, id] = [await databaseIdOf(a.sql), randomUUID()]
  await b.sql`create table account (n int)`
  await b.sql`insert into account values (0)`
  const [branch, stranger] = [await openSession(t, b.url), await openSession(t, b.url)]
  await stranger.sql`begin`
  const xid = String(await stranger.value('select pg_current_xact_id()::text'))
  await branch.sql`begin`
  await branch.sql`update account set n = n + 1`
  const gid = `once:1:${homeId}:${id}:${xid}:b`
  await branch.sql.unsafe(`prepare transaction '${gid}'`)
  const waiting = stranger.sql`update account set n = n + 1`.execute()
  await untilBlocked(b.sql, stranger)
  t.is(await decide(a.sql, homeId, id, xid), 'aborted')
  await b.sql.unsafe(`rollback prepared '${gid}'`)
  await waiting
})

for (const how of ['by another manager', 'by hand under a gid of ours']) {
  test(`A home's transaction that was prepared ${how} is still one that may decide`, async (t) => {
    const a = await testDatabase(t)
    const [homeId, id] = [await databaseIdOf(a.sql), randomUUID()]
    const session = await openSession(t, a.url)
    const xid = await beginHome(session, id)
    const gid = how === 'by another manager' ? `foreign ${id}` : `once:1:${homeId}:${id}:${xid}:orders`
    await session.sql.unsafe(`prepare transaction '${gid}'`)
    t.is(await decide(a.sql, homeId, id, xid), 'pending')
    await a.sql.unsafe(`commit prepared '${gid}'`)
    t.is(await decide(a.sql, homeId, id, xid), 'committed')
  })
}
