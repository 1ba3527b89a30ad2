import { randomUUID } from 'node:crypto'
import test from 'ava'
import { connect, installSchema, ownServer, randomName, testDatabase, testRole } from '../support/database.ts'
import { effectsDatabase } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { type Link, oneValue, openSession, refused, rowsOf, untilBlocked } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'
import { openBranch, someHome } from '../support/two-phase.ts'
import { until } from '../support/until.ts'

const base64 = (text: string | Buffer) => Buffer.from(text).toString('base64')

test('in_doubt shows every prepared transaction of this database and no other', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const { gid, transactionId } = await leaveOrphan(a, b, 1)
  const home = await oneValue(a.sql, 'select once.database_id()')
  await prepare(t, b.url, `mine in ${b.name}`, 'insert into effect values (2)')
  t.deepEqual(
    await rowsOf(
      b.sql,
      `select gid, manager, global_id, participant, transaction_id, home, ours, can_finish, owner, outcome
         from once.in_doubt order by ours desc`,
    ),
    [
      [
        gid,
        'pgonce',
        transactionId,
        'billing',
        transactionId,
        home,
        true,
        true,
        'postgres',
        `unknown here: ask ${home}`,
      ],
      [
        `mine in ${b.name}`,
        'unknown',
        null,
        null,
        null,
        null,
        false,
        true,
        'postgres',
        'not ours: ask its manager',
      ],
    ],
  )
  t.deepEqual(await rowsOf(a.sql, 'select gid from once.in_doubt'), [])
  const elsewhere = `select manager, xid_age >= 0, age >= '0' from once.in_doubt_elsewhere where database = '${b.name}' order by 1`
  t.deepEqual(await rowsOf(a.sql, elsewhere), [
    ['pgonce', true, true],
    ['unknown', true, true],
  ])
})

test('The gids of other managers are decoded and named, and theirs are never ours', async (t) => {
  const flink = Buffer.alloc(28)
  flink.fill(0xab, 0, 16)
  flink.writeInt32BE(3, 16)
  flink.writeBigInt64BE(77n, 20)
  const cases: [gid: string, manager: string, id: string | null, participant: string | null][] = [
    [`42_${base64('order-1')}_${base64('billing')}`, 'pgjdbc or psycopg', '42:order-1', 'billing'],
    [`7_${base64(Buffer.from([0, 255]))}_`, 'pgjdbc or psycopg', '7:00ff', ''],
    [`-5_${base64('a\\b')}_${base64('é')}`, 'pgjdbc or psycopg', '-5:615c62', 'c3a9'],
    [
      `201_${base64(flink)}_${base64(Buffer.from([1, 2, 3, 4]))}`,
      'flink (pgjdbc)',
      `job ${'ab'.repeat(16)} subtask 3 checkpoint 77`,
      '01020304',
    ],
    [`131077_${base64('x')}_${base64('y')}`, 'narayana (pgjdbc)', '131077:x', 'y'],
    ['citus_0_4711_123456_2', 'citus', 'group 0 pid 4711 transaction 123456', 'connection 2'],
    ['citus_0_4711_9', 'citus', 'group 0 pid 4711 transaction 9', null],
    ['pg_gid_16394_745', 'logical replication', 'remote xid 745', 'subscription 16394'],
    [`_sa_${'0f'.repeat(16)}`, 'sqlalchemy', '0f'.repeat(16), null],
    [
      '9cd3aeb2-8a8a-4a1e-9d14-1fb8f55f2c3a/3121',
      'npgsql',
      '9cd3aeb2-8a8a-4a1e-9d14-1fb8f55f2c3a',
      'pid 3121',
    ],
    ['__pgdog_2pc_prod1_99_0', 'pgdog', 'prod1_99', 'shard 0'],
    ['__pgdog_2pc_99_1', 'pgdog', '99', 'shard 1'],
    ['42_not base64_x', 'unknown', null, null],
    ['once:1:nonsense', 'unknown', null, null],
    ['', 'unknown', null, null],
  ]
  const { sql } = await testDatabase(t)
  for (const [gid, manager, id, participant] of cases) {
    const [row] =
      await sql`select manager, global_id, participant, transaction_id from once.decode_gid(${gid})`
    t.deepEqual({ ...row }, { manager, global_id: id, participant, transaction_id: null }, gid)
  }
})

test('Strangers’ prepared transactions are shown where they carry our prefix, and never called ours', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const other = await testDatabase(t)
  const [app, stranger] = [await testRole(t, database), await testRole(t, database)]
  await sql`select once.grant_app(${app})`
  const leave = (url: string, gid: string) => prepare(t, url, gid, 'select pg_current_xact_id()')
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
  for (const gid of strange) await leave(database.urlAs(app), gid)
  await leave(database.urlAs(app), good)
  const squatted = `once:1:${uuid()}:${uuid()}:5:b`
  await leave(database.urlAs(stranger), squatted)
  const unrelated = randomName('another-manager')
  await leave(database.urlAs(app), unrelated)
  await leave(other.url, `once:1:${uuid()}:${uuid()}:5:b`)

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

test('A stranger who uses a gid of our form is not taken for ours, and gets no decision', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const { gid } = await leaveOrphan(a, b, 1)
  await b.sql.unsafe(`rollback prepared '${gid}'`)
  const stranger = await testRole(t, b)
  await b.sql.unsafe(`grant all on effect to ${stranger}`)
  await prepare(t, b.urlAs(stranger), gid, 'insert into effect values (9)')
  t.deepEqual(await rowsOf(b.sql, 'select manager, ours, outcome from once.in_doubt'), [
    ['unknown', false, 'not ours: ask its manager'],
  ])
  t.deepEqual(await rowsOf(b.sql, 'select once.resolve()'), [])
})

test('Locks are shown with their modes, before and after a restart of the server', async (t) => {
  const server = await ownServer(t)
  const admin = connect(t, server.url())
  await admin.unsafe('create database shop')
  const url = server.url('shop')
  await installSchema(url)
  const setup = connect(t, url)
  await setup`create table effect (id int primary key)`
  await setup`create table other (id int)`
  await prepare(
    t,
    url,
    'foreign',
    'insert into effect values (1); savepoint s; insert into effect values (2); lock table other in share mode',
  )
  const look = () =>
    connect(t, url)`select locks, age >= '0' as aged, xid_age from once.in_doubt`.then(([row]) => ({
      ...row,
    }))
  const expected = ['public.effect RowExclusiveLock', 'public.other ShareLock']
  t.like(await look(), { locks: expected, aged: true })
  await server.restart()
  t.like(await look(), { locks: expected, aged: true })
  const waiter = connect(t, url)
  const waiting = waiter`update other set id = 1`
  waiting.catch(() => {})
  const watcher = connect(t, url)
  await until('the waiter shows', async () => (await watcher`select from once.blocked`).length === 1)
  t.deepEqual(
    (await watcher`select gid, relation::text, waits_on, mode, behind, query from once.blocked`).map(
      (row) => ({ ...row }),
    ),
    [
      {
        gid: 'foreign',
        relation: 'other',
        waits_on: 'relation',
        mode: 'RowExclusiveLock',
        behind: [],
        query: 'update other set id = 1',
      },
    ],
  )
  await watcher.unsafe(`rollback prepared 'foreign'`)
  await waiting
})

test('Sessions that wait for a prepared transaction are found, those behind them too, and nobody else', async (t) => {
  const b = await effectsDatabase(t)
  await b.sql`create table idle (id int)`
  await b.sql`insert into effect values (1)`
  await prepare(t, b.url, `row in ${b.name}`, 'update effect set id = 2')
  await prepare(t, b.url, `innocent in ${b.name}`, 'insert into idle values (1)')

  // The first waits for the row, the second for the first's place in the queue, the third for the table
  // behind both, the fourth behind the third.
  const statements = [
    'update effect set id = 3 where id = 1',
    'delete from effect where id = 1',
    'alter table effect add column more text',
    'select count(*) from effect',
  ]
  const sessions: Link[] = []
  const running: Promise<unknown>[] = []
  for (const statement of statements) {
    const session = await openSession(t, b.url)
    sessions.push(session)
    const run = session.sql.unsafe(statement).execute()
    run.catch(() => {})
    running.push(run)
    await untilBlocked(b.sql, session)
  }
  const bystander = await openSession(t, b.url)
  await bystander.sql.unsafe('begin; lock table idle in share mode nowait').catch(() => {})

  const pids = sessions.map(({ pid }) => pid).sort((x, y) => x - y)
  t.deepEqual(
    await rowsOf(
      b.sql,
      `select gid, blocks, blocked_pids, longest_wait > '0' from once.in_doubt order by blocks desc`,
    ),
    [
      [`row in ${b.name}`, 4, pids, true],
      [`innocent in ${b.name}`, 0, [], null],
    ],
  )
  const blocked =
    await b.sql`select pid, query, relation::text, waits_for >= '0' as waits, behind, mode from once.blocked`
  t.is(blocked.length, 4)
  for (const [index, session] of sessions.entries()) {
    const row = blocked.find(({ pid }) => pid === session.pid)
    t.like(row, { query: statements[index], relation: 'effect', waits: true })
  }
  t.deepEqual(blocked.find(({ pid }) => pid === sessions[0]?.pid)?.behind, [])
  t.true(blocked.find(({ pid }) => pid === sessions[3]?.pid)?.behind.includes(sessions[2]?.pid))

  await b.sql.unsafe(`rollback prepared 'row in ${b.name}'`)
  await Promise.all(running)
  t.deepEqual(await rowsOf(b.sql, 'select * from once.blocked'), [])
})

test('The decision is shown where this database is the home, and never makes the view fail', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const orphans = [
    await leaveOrphan(a, b, 1, 'committed'),
    await leaveOrphan(a, b, 2, 'aborted'),
    await leaveOrphan(a, b, 3, 'pending'),
  ]
  for (const { gid } of orphans) await b.sql.unsafe(`rollback prepared '${gid}'`)
  // The same gids, now prepared in the home itself.
  for (const { gid } of orphans)
    await prepare(t, a.url, gid, 'insert into effect values (100 + random() * 1e6)')
  const decisions = async (sql = a.sql) =>
    (
      await rowsOf(
        sql,
        `select outcome from once.in_doubt order by array_position('{${orphans.map(({ gid }) => gid)}}', gid)`,
      )
    ).flat()
  t.deepEqual(await decisions(), ['committed', 'aborted', 'pending'])
  await a.sql.begin('isolation level repeatable read', async (trx) => {
    t.deepEqual(await decisions(trx as never), Array(3).fill('unknown here: ask under read committed'))
  })
  for (const [index, outcome] of ['committed', 'aborted', 'pending'].entries())
    t.is(await oneValue(a.sql, `select once.gid_outcome('${orphans[index]?.gid}')`), outcome)
  await orphans[2]?.endHome('rollback')
  t.is(
    await oneValue(a.sql, `select once.gid_outcome('${orphans[2]?.gid.replace(/:billing$/, '')}')`),
    'aborted',
    'an id will do',
  )

  for (const { gid } of orphans) await a.sql.unsafe(`rollback prepared '${gid}'`)
  await a.sql`update once.database set database_oid = 1`
  await prepare(t, a.url, orphans[0]?.gid ?? '', 'insert into effect values (50)')
  t.regex(String((await decisions())[0]), /^unknown here: this database is a copy/)
})

test('in_doubt reads locks and prepared transactions once each, and takes all gids apart in one call', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  for (const effect of [1, 2, 3]) await leaveOrphan(a, b, effect)
  await prepare(t, b.url, `${base64('7')}_ in ${b.name}`, 'insert into effect values (4)')
  const waiter = await openSession(t, b.url)
  const waiting = waiter.sql.unsafe('insert into effect values (1)').execute()
  waiting.catch(() => {})
  await untilBlocked(b.sql, waiter)

  const plans: string[] = []
  const session = connect(t, b.url, { onnotice: ({ message = '' }) => plans.push(message) })
  await session.unsafe(`load 'auto_explain'`)
  for (const [name, value] of Object.entries({
    log_min_duration: 0,
    log_nested_statements: 'on',
    log_analyze: 'on',
    log_timing: 'off',
    log_level: 'notice',
  }))
    await session.unsafe(`set auto_explain.${name} = ${value}`)
  const rows = await session`select gid, blocks from once.in_doubt order by blocks`
  t.deepEqual(
    rows.map(({ blocks }) => blocks),
    [0, 0, 0, 1],
  )
  const text = plans.join('\n')
  for (const source of ['pg_lock_status', 'pg_prepared_xact', 'decode_gids', 'known_outcomes']) {
    const scans = text.match(new RegExp(`Function Scan on ${source}.*`, 'g')) ?? []
    t.is(scans.length, 1, `${source}: ${scans}`)
    t.regex(scans[0] ?? '', /\bloops=1\)/)
  }

  for (const gid of (await rowsOf(b.sql, 'select gid from once.in_doubt')).flat())
    await b.sql.unsafe(`rollback prepared '${gid}'`)
  await waiting
})

test('With 1,000 prepared transactions and 10,000 locks in_doubt takes at most 3 times the bare join', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 1000, max_locks_per_transaction: 256 })
  await installSchema(server.url())
  const sql = connect(t, server.url())
  const tables = Array.from({ length: 9 }, (_, n) => `held_${n}`)
  for (const table of tables) await sql.unsafe(`create table ${table} (id int)`)
  const [row] = await sql`select once.database_id() as home, pg_current_xact_id()::text as xid`
  for (let made = 0; made < 1000; made++) {
    await sql.unsafe(
      `begin; lock table ${tables.join(', ')} in row exclusive mode; select pg_current_xact_id()`,
    )
    await sql.unsafe(`prepare transaction 'once:1:${row?.home}:${randomUUID()}:${row?.xid}:p'`)
  }
  t.deepEqual(
    await rowsOf(
      sql,
      `select count(*)::int, count(*) filter (where ours and outcome = 'aborted' and cardinality(locks) = 9)::int from once.in_doubt`,
    ),
    [[1000, 1000]],
  )

  const timed = async (query: string) => {
    const began = performance.now()
    await sql.unsafe(query)
    return performance.now() - began
  }
  const ratios: number[] = []
  for (let round = 0; round < 21; round++) {
    const bare = await timed(
      `select count(l.mode)
         from pg_prepared_xacts p
         join pg_locks t on t.transactionid = p.transaction
         join pg_locks l on l.virtualtransaction = t.virtualtransaction`,
    )
    ratios.push((await timed('select count(*) from once.in_doubt')) / bare)
  }
  const median = ratios.toSorted((x, y) => x - y)[10] ?? Number.NaN
  t.log(`${median.toFixed(2)} times`)
  t.true(median <= 3, `${median} times`)
})
