import { randomUUID } from 'node:crypto'
import test from 'ava'
import fc from 'fast-check'
import type postgres from 'postgres'
import {
  connect,
  installSchema,
  makeStandby,
  ownServer,
  randomName,
  type TestDatabase,
  testDatabase,
  testRole,
} from '../support/database.ts'
import {
  oneValue,
  openSession,
  refused,
  rowsOf,
  type Session,
  sharedDatabase,
  until,
  untilBlocked,
} from '../support/sql.ts'

const shared = sharedDatabase()

const homeOf = async (sql: postgres.Sql) => String(await oneValue(sql, 'select once.home_id()'))
const decide = (sql: postgres.Sql, home: string, id: string, xid: string) =>
  oneValue(sql, `select once.decide('${home}', '${id}', '${xid}')`)
const outcome = (sql: postgres.Sql, home: string, id: string, xid: string) =>
  oneValue(sql, `select once.outcome('${home}', '${id}', '${xid}')`)
const rowOf = async (sql: postgres.Sql, id: string) =>
  (await rowsOf(sql, `select participants from once.global_transaction where transaction_id = '${id}'`))[0]
const evidenceOf = async (sql: postgres.Sql, id: string) =>
  (await rowsOf(sql, `select home, participant from once.evidence where transaction_id = '${id}'`))[0]
const someHome = '11111111-1111-4111-8111-111111111111'

/** Begins a marked transaction that has written something. */
async function openBranch(session: Session, id: string): Promise<void> {
  await session.sql`begin`
  await session.rows(`call once.open('${id}')`)
  await session.rows('select pg_current_xact_id()')
}

/** The home's part up to its COMMIT: the decision row is there, and nobody sees it. */
async function beginHome(session: Session, id: string, participants = `array['b']`): Promise<string> {
  await openBranch(session, id)
  const homes =
    participants === `'{}'` ? `'{}'` : `array_fill('${someHome}'::uuid, array[cardinality(${participants})])`
  return String(await session.value(`select once.begin_global('${id}', ${participants}, ${homes})`))
}

test('The whole flow over two servers: pending before the home’s commit, committed from then on', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const [home, branch] = [await openSession(t, a.url), await openSession(t, b.url)]
  const id = randomUUID()
  const homeId = await homeOf(a.sql)
  await b.sql`create table effect (n int)`

  const xid = await beginHome(home, id)
  await branch.sql`begin`
  await branch.rows(`call once.open('${id}')`)
  await branch.rows('insert into effect values (1)')
  t.true(await branch.value(`select once.vote('${id}', '${homeId}', 'b')`))
  const gid = `once:1:${homeId}:${id}:${xid}:b`
  await branch.rows(`prepare transaction '${gid}'`)

  t.deepEqual(
    await rowsOf(
      b.sql,
      `select gid, transaction_id, home, home_xid, participant, owner, ours, can_finish from once.in_doubt`,
    ),
    [[gid, id, homeId, xid, 'b', 'postgres', true, true]],
  )
  t.is(await decide(a.sql, homeId, id, xid), 'pending')
  t.is(await evidenceOf(b.sql, id), undefined)
  await home.sql`commit`
  t.is(await decide(a.sql, homeId, id, xid), 'committed')
  await b.sql.unsafe(`commit prepared '${gid}'`)
  t.deepEqual(await evidenceOf(b.sql, id), [homeId, 'b'])
  t.is(await oneValue(b.sql, 'select count(*)::int from effect'), 1)

  // Nothing is forgotten before it is proven.
  t.is(await oneValue(a.sql, `select once.forget_proven(array['${id}']::uuid[])`), '0')
  t.deepEqual(await rowsOf(a.sql, 'select transaction_id, participants from once.unproven()'), [[id, ['b']]])
  t.deepEqual(
    await rowsOf(b.sql, `select * from once.find_evidence(array['${id}', '${randomUUID()}']::uuid[])`),
    [[id]],
  )
  t.is(await oneValue(a.sql, `select once.mark_proven(array['${id}']::uuid[])`), '1')
  t.deepEqual(await rowsOf(a.sql, 'select * from once.unproven()'), [])
  t.deepEqual(
    await rowsOf(a.sql, 'select * from once.proven()'),
    [],
    'kept for a while, for questions that come late',
  )
  t.deepEqual(await rowsOf(a.sql, `select transaction_id, participants from once.proven(10, '0')`), [
    [id, ['b']],
  ])
  t.is(
    await oneValue(a.sql, `select once.forget_proven(array['${id}']::uuid[])`),
    '0',
    'nor before it is confirmed',
  )
  t.is(await oneValue(a.sql, `select once.mark_confirmed(array['${id}']::uuid[])`), '1')
  t.deepEqual(await rowsOf(a.sql, `select * from once.proven(10, '0')`), [])
  t.deepEqual(await rowsOf(a.sql, `select transaction_id, participants from once.confirmed(10, '0')`), [
    [id, ['b']],
  ])
  t.deepEqual(await rowsOf(a.sql, 'select * from once.confirmed()'), [], 'a standby shall know it first')
  t.is(await oneValue(b.sql, `select once.delete_evidence('${homeId}', array['${id}']::uuid[])`), '1')
  t.is(await outcome(a.sql, homeId, id, xid), 'committed')
  t.is(await oneValue(a.sql, `select once.forget_proven(array['${id}']::uuid[])`), '1')
  t.is(await outcome(a.sql, homeId, id, xid), 'forgotten')
})

test('A home that rolled back, or whose session was killed, has aborted; before it is over it is pending', async (t) => {
  const { sql, url } = shared()
  const homeId = await homeOf(sql)
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

test('A home that fails after its decision row was inserted has aborted', async (t) => {
  const { sql, url } = shared()
  const id = randomUUID()
  const home = await openSession(t, url)
  const xid = await beginHome(home, id)
  await refused(t, home.rows('select 1 / 0'), '22012')
  t.is(await decide(sql, await homeOf(sql), id, xid), 'aborted')
  await home.sql`commit`
  t.is(await decide(sql, await homeOf(sql), id, xid), 'aborted', 'its commit was a rollback')
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
    const homeId = await homeOf(sql)
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
  const homeId = await homeOf(sql)
  const [home, asker] = [await openSession(t, url), await openSession(t, url)]
  // Many strangers asked for in the same call, so that some time passes between statuses and rows.
  const others = `array(select gen_random_uuid() from generate_series(1, 3000)) || '$'::uuid`
  const xids = `array(select '3'::xid8 from generate_series(1, 3000)) || '$'::xid8`
  let pending = 0
  for (let round = 0; round < 40; round++) {
    const id = randomUUID()
    const xid = await beginHome(home, id)
    const call = `select decision from once.decide_batch('${homeId}', ${others.replace('$', id)}, ${xids.replace('$', xid)}) where transaction_id = '${id}'`
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
  const homeId = await homeOf(sql)
  for (const xid of ['18446744073709551615', '9999999999', '0', '1', '2', '3'])
    t.is(await decide(sql, homeId, randomUUID(), xid), 'aborted', xid)
})

test('A stranger’s transaction under a reused xid delays the answer, and its commit proves nothing', async (t) => {
  const { sql, url } = shared()
  const homeId = await homeOf(sql)
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
  const homeId = await homeOf(sql)
  const id = randomUUID()
  const home = await openSession(t, url)
  const xid = await beginHome(home, id)
  await home.sql`rollback`
  await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes)
    values (${id}, '{b}', ${[someHome]})`
  t.is(await decide(sql, homeId, id, xid), 'aborted')
})

test('A decision can be asked for inside a transaction that looked before, and still sees the newest', async (t) => {
  const { sql, url } = shared()
  const homeId = await homeOf(sql)
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
  const homeId = await homeOf(sql)
  const asker = await openSession(t, url)
  const calls = [
    `once.decide('${homeId}', '${randomUUID()}', '3')`,
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

test('Only the database whose identity stands in the gid decides', async (t) => {
  const { sql } = shared()
  const homeId = await homeOf(sql)
  await refused(t, decide(sql, someHome, randomUUID(), '3'), 'ONIDN', homeId, someHome, 'once.identity')
  await refused(t, outcome(sql, someHome, randomUUID(), '3'), 'ONIDN')
  await refused(t, oneValue(sql, `select once.decide(null, '${randomUUID()}', '3')`), 'ONIDN')
  await refused(t, oneValue(sql, `select once.decide('${homeId}', null, '3')`), 'ONARG')
  await refused(t, oneValue(sql, `select once.decide('${homeId}', '${randomUUID()}', null)`), 'ONARG')
  await refused(t, oneValue(sql, `select once.outcome('${homeId}', null, null)`), 'ONARG')
})

test('A standby answers no question whose answer could be old', async (t) => {
  const server = await ownServer(t)
  await installSchema(server.url())
  const before = connect(t, server.url())
  const homeId = await homeOf(before)
  await before.end()
  await makeStandby(server)
  const sql = connect(t, server.url())
  t.is(await homeOf(sql), homeId, 'who it is, it may say')
  const calls = [
    `once.decide('${homeId}', '${randomUUID()}', '3')`,
    `once.outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.find_decisions(array['${randomUUID()}']::uuid[])`,
    `once.find_evidence(array['${randomUUID()}']::uuid[])`,
    `once.evidence_page()`,
  ]
  for (const call of calls) await refused(t, rowsOf(sql, `select ${call}`), 'ONSTB', 'standby', 'primary')
  await refused(t, rowsOf(sql, `select once.claim('p', 0)`), '25006')
  await refused(t, rowsOf(sql, `select once.claim_key('s', 'k')`), '25006')
})

test('The home waits for its flush, whatever the role’s or the handler’s synchronous_commit', async (t) => {
  const { url } = shared()
  const expected = { off: 'on', local: 'on', remote_write: 'on', on: 'on', remote_apply: 'remote_apply' }
  for (const [level, result] of Object.entries(expected)) {
    const home = await openSession(t, url)
    await home.rows(`set synchronous_commit = ${level}`)
    const id = randomUUID()
    await openBranch(home, id)
    t.is(await home.value('show synchronous_commit'), level === 'off' ? 'on' : level)
    await home.rows(`set local synchronous_commit = ${level}`)
    await home.rows(`select once.begin_global('${id}', '{b}', '{${someHome}}')`)
    t.is(await home.value('show synchronous_commit'), result)
    await home.sql`commit`
    t.is(await home.value('show synchronous_commit'), level, 'only for that transaction')
  }
})

test('Each step of forgetting is durable before the next may begin', async (t) => {
  const { url } = shared()
  const a = await openSession(t, url)
  await a.sql`set synchronous_commit = off`
  const calls = [
    `once.mark_proven('{}')`,
    `once.mark_confirmed('{}')`,
    `once.delete_evidence('${someHome}', '{}')`,
    `once.forget_proven('{}')`,
    `once.sweep()`,
  ]
  for (const call of calls) {
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
})

test('A branch has the lock and idle timeouts that it was opened with, for its transaction only', async (t) => {
  const { url } = shared()
  const a = await openSession(t, url)
  const settings = () =>
    a.rows(`select current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')`)
  await a.sql`set lock_timeout = '7s'`
  const id = randomUUID()
  await a.sql`begin`
  await a.rows(`call once.open('${id}', 1500, 2500)`)
  t.deepEqual(await settings(), [['1500ms', '2500ms']])
  await a.sql`commit`
  t.deepEqual(await settings(), [['7s', '0']])
  await a.sql`begin`
  await a.rows(`call once.open('${id}')`)
  t.deepEqual(await settings(), [['7s', '0']], 'null leaves the session’s own')
  await a.rows(`call once.open('${id}', 0, 0)`)
  t.deepEqual(await settings(), [['0', '0']])
  await refused(t, a.rows(`call once.open('${id}', -1)`), 'ONARG')
  await a.sql`rollback`
})

test('A handler that ended our transaction is found out at each next step', async (t) => {
  const { url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  const steps = [
    `once.check_open('${id}')`,
    `once.vote('${id}', '${someHome}', 'a')`,
    `once.begin_global('${id}', '{b}', '{${someHome}}')`,
  ]
  for (const handler of ['commit', 'rollback', 'commit; begin', 'commit and chain', 'rollback and chain']) {
    for (const step of steps) {
      await openBranch(a, id)
      await a.sql.unsafe(handler)
      await refused(t, a.rows(`select ${step}`), 'ONEND', id, 'stays committed', 'COMMIT')
      await a.sql`rollback`
    }
  }
  await openBranch(a, randomUUID())
  for (const step of steps) {
    await a.sql`savepoint s`
    await refused(t, a.rows(`select ${step}`), 'ONEND')
    await a.sql`rollback to s`
  }
  await a.sql`rollback`
})

test('A handler that leaves another role in force is found out, and one that resets it is not', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  const a = await openSession(t, database.url)
  for (const change of [`set role ${role}`, `set local role ${role}`, `set session authorization ${role}`]) {
    const id = randomUUID()
    await openBranch(a, id)
    await a.rows(change)
    await a.sql`savepoint s`
    await refused(
      t,
      a.rows(`select once.check_open('${id}')`),
      'ONROL',
      role,
      'began as postgres',
      'RESET ROLE',
    )
    await a.sql`rollback to s`
    await refused(t, a.rows(`select once.vote('${id}', '${someHome}', 'a')`), 'ONROL')
    await a.sql`rollback to s`
    await refused(t, a.rows(`select once.begin_global('${id}', '{b}', '{${someHome}}')`), 'ONROL')
    await a.sql`rollback to s`
    await a.rows(change.includes('authorization') ? 'reset session authorization' : 'reset role')
    t.true(await a.value(`select once.vote('${id}', '${someHome}', 'a')`))
    await a.sql`rollback`
  }
})

test('Savepoints of the handler do no harm to the mark', async (t) => {
  const { url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  await a.sql`begin`
  await a.rows(`call once.open('${id}')`)
  await a.sql`savepoint s`
  await a.sql`create table dropped_again (n int)`
  await a.sql`rollback to s`
  await t.notThrowsAsync(a.rows(`select once.check_open('${id}')`))
  await a.sql`commit`
})

test('A branch votes no exactly if it wrote nothing, and only a vote that commits leaves evidence', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`create table thing (n int)`
  await sql`insert into thing values (1)`
  const a = await openSession(t, url)
  for (const [statement, wrote] of [
    ['select count(*) from thing', false],
    [`set local work_mem = '8MB'`, false],
    ['select once.read_offset($$g$$, $$t$$, 0)', false],
    ['select from thing for update', true],
    ['update thing set n = 2', true],
    ['alter table thing set (fillfactor = 90)', true],
    [`select once.claim('p', 0)`, true],
  ] as const) {
    for (const end of ['commit', 'rollback']) {
      const id = randomUUID()
      await a.sql`begin`
      await a.rows(`call once.open('${id}')`)
      await a.sql.unsafe(statement)
      t.is(await a.value(`select once.vote('${id}', '${someHome}', 'a')`), wrote, statement)
      await a.rows(end)
      t.is((await evidenceOf(sql, id)) !== undefined, wrote && end === 'commit')
    }
  }
})

test('A second vote of one transaction names the home that was found to have written', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  await openBranch(a, id)
  await a.rows(`select once.vote('${id}', '${someHome}', 'a')`)
  const other = randomUUID()
  t.true(await a.value(`select once.vote('${id}', '${other}', 'b')`))
  await a.sql`commit`
  t.deepEqual(await evidenceOf(sql, id), [other, 'b'])
})

test('A home that wrote nothing is no home', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  await a.sql`begin`
  await a.rows(`call once.open('${id}')`)
  t.is(await a.value(`select once.begin_global('${id}', '{b}', '{${someHome}}')`), null)
  await a.sql`commit`
  t.is(await rowOf(sql, id), undefined)
})

test('The decision row carries the home’s own xid, and its participants in pairs', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  await openBranch(a, id)
  await a.sql`savepoint s`
  await refused(t, a.rows(`select once.begin_global('${id}', '{b,c}', '{${someHome}}')`), 'ONARG')
  await a.sql`rollback to s`
  await refused(t, a.rows(`select once.begin_global('${id}', null, '{}')`), 'ONARG')
  await a.sql`rollback to s`
  const xid = await a.value(`select once.begin_global('${id}', '{b}', '{${someHome}}')`)
  t.is(xid, await a.value('select pg_current_xact_id()'))
  await a.sql`savepoint s`
  await refused(t, a.rows(`select once.begin_global('${id}', '{b}', '{${someHome}}')`), '23505')
  await a.sql`rollback to s`
  await a.sql`commit`
  t.is(
    await oneValue(sql, `select home_xid from once.global_transaction where transaction_id = '${id}'`),
    xid,
  )
})

test('A home, or a participant, that is not the database it is believed to be is refused', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const homeId = await homeOf(sql)
  const home = (id: string, believed: string) =>
    a.value(`select once.begin_global('${id}', '{b}', '{${someHome}}', ${believed})`)
  const participant = (id: string, believed: string) =>
    a.value(`select once.vote('${id}', '${someHome}', 'a', ${believed})`)
  for (const vote of [home, participant]) {
    const id = randomUUID()
    await openBranch(a, id)
    await a.sql`savepoint s`
    await refused(t, vote(id, `'${someHome}'`), 'ONIDN', homeId, someHome)
    await a.sql`rollback to s`
    await t.notThrowsAsync(vote(id, `'${homeId}'`))
    await a.sql`rollback to s`
    await t.notThrowsAsync(vote(id, 'null'), 'null is not checked')
    await a.sql`rollback`
  }
})

test('Participants that wrote nothing are taken out of the decision; if none is left, so is the decision', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const homeId = await homeOf(sql)
  for (const narrowed of [['b'], []]) {
    for (const voted of [false, true]) {
      const id = randomUUID()
      await openBranch(a, id)
      if (voted) await a.rows(`select once.vote('${id}', '${someHome}', 'a')`)
      const homes = narrowed.map(() => someHome)
      const xid = await a.value(`select once.begin_global('${id}', '{b,c}', '{${someHome},${someHome}}')`)
      await a.rows(`select once.narrow_global('${id}', '{${narrowed}}', '{${homes}}')`)
      await a.sql`commit`
      t.deepEqual(await rowOf(sql, id), narrowed.length > 0 ? [narrowed] : undefined)
      t.is(await evidenceOf(sql, id), undefined, 'the home needs no evidence: its row is the proof')
      t.is(await decide(sql, homeId, id, String(xid)), narrowed.length > 0 ? 'committed' : 'aborted')
    }
  }
})

test('A decision is narrowed only in its own transaction, and never by a null', async (t) => {
  const { sql, url } = shared()
  const a = await openSession(t, url)
  const id = randomUUID()
  await beginHome(a, id, `array['b', 'c']`)
  await a.sql`savepoint s`
  for (const nothing of [`null, null`, `'{}', null`, `null, '{}'`]) {
    await refused(
      t,
      a.rows(`select once.narrow_global('${id}', ${nothing})`),
      'ONARG',
      'removes the decision',
    )
    await a.sql`rollback to s`
  }
  await refused(t, a.rows(`select once.narrow_global('${id}', '{b}', '{}')`), 'ONARG')
  await a.sql`rollback to s`
  await a.sql`commit`
  for (const before of ['select', 'select pg_current_xact_id()']) {
    await a.sql`begin`
    await a.rows(before)
    await a.rows(`select once.narrow_global('${id}', '{}', '{}')`)
    await a.rows(`select once.narrow_global('${id}', '{x}', '{${someHome}}')`)
    await a.sql`commit`
  }
  t.deepEqual(await rowOf(sql, id), [['b', 'c']])
  const branch = randomUUID()
  await openBranch(a, branch)
  await a.rows(`select once.vote('${branch}', '${someHome}', 'a')`)
  await a.sql`commit`
  await a.rows(`select once.narrow_global('${branch}', '{}', '{}')`)
  t.deepEqual(await evidenceOf(sql, branch), [someHome, 'a'])
})

test('Claims, offsets, a new partition and the vote can all be prepared together', async (t) => {
  const { sql, url } = await testDatabase(t)
  const a = await openSession(t, url)
  for (const finish of ['commit', 'rollback']) {
    const id = randomUUID()
    const gid = `once:1:${someHome}:${id}:99:a`
    const day = finish === 'commit' ? '2024-01-01' : '2024-01-02'
    await a.sql`begin`
    await a.rows(`call once.open('${id}')`)
    await a.rows(`select once.claim('${finish}', 0)`)
    await a.rows(`select once.claim_key('${finish}', 'k', '${day}')`)
    await a.rows(`select once.keep_result('${finish}', 'k', '1', '${day}')`)
    await a.rows(`select once.claim_key('${finish}', 'k')`)
    await a.rows(`select once.take_partition('${finish}', 't', 0)`)
    await a.rows(`select once.advance('${finish}', 't', 0, 1, null, 5)`)
    await a.rows(`select once.report_end('${finish}', 0, 5)`)
    await a.rows(`select once.vote('${id}', '${someHome}', 'a')`)
    await a.rows(`prepare transaction '${gid}'`)
    t.is(await oneValue(sql, `select count(*)::int from once.in_doubt where ours`), 1)
    await sql.unsafe(`${finish} prepared '${gid}'`)
    const effects = await rowsOf(
      sql,
      `select (select count(*)::int from once.producer where producer = '${finish}'),
              (select count(*)::int from once.message m join once.scope s using (scope_id) where s.scope = '${finish}'),
              (select count(*)::int from once.consumer_offset where consumer_group = '${finish}'),
              (select count(*)::int from once.evidence where transaction_id = '${id}'),
              to_regclass('once.message_${day.replaceAll('-', '')}') is not null`,
    )
    t.deepEqual(effects, [finish === 'commit' ? [1, 2, 1, 1, true] : [0, 0, 0, 0, false]])
  }
})

test('Strangers’ prepared transactions are shown where they carry our prefix, and never called ours', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const other = await testDatabase(t)
  const [app, stranger] = [await testRole(t, database), await testRole(t, database)]
  await sql`select once.grant_app(${app})`
  const prepare = async (url: string, gid: string) => {
    const a = await openSession(t, url)
    await a.sql`begin`
    await a.rows('select pg_current_xact_id()')
    await a.rows(`prepare transaction '${gid.replaceAll(`'`, `''`)}'`)
  }
  const uuid = randomUUID
  const good = `once:1:${uuid()}:${uuid()}:18446744073709551:a.b_c-1`
  const strange = [
    'once:',
    'once:1',
    `once:1:${uuid()}`,
    `once:2:${uuid()}:${uuid()}:5:b`,
    `once:1:${uuid().toUpperCase()}:${uuid()}:5:b`,
    `once:1:${uuid()}:${uuid()}:-5:b`,
    `once:1:${uuid()}:${uuid()}:123456789012345678901:b`,
    `once:1:${uuid()}:${uuid()}:5:`,
    `once:1:${uuid()}:${uuid()}:5:b:c`,
    `once:1:${uuid()}:${uuid()}:5:b'; drop schema once; --`,
    `once:1:${uuid()}:${uuid()}:5:😀`,
    `once:1:${uuid()}:${uuid()}:5:b\nonce:1`,
    `\nonce:1:${uuid()}:${uuid()}:5:b`,
    `once:1:${uuid()}:${uuid()}:5:${'x'.repeat(64)}`,
  ]
  for (const gid of strange) await prepare(database.urlAs(app), gid)
  await prepare(database.urlAs(app), good)
  const squatted = `once:1:${uuid()}:${uuid()}:5:b`
  await prepare(database.urlAs(stranger), squatted)
  const unrelated = randomName('another-manager')
  await prepare(database.urlAs(app), unrelated)
  await prepare(other.url, `once:1:${uuid()}:${uuid()}:5:b`)

  const shown = await rowsOf(
    sql,
    'select gid, owner, ours, transaction_id is not null from once.in_doubt where gid like $$once:%$$ order by gid',
  )
  const expected = [
    ...strange.filter((gid) => gid.startsWith('once:')).map((gid) => [gid, app, false, false]),
    [good, app, true, true],
    [squatted, stranger, false, true],
  ]
  t.deepEqual(
    shown.toSorted(([x], [y]) => (String(x) < String(y) ? -1 : 1)),
    expected.toSorted(([x], [y]) => (String(x) < String(y) ? -1 : 1)),
  )
  t.true(
    await oneValue(sql, `select bool_and(age >= '0' and age < '1 hour' and can_finish) from once.in_doubt`),
  )
  t.deepEqual(
    await rowsOf(sql, `select home_xid::xid8, participant from once.in_doubt where gid = '${good}'`),
    [['18446744073709551', 'a.b_c-1']],
  )
})

test('in_doubt says who may finish a branch: its owner, who can become its owner, and a superuser', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const [app, member, outsider] = [
    await testRole(t, database),
    await testRole(t, database),
    await testRole(t, database),
  ]
  await sql`select once.grant_app(${app})`
  for (const role of [member, outsider]) await sql`select once.grant_monitor(${role})`
  await sql.unsafe(`grant ${app} to ${member}`)
  const a = await openSession(t, database.urlAs(app))
  const id = randomUUID()
  const gid = `once:1:${someHome}:${id}:99:a`
  await openBranch(a, id)
  await a.rows(`select once.vote('${id}', '${someHome}', 'a')`)
  await a.rows(`prepare transaction '${gid}'`)
  const canFinish = async (role: string) =>
    (await openSession(t, database.urlAs(role))).value('select can_finish from once.in_doubt')
  t.deepEqual(await Promise.all([app, member, outsider].map(canFinish)), [true, true, false])
  if (Number(await oneValue(sql, `show server_version_num`)) >= 160000) {
    await sql.unsafe(`grant ${app} to ${outsider} with set false`)
    t.false(await canFinish(outsider), 'a member that may not SET ROLE cannot')
  }
  const m = await openSession(t, database.urlAs(member))
  await refused(t, m.rows(`rollback prepared '${gid}'`), '42501')
  await m.rows(`set role ${app}`)
  await t.notThrowsAsync(m.rows(`rollback prepared '${gid}'`))
})

test('A branch whose owner was dropped is shown without one, and is nobody’s to finish but a superuser’s', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const name = randomName('role')
  await sql.unsafe(`create role ${name} login`)
  const a = await openSession(t, database.urlAs(name))
  await a.sql`begin`
  await a.rows('select pg_current_xact_id()')
  await a.rows(`prepare transaction 'once:1:${someHome}:${randomUUID()}:99:a'`)
  await a.sql.end()
  await sql.unsafe(`drop role ${name}`)
  t.deepEqual(await rowsOf(sql, 'select owner, ours, can_finish from once.in_doubt'), [[null, false, false]])
})

test('Unproven decisions come in pages, oldest first, none left out where times are equal', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes, decided_at)
    select gen_random_uuid(), '{b}', array[gen_random_uuid()], timestamptz '2024-01-01' + g / 4 * interval '1 second'
      from generate_series(1, 30) g`
  const seen: unknown[] = []
  for (let after = ''; ; ) {
    const page = await rowsOf(sql, `select transaction_id, decided_at::text from once.unproven(7${after})`)
    if (page.length === 0) break
    seen.push(...page.map(([id]) => id))
    const last = page.at(-1)
    after = `, '${last?.[1]}', '${last?.[0]}'`
  }
  t.is(new Set(seen).size, 30)
  t.is(seen.length, 30)
  t.deepEqual(
    seen,
    (
      await rowsOf(
        sql,
        'select transaction_id from once.global_transaction order by decided_at, transaction_id',
      )
    ).flat(),
  )
})

test('Evidence comes in pages, all of it', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`insert into once.evidence select gen_random_uuid(), ${someHome}, 'b' from generate_series(1, 25)`
  const seen: unknown[] = []
  for (let after = ''; ; ) {
    const page = await rowsOf(sql, `select * from once.evidence_page(10${after})`)
    if (page.length === 0) break
    t.true(page.every(([, home, participant]) => home === someHome && participant === 'b'))
    seen.push(...page.map(([id]) => id))
    after = `, '${seen.at(-1)}'`
  }
  t.is(seen.length, 25)
  t.is(new Set(seen).size, 25)
})

test('The pages of the clean-up and the question of a decision are index scans', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes, proven_at, confirmed_at)
    select gen_random_uuid(), '{b}', array[gen_random_uuid()], case when g > 20 then now() - interval '1 hour' end,
           case when g > 40 and g % 2 = 0 then now() - interval '1 hour' end
      from generate_series(1, 20000) g`
  await sql`insert into once.evidence select gen_random_uuid(), ${someHome}, 'b' from generate_series(1, 20000)`
  await sql`analyze once.global_transaction, once.evidence`
  const homeId = await homeOf(sql)
  const calls = [
    `once.decide('${homeId}', '${randomUUID()}', '3')`,
    `once.unproven(10)`,
    `once.unproven(10, now() - interval '1 minute', '${randomUUID()}')`,
    `once.proven(10, '1 minute')`,
    `once.confirmed(10, '1 minute')`,
    `once.evidence_page(10)`,
    `once.find_evidence(array['${randomUUID()}', '${randomUUID()}']::uuid[])`,
    `once.find_decisions(array['${randomUUID()}', '${randomUUID()}']::uuid[])`,
    `once.mark_proven(array['${randomUUID()}']::uuid[])`,
    `once.mark_confirmed(array['${randomUUID()}']::uuid[])`,
    `once.delete_evidence('${homeId}', array['${randomUUID()}']::uuid[])`,
    `once.forget_proven(array['${randomUUID()}']::uuid[])`,
  ]
  for (const call of calls) {
    await sql.begin(async (trx) => {
      await trx.unsafe(`select ${call}`)
      const [row] = await trx.unsafe(
        `select coalesce(sum(seq_scan), 0)::int as n from pg_stat_xact_user_tables
          where schemaname = 'once' and relname in ('global_transaction', 'evidence')`,
      )
      t.is(row?.n, 0, call)
    })
  }
})

test('Two recoverers that forget the same transactions at once do each step once', async (t) => {
  const { sql, url } = await testDatabase(t)
  const homeId = await homeOf(sql)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  const ids = Array.from({ length: 300 }, () => randomUUID())
  await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes)
    select id, '{b}', array[${someHome}::uuid] from unnest(${ids}::uuid[]) id`
  await sql`insert into once.evidence select id, ${homeId}, 'b' from unnest(${ids}::uuid[]) id`
  const list = (order: readonly string[]) => `array['${order.join(`','`)}']::uuid[]`
  for (const step of [
    (x: string) => `once.mark_proven(${x})`,
    (x: string) => `once.mark_confirmed(${x})`,
    (x: string) => `once.delete_evidence('${homeId}', ${x})`,
    (x: string) => `once.forget_proven(${x})`,
  ]) {
    const counts = await Promise.all([
      a.value(`select ${step(list(ids))}`),
      b.value(`select ${step(list(ids.toReversed()))}`),
    ])
    t.is(Number(counts[0]) + Number(counts[1]), 300)
  }
})

test('A recoverer that deletes evidence waits for another that has not committed its deletion', async (t) => {
  const { sql, url } = shared()
  const homeId = await homeOf(sql)
  const id = randomUUID()
  await sql`insert into once.evidence values (${id}, ${homeId}, 'b')`
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  const call = `select once.delete_evidence('${homeId}', array['${id}']::uuid[])`
  await a.sql`begin`
  t.is(await a.value(call), '1')
  const second = b.value(call)
  await untilBlocked(sql, b)
  await a.sql`rollback`
  t.is(await second, '1')
})

test('Evidence for another home is never deleted', async (t) => {
  const { sql } = shared()
  const id = randomUUID()
  await sql`insert into once.evidence values (${id}, ${someHome}, 'b')`
  t.is(await oneValue(sql, `select once.delete_evidence('${randomUUID()}', array['${id}']::uuid[])`), '0')
  t.deepEqual(await evidenceOf(sql, id), [someHome, 'b'])
})

/** The steps of forgetting one transaction, with its home and its branch in one database. */
const forgetting = {
  prove: (_home: string, ids: string) => `once.mark_proven(${ids})`,
  confirm: (_home: string, ids: string) => `once.mark_confirmed(${ids})`,
  'delete evidence': (home: string, ids: string) => `once.delete_evidence('${home}', ${ids})`,
  forget: (_home: string, ids: string) => `once.forget_proven(${ids})`,
} as const

test('Forgetting may be done in any order and any number of times: no row goes before it is proven and confirmed', async (t) => {
  const { sql } = await testDatabase(t)
  const homeId = await homeOf(sql)
  const steps = Object.keys(forgetting) as (keyof typeof forgetting)[]
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...steps), { maxLength: 8 }), async (list) => {
      const [id, bystander] = [randomUUID(), randomUUID()]
      const xids = new Map<string, string>()
      for (const one of [id, bystander]) {
        const [row] = await sql`
          insert into once.global_transaction (transaction_id, participants, participant_homes)
          values (${one}, '{b}', ${[homeId]}) returning home_xid::text as xid`
        xids.set(one, row?.xid)
        await sql`insert into once.evidence values (${one}, ${homeId}, 'b')`
      }
      const model = { row: true, proven: false, confirmed: false, evidence: true }
      for (const step of list) {
        const count = await oneValue(sql, `select ${forgetting[step](homeId, `array['${id}']::uuid[]`)}`)
        const changes = {
          prove: model.row && !model.proven,
          confirm: model.row && model.proven && !model.confirmed,
          'delete evidence': model.evidence,
          forget: model.row && model.confirmed,
        }[step]
        t.is(count, changes ? '1' : '0')
        if (step === 'prove') model.proven ||= changes
        else if (step === 'confirm') model.confirmed ||= changes
        else if (step === 'forget') model.row &&= !changes
        else model.evidence = false
        t.is((await rowOf(sql, id)) !== undefined, model.row)
        t.is((await evidenceOf(sql, id)) !== undefined, model.evidence)
        t.is(await outcome(sql, homeId, id, xids.get(id) ?? ''), model.row ? 'committed' : 'forgotten')
      }
      t.truthy(await rowOf(sql, bystander))
      t.truthy(await evidenceOf(sql, bystander))
      t.is(await outcome(sql, homeId, bystander, xids.get(bystander) ?? ''), 'committed')
    }),
    { numRuns: 40 },
  )
})

test('An absent decision is called aborted only above everything that was ever forgotten', async (t) => {
  const { sql, url } = await testDatabase(t)
  const homeId = await homeOf(sql)
  const a = await openSession(t, url)
  const finished = async (end: 'commit' | 'rollback') => {
    const id = randomUUID()
    const xid = await beginHome(a, id)
    await a.rows(end)
    return { id, xid }
  }
  const [early, kept, lost, late] = [
    await finished('rollback'),
    await finished('commit'),
    await finished('commit'),
    await finished('rollback'),
  ]
  const answers = async () =>
    Promise.all([early, kept, lost, late].map(({ id, xid }) => outcome(sql, homeId, id, xid)))
  t.deepEqual(await answers(), ['aborted', 'committed', 'committed', 'aborted'])
  await rowsOf(sql, `select once.mark_proven(array['${lost.id}']::uuid[])`)
  await rowsOf(sql, `select once.mark_confirmed(array['${lost.id}']::uuid[])`)
  await rowsOf(sql, `select once.forget_proven(array['${lost.id}']::uuid[])`)
  t.deepEqual(await answers(), ['forgotten', 'committed', 'forgotten', 'aborted'])
  t.is(
    await decide(sql, homeId, early.id, early.xid),
    'aborted',
    'a branch in doubt gets its answer all the same',
  )
})

for (const where of ['another database', 'the database of the home']) {
  test(`A branch that was given the xid which a home lost in a crash does not wait for itself: in ${where}`, async (t) => {
    const a = await testDatabase(t)
    const b = where === 'another database' ? await testDatabase(t) : a
    const [homeId, id] = [await homeOf(a.sql), randomUUID()]
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
  const [homeId, id] = [await homeOf(a.sql), randomUUID()]
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
  const [homeId, id] = [await homeOf(a.sql), randomUUID()]
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
    const [homeId, id] = [await homeOf(a.sql), randomUUID()]
    const session = await openSession(t, a.url)
    const xid = await beginHome(session, id)
    const gid = how === 'by another manager' ? `foreign ${id}` : `once:1:${homeId}:${id}:${xid}:orders`
    await session.sql.unsafe(`prepare transaction '${gid}'`)
    t.is(await decide(a.sql, homeId, id, xid), 'pending')
    await a.sql.unsafe(`commit prepared '${gid}'`)
    t.is(await decide(a.sql, homeId, id, xid), 'committed')
  })
}

test('Decisions are found with whether they are proven, and confirmed', async (t) => {
  const { sql } = shared()
  const [unproven, proven, confirmed, absent] = [randomUUID(), randomUUID(), randomUUID(), randomUUID()]
  await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes)
    select id, '{b}', array[${someHome}::uuid] from unnest(${[unproven, proven, confirmed]}::uuid[]) id`
  await sql`select once.mark_proven(${[proven, confirmed]}::uuid[])`
  await sql`select once.mark_confirmed(${[unproven, confirmed]}::uuid[])`
  const rows = await sql`select * from once.find_decisions(${[unproven, proven, confirmed, absent]}::uuid[])`
  t.deepEqual(
    new Map(rows.map((row) => [row.transaction_id, [row.proven, row.confirmed]])),
    new Map([
      [unproven, [false, false]],
      [proven, [true, false]],
      [confirmed, [true, true]],
    ]),
  )
})

test('A loss is recorded once, and only an operator with a reason puts it to rest', async (t) => {
  const { sql } = await testDatabase(t)
  const homeId = await homeOf(sql)
  const id = randomUUID()
  const [row] = await sql`
    insert into once.global_transaction (transaction_id, participants, participant_homes)
    values (${id}, '{b}', ${[someHome]}) returning home_xid::text as xid`
  await sql`insert into once.evidence values (${id}, ${homeId}, 'b')`
  const record = (kind: string) =>
    oneValue(sql, `select once.record_heuristic('${id}', 'b', '${homeId}', '${kind}')`)
  const forget = (reason: string) => oneValue(sql, `select once.forget('${id}', ${reason})`)
  await refused(t, forget(`'too early'`), 'ONARG', id, 'no loss')
  t.true(await record('lost branch'))
  t.false(await record('lost branch'))
  t.true(await record('lost decision'))
  await refused(t, record('bad luck'), 'ONARG')
  await refused(t, forget(`''`), 'ONARG', 'reason')
  await refused(t, forget('null'), 'ONARG', 'reason')
  await refused(t, oneValue(sql, `select once.forget(null, 'x')`), 'ONARG')
  t.truthy(await rowOf(sql, id), 'a refused acknowledgement removes nothing')
  t.is(await forget(`'paid back by hand'`), '2')
  t.is(await rowOf(sql, id), undefined)
  t.is(await evidenceOf(sql, id), undefined)
  t.is(
    await outcome(sql, homeId, id, row?.xid),
    'forgotten',
    'a decision that was removed must not look aborted',
  )
  await refused(t, forget(`'again'`), 'ONARG')
  t.false(await record('lost branch'), 'it stays known')
  t.is(await oneValue(sql, 'select count(*)::int from once.heuristic where acknowledged_at is not null'), 2)
  t.deepEqual(await rowsOf(sql, 'select action, subject, reason from once.intervention'), [
    ['forget', { transaction_id: id }, 'paid back by hand'],
  ])
})

/** Runs the flow with a home and a branch as two random strangers would, and recovers at every point. */
test('Recovery at any point of the flow agrees with the home’s commit', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const homeId = await homeOf(a.sql)
  await a.sql`create table effect (id uuid)`
  await b.sql`create table effect (id uuid)`
  /** What a recoverer does: sees branches, asks, finishes. */
  const recover = async () => {
    for (const [gid, id, xid] of await rowsOf(
      b.sql,
      'select gid, transaction_id, home_xid from once.in_doubt where ours',
    )) {
      const decision = await decide(a.sql, homeId, String(id), String(xid))
      if (decision !== 'pending')
        await b.sql.unsafe(`${decision === 'committed' ? 'commit' : 'rollback'} prepared '${gid}'`)
    }
  }
  for (const crash of ['before prepare', 'after prepare', 'after rollback', 'after commit'] as const) {
    const [home, branch] = [await openSession(t, a.url), await openSession(t, b.url)]
    const id = randomUUID()
    await home.sql`begin`
    await home.rows(`call once.open('${id}')`)
    await home.rows(`insert into effect values ('${id}')`)
    const xid = await home.value(`select once.begin_global('${id}', '{b}', '{${await homeOf(b.sql)}}')`)
    await branch.sql`begin`
    await branch.rows(`call once.open('${id}')`)
    await branch.rows(`insert into effect values ('${id}')`)
    await branch.rows(`select once.vote('${id}', '${homeId}', 'b')`)
    await recover()
    if (crash !== 'before prepare') {
      await branch.rows(`prepare transaction 'once:1:${homeId}:${id}:${xid}:b'`)
      await recover()
      t.is(await oneValue(b.sql, 'select count(*)::int from once.in_doubt'), 1, 'pending: left alone')
    }
    if (crash === 'after commit') await home.sql`commit`
    if (crash === 'after rollback') await home.sql`rollback`
    for (const { sql, pid } of [
      { sql: a.sql, pid: home.pid },
      { sql: b.sql, pid: branch.pid },
    ])
      await sql`select pg_terminate_backend(${pid}, 5000)`
    await until('nothing is in doubt', async () => {
      await recover()
      return (await oneValue(b.sql, 'select count(*)::int from once.in_doubt')) === 0
    })
    const effects = (database: TestDatabase) =>
      oneValue(database.sql, `select count(*)::int from effect where id = '${id}'`)
    t.deepEqual([await effects(a), await effects(b)], crash === 'after commit' ? [1, 1] : [0, 0], crash)
  }
})
