import { randomUUID } from 'node:crypto'
import test from 'ava'
import { type TestDatabase, testDatabase, testRole } from '../support/database.ts'
import { databaseIdOf, oneValue, openSession, refused, rowsOf, sharedDatabase } from '../support/sql.ts'
import { beginHome, decide, evidenceOf, openBranch, outcome, rowOf, someHome } from '../support/two-phase.ts'
import { until } from '../support/until.ts'

const shared = sharedDatabase()

test('The whole flow over two servers: pending before the home’s commit, committed from then on', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const [home, branch] = [await openSession(t, a.url), await openSession(t, b.url)]
  const id = randomUUID()
  const homeId = await databaseIdOf(a.sql)
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

  // Nothing is purged before it is proven.
  t.is(await oneValue(a.sql, `select once.purge(array['${id}']::uuid[])`), '0')
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
  t.is(await oneValue(a.sql, `select once.purge(array['${id}']::uuid[])`), '0', 'nor before it is confirmed')
  t.is(await oneValue(a.sql, `select once.mark_confirmed(array['${id}']::uuid[])`), '1')
  t.deepEqual(await rowsOf(a.sql, `select * from once.proven(10, '0')`), [])
  t.deepEqual(await rowsOf(a.sql, `select transaction_id, participants from once.confirmed(10, '0')`), [
    [id, ['b']],
  ])
  t.deepEqual(await rowsOf(a.sql, 'select * from once.confirmed()'), [], 'a standby shall know it first')
  t.is(await oneValue(b.sql, `select once.delete_evidence('${homeId}', array['${id}']::uuid[])`), '1')
  t.is(await outcome(a.sql, homeId, id, xid), 'committed')
  t.is(await oneValue(a.sql, `select once.purge(array['${id}']::uuid[])`), '1')
  t.is(await outcome(a.sql, homeId, id, xid), 'purged')
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
    `once.assert_branch('${id}')`,
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
      a.rows(`select once.assert_branch('${id}')`),
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
  await t.notThrowsAsync(a.rows(`select once.assert_branch('${id}')`))
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
    ['select once.read_position($$g$$, $$t$$, 0)', false],
    ['select from thing for update', true],
    ['update thing set n = 2', true],
    ['alter table thing set (fillfactor = 90)', true],
    // A duplicate, as it is when it comes again, writes nothing.
    [`select once.claim(gen_random_uuid()::text, 0)`, true],
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
  const homeId = await databaseIdOf(sql)
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

test('Claims, positions and the vote can all be prepared together', async (t) => {
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
              (select count(*)::int from once.consumer_position where consumer_group = '${finish}'),
              (select count(*)::int from once.evidence where transaction_id = '${id}')`,
    )
    t.deepEqual(effects, [finish === 'commit' ? [1, 2, 1, 1] : [0, 0, 0, 0]])
  }
})

/** Runs the flow with a home and a branch as two random strangers would, and recovers at every point. */
test('Recovery at any point of the flow agrees with the home’s commit', async (t) => {
  const [a, b] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const homeId = await databaseIdOf(a.sql)
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
    const xid = await home.value(`select once.begin_global('${id}', '{b}', '{${await databaseIdOf(b.sql)}}')`)
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
