import test from 'ava'
import { pgonce } from '../../src/index.ts'
import {
  connect,
  installSchema,
  ownServer,
  randomName,
  type TestContext,
  testRole,
} from '../support/database.ts'
import { type EffectsDatabase, effectsDatabase, twoDatabases } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, refused, rowsOf } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'
import { until } from '../support/until.ts'

/** Databases that know each other as peers, on two clusters: by foreign servers, as an operator would. */
async function peers(t: TestContext): Promise<Record<'a' | 'b', EffectsDatabase>> {
  const [a, b] = await twoDatabases(t)
  for (const [here, there] of [
    [a, b],
    [b, a],
  ] as const) {
    const { hostname, port } = new URL(there.url)
    await here.sql.unsafe(`
      create extension dblink;
      create server other foreign data wrapper dblink_fdw options (host '${hostname}', port '${port}', dbname '${there.name}');
      create user mapping for current_user server other options (user 'postgres')`)
    const home = await oneValue(here.sql, `select once.add_peer('other')`)
    if (home !== (await oneValue(there.sql, 'select once.database_id()'))) throw new Error('Not the peer')
  }
  return { a, b }
}

/** The two recoveries that must be interchangeable: each looks after all databases once. */
const recoveries = {
  'once.recover()': async ({ a, b }: Record<'a' | 'b', EffectsDatabase>, keep = 600_000) => {
    for (const { sql } of [b, a]) await sql.unsafe(`select * from once.recover('${keep} milliseconds')`)
  },
  'once.recovery.run()': async ({ a, b }: Record<'a' | 'b', EffectsDatabase>, keep = 600_000) => {
    await using once = pgonce<Record<string, object>>({ databases: { a: a.url, b: b.url } })
    await once.recovery.run({ keep })
  },
}

for (const [name, recover] of Object.entries(recoveries)) {
  test(`${name} commits what the home committed, rolls back what it did not, and waits for the rest`, async (t) => {
    const both = await peers(t)
    const { a, b } = both
    await leaveOrphan(a, b, 1, 'committed')
    await leaveOrphan(a, b, 2, 'aborted')
    const pending = await leaveOrphan(a, b, 3, 'pending')
    await leaveOrphan(b, a, 4, 'committed')
    const foreign = `42_Zm9v_${Buffer.from(b.name).toString('base64')}`
    await prepare(t, b.url, foreign, 'insert into effect values (9)')
    await recover(both)
    t.deepEqual([await a.effects(), await b.effects()], [[4], [1]])
    t.deepEqual(
      (await rowsOf(b.sql, 'select gid from once.in_doubt order by 1')).flat().sort(),
      [foreign, pending.gid].sort(),
    )
    await pending.endHome('commit')
    await recover(both)
    t.deepEqual(await b.effects(), [1, 3])
    t.deepEqual(await rowsOf(b.sql, 'select gid from once.in_doubt'), [[foreign]], 'what is not ours stays')
    t.deepEqual(await rowsOf(b.sql, 'select * from once.loss'), [])
    t.true(await oneValue(b.sql, `select recovered_at > now() - interval '1 minute' from once.recovery`))
  })

  test(`${name} proves, and purges by the handshake: first the evidence, then the decision`, async (t) => {
    const both = await peers(t)
    const { a, b } = both
    await leaveOrphan(a, b, 1)
    await leaveOrphan(b, a, 2)
    const left = async () => [
      ...(await rowsOf(a.sql, 'select proven_at is not null from once.global_transaction')).flat(),
      ...(await rowsOf(b.sql, 'select proven_at is not null from once.global_transaction')).flat(),
      await oneValue(a.sql, 'select count(*)::int from once.evidence'),
      await oneValue(b.sql, 'select count(*)::int from once.evidence'),
    ]
    await recover(both)
    await recover(both)
    t.deepEqual(await left(), [true, true, 1, 1])
    await recover(both, 0)
    t.deepEqual(await left(), [0, 0])
    t.deepEqual(await rowsOf(a.sql, 'select * from once.loss'), [])
  })

  test(`${name} looks once more before it purges: a branch that was lost since is recorded, one in doubt again is committed`, async (t) => {
    const both = await peers(t)
    const { a, b } = both
    const [lost, again, fine] = [
      await leaveOrphan(a, b, 1),
      await leaveOrphan(a, b, 2),
      await leaveOrphan(a, b, 3),
    ]
    await recover(both)
    t.is(
      await oneValue(a.sql, 'select count(*)::int from once.global_transaction where proven_at is not null'),
      3,
    )
    // As a standby of b's leaves them that lacked the newest transactions: one has lost PREPARE, one only the commit.
    await b.sql`delete from effect where id in (1, 2)`
    const [row] =
      await b.sql`delete from once.evidence where transaction_id = ${again.transactionId} returning home`
    await b.sql`delete from once.evidence where transaction_id = ${lost.transactionId}`
    await prepare(
      t,
      b.url,
      again.gid,
      `insert into effect values (2); insert into once.evidence values ('${again.transactionId}', '${row?.home}', 'billing')`,
    )
    await recover(both, 0)
    await recover(both, 0)
    t.deepEqual(await b.effects(), [2, 3])
    t.deepEqual(await rowsOf(b.sql, 'select gid from once.in_doubt'), [])
    t.deepEqual(await rowsOf(a.sql, 'select transaction_id, participant, kind from once.loss'), [
      [lost.transactionId, 'billing', 'lost branch'],
    ])
    t.deepEqual(
      await rowsOf(a.sql, 'select transaction_id from once.global_transaction'),
      [[lost.transactionId]],
      'what was lost stays until somebody acknowledges it',
    )
    t.not(fine.transactionId, lost.transactionId)
    await rowsOf(a.sql, `select once.acknowledge('${lost.transactionId}', 'repaired by hand')`)
    await recover(both, 0)
    t.deepEqual(await rowsOf(a.sql, 'select from once.global_transaction'), [])
    t.deepEqual(await rowsOf(b.sql, 'select from once.evidence'), [])
  })

  test(`${name} deletes no evidence before a standby of the home had time to hear that it may`, async (t) => {
    const both = await peers(t)
    const { a, b } = both
    await leaveOrphan(a, b, 1)
    await recover(both)
    await a.sql`update once.global_transaction set proven_at = proven_at - interval '1 hour'`
    await recover(both)
    const confirmed = 'select confirmed_at is not null from once.global_transaction'
    t.deepEqual(await rowsOf(a.sql, confirmed), [[true]])
    t.is(await oneValue(b.sql, 'select count(*)::int from once.evidence'), 1)
    // The standby that takes over has not heard of it.
    await a.sql`update once.global_transaction set confirmed_at = null`
    await recover(both)
    t.deepEqual(await rowsOf(a.sql, confirmed), [[true]])
    t.deepEqual(await rowsOf(a.sql, 'select * from once.loss'), [])
    await a.sql`update once.global_transaction set confirmed_at = confirmed_at - interval '1 hour'`
    await recover(both)
    t.deepEqual(await rowsOf(a.sql, confirmed), [])
    t.is(await oneValue(b.sql, 'select count(*)::int from once.evidence'), 0)
  })

  test(`${name} records a branch that its participant lost, once`, async (t) => {
    const both = await peers(t)
    const { a, b } = both
    const { gid, transactionId } = await leaveOrphan(a, b, 1)
    await b.sql.unsafe(`rollback prepared '${gid}'`)
    await recover(both)
    await recover(both)
    t.deepEqual(await rowsOf(a.sql, 'select transaction_id, participant, kind from once.loss'), [
      [transactionId, 'billing', 'lost branch'],
    ])
  })
}

test('once.recover() records evidence whose home lost the decision', async (t) => {
  const { a, b } = await peers(t)
  const { gid, transactionId } = await leaveOrphan(a, b, 1)
  await b.sql.unsafe(`commit prepared '${gid}'`)
  await a.sql`delete from once.global_transaction`
  t.deepEqual(await rowsOf(b.sql, 'select action, count, subject from once.recover()'), [
    ['lost decision', '1', transactionId],
  ])
  t.deepEqual(await rowsOf(b.sql, 'select action from once.recover()'), [], 'once')
})

test('once.recover() says what each branch is waiting for, and a home out of reach harms nothing', async (t) => {
  const { a, b } = await peers(t)
  const far = await effectsDatabase(t, 'a')
  const pending = await leaveOrphan(a, b, 1, 'pending')
  const lost = await leaveOrphan(far, b, 2)
  await leaveOrphan(a, b, 3)
  const rows = await rowsOf(b.sql, 'select action, subject, detail from once.recover() order by 1')
  t.deepEqual(
    rows.map(([action]) => action),
    ['committed', 'pending', 'unfinished'],
  )
  t.is(rows[1]?.[1], pending.gid)
  t.is(rows[2]?.[1], lost.gid)
  t.regex(String(rows[2]?.[2]), /nothing known of the database/)
  t.deepEqual(await rowsOf(b.sql, 'select dblink_get_connections()'), [[null]])
  await pending.endHome('rollback')
})

test('Recovery inside Postgres and outside race over the same branches, and each takes effect once', async (t) => {
  const { a, b } = await peers(t)
  const expected: number[] = []
  for (let effect = 1; effect <= 24; effect++) {
    const committed = effect % 3 !== 0
    await leaveOrphan(a, b, effect, committed ? 'committed' : 'aborted')
    if (committed) expected.push(effect)
  }
  await using once = pgonce<Record<string, object>>({ databases: { a: a.url, b: b.url } })
  const inside = async (url: string) => {
    const sql = connect(t, url)
    for (let n = 0; n < 4; n++) await sql`select * from once.recover('0')`
  }
  const outside = async () => {
    for (let n = 0; n < 4; n++) await once.recovery.run({ keep: 0 })
  }
  await Promise.all([inside(b.url), inside(b.url), inside(a.url), outside(), outside()])
  await once.recovery.run({ keep: 0 })
  t.deepEqual(await b.effects(), expected)
  t.deepEqual(await rowsOf(b.sql, 'select * from once.in_doubt'), [])
  t.deepEqual(await rowsOf(a.sql, 'select * from once.global_transaction'), [])
  t.deepEqual(await rowsOf(b.sql, 'select * from once.evidence'), [])
  for (const { sql } of [a, b]) t.deepEqual(await rowsOf(sql, 'select * from once.loss'), [])
})

test('A peer is asked who it is, and one that leads elsewhere by now is not believed', async (t) => {
  const { a, b } = await peers(t)
  const { gid } = await leaveOrphan(a, b, 1, 'aborted')
  const elsewhere = await effectsDatabase(t, 'a')
  await b.sql.unsafe(`alter server other options (set dbname '${elsewhere.name}')`)
  await refused(t, oneValue(b.sql, `select once.ask_home('${gid}')`), 'ONIDN')
  t.deepEqual(await rowsOf(b.sql, 'select action from once.recover()'), [['unfinished']])
  t.is((await rowsOf(b.sql, 'select * from once.in_doubt')).length, 1)
  await refused(t, oneValue(b.sql, `select once.add_peer('host=127.0.0.1')`), 'ONARG', 'no foreign server')
})

test('A database of this cluster whose schema once belongs to somebody else is never spoken to', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await b.sql`create extension dblink`
  const { gid } = await leaveOrphan(a, b, 1, 'committed')
  const mallory = await testRole(t, [a, b])
  await a.sql.unsafe(`alter function once.database_id() owner to ${mallory}`)
  await refused(t, oneValue(b.sql, `select once.ask_home('${gid}')`), 'ONPER')
  await a.sql.unsafe('alter function once.database_id() owner to postgres')
  t.is(await oneValue(b.sql, `select once.ask_home('${gid}')`), 'committed')
})

test('The stamp of the last recovery is written every few seconds at most', async (t) => {
  const b = await effectsDatabase(t)
  const stamp = () => oneValue(b.sql, 'select xmin::text from once.recovery')
  await b.sql`select once.stamp_recovery('x')`
  const first = await stamp()
  await b.sql`select once.stamp_recovery('x')`
  t.is(await stamp(), first)
  await b.sql`update once.recovery set recovered_at = recovered_at - interval '6 seconds'`
  await b.sql`select once.stamp_recovery('y')`
  t.is(await oneValue(b.sql, 'select recovered_by from once.recovery'), 'y')
})

test('Branches wait through a crash of the server, and are recovered from within afterwards', async (t) => {
  const server = await ownServer(t)
  const admin = connect(t, server.url())
  for (const name of ['home', 'branch']) {
    await admin.unsafe(`create database ${name}`)
    await installSchema(server.url(name))
  }
  const place = (name: string) => {
    const url = server.url(name)
    return { name, url, urlAs: (role: string) => server.url(name, role), sql: connect(t, url, { max: 2 }) }
  }
  const [home, branch] = [place('home'), place('branch')]
  for (const { sql } of [home, branch]) await sql`create table effect (id int primary key)`
  await branch.sql`create extension dblink`
  await leaveOrphan(home, branch, 1, 'committed')
  await leaveOrphan(home, branch, 2, 'aborted')
  await leaveOrphan(home, branch, 3, 'pending')
  await server.restart('immediate')
  const after = connect(t, branch.url)
  await until('the server answers', () =>
    after`select`.then(
      () => true,
      () => false,
    ),
  )
  t.deepEqual((await rowsOf(after, 'select action from once.recover() order by 1')).flat(), [
    'committed',
    'rolled back',
    'rolled back',
  ])
  t.deepEqual(await rowsOf(after, 'select id from effect'), [[1]])
})

test('once.recover() reports a branch whose owner was dropped, and finishes the others', async (t) => {
  const both = await peers(t)
  const { a, b } = both
  const role = randomName('role')
  await b.sql.unsafe(
    `create role ${role} login; select once.grant_app('${role}'); grant all on effect to ${role}`,
  )
  const asRole = connect(t, b.urlAs(role))
  const orphans = [
    await leaveOrphan(a, { sql: asRole }, 1, 'committed'),
    await leaveOrphan(a, { sql: asRole }, 2, 'aborted'),
    await leaveOrphan(a, { sql: asRole }, 3, 'pending'),
  ]
  await asRole.end()
  await b.sql.unsafe(`drop owned by ${role}; drop role ${role}`)
  await leaveOrphan(a, b, 4)
  const told = await rowsOf(b.sql, `select subject, action, detail from once.recover()`)
  const of = (index: number) => told.filter(([gid]) => gid === orphans[index]?.gid).map(([, ...what]) => what)
  const how = (says: string, verb: string, index: number) => [
    'unfinished',
    `its owner was dropped, and its home says ${says}; if it is yours, as a superuser: ${verb} prepared '${orphans[index]?.gid}'`,
  ]
  t.deepEqual(of(0), [how('committed', 'commit', 0)])
  t.deepEqual(of(1), [how('aborted', 'rollback', 1)])
  t.deepEqual(of(2), [['pending', "the home's transaction still runs"]])
  t.deepEqual(await b.effects(), [4])
  await orphans[2]?.endHome('rollback')
  for (const { gid } of orphans) await b.sql.unsafe(`rollback prepared '${gid}'`)
})

test('A branch whose owner’s role cannot be taken on any more keeps recovery from no other', async (t) => {
  const { a, b } = await peers(t)
  const { gid } = await leaveOrphan(a, b, 1)
  const session = await b.sql.reserve()
  const home = await oneValue(b.sql, 'select once.database_id()')
  const finish = async (role: string) =>
    (
      await session`select once.finish_remote(${`once ${home}`}, ${`commit prepared '${gid}'`}, ${role}) as said`
    )[0]?.said
  await session`select once.connect(${String(home)}::uuid)`
  t.is(await finish('nobody_of_this_name'), 'role "nobody_of_this_name" does not exist (22023)')
  t.is(await finish('postgres'), null)
  session.release()
  t.deepEqual(await b.effects(), [1])
})
