import test from 'ava'
import { connect, testRole } from '../support/database.ts'
import { effectsDatabase } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, openSession, refused, rowsOf } from '../support/sql.ts'
import { gexec, prepare } from '../support/strangers.ts'

test('select once.resolve() \\gexec finishes what is decided, says why, and touches nothing else', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await b.sql`create extension dblink`
  const committed = await leaveOrphan(a, b, 1)
  const aborted = await leaveOrphan(a, b, 2, 'aborted')
  const pending = await leaveOrphan(a, b, 3, 'pending')
  const foreign = [
    `42_Zm9v_${Buffer.from(b.name).toString('base64')}`,
    `citus_0_1_2_${Number.parseInt(b.name.slice(-6), 16)}`,
  ]
  for (const [index, gid] of foreign.entries())
    await prepare(t, b.url, gid, `insert into effect values (${10 + index})`)

  const lines = await gexec(b.sql, 'select once.resolve()')
  t.is(lines.length, 2)
  t.true(
    lines[0]?.startsWith(
      `/* ${committed.transactionId}: home ${await oneValue(a.sql, 'select once.database_id()')} committed; prepared `,
    ),
    lines[0],
  )
  t.true(lines[0]?.endsWith(`*/ commit prepared '${committed.gid}'`))
  t.regex(lines[1] ?? '', /is over and did not commit; .* rollback prepared/)
  t.deepEqual(await b.effects(), [1])
  t.deepEqual(
    (await rowsOf(b.sql, 'select gid from once.in_doubt order by gid')).flat().sort(),
    [...foreign, pending.gid].sort(),
  )
  t.false(lines.join().includes(aborted.gid) && lines.join().includes(pending.gid))
  t.deepEqual(await gexec(b.sql, 'select statement from once.resolve()'), [], 'nothing is left to do')
})

test('What resolve has no line for, it names in a notice with the reason', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const said: string[] = []
  const resolve = async (url = b.url) => {
    said.length = 0
    const sql = connect(t, url, { onnotice: ({ message }) => void said.push(String(message)) })
    const rows = await rowsOf(sql, 'select once.resolve()')
    return rows.length
  }
  const pending = await leaveOrphan(b, b, 1, 'pending')
  const { gid } = await leaveOrphan(a, b, 2)
  t.is(await resolve(), 0)
  t.deepEqual(said, [
    `no line for ${pending.gid}: pending: the home's transaction still runs`,
    `no line for ${gid}: the extension dblink is not installed in this database`,
  ])
  await b.sql`create extension dblink`
  t.is(await resolve(), 1)
  t.is(said.length, 1, 'of what it has a line for it says nothing')
  const operator = await testRole(t, b)
  await b.sql.unsafe(`select once.grant_operator('${operator}')`)
  t.is(await resolve(b.urlAs(operator)), 0)
  t.deepEqual(
    said.sort(),
    [
      `no line for ${gid}: only role postgres may finish it; a superuser can: grant postgres to ${operator}`,
      `no line for ${pending.gid}: only role postgres may finish it; a superuser can: grant postgres to ${operator}`,
    ].sort(),
  )
  await pending.endHome('rollback')
})

test('Without dblink, resolve has no lines for homes elsewhere and asking one says what to type', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  const { gid } = await leaveOrphan(a, b, 1)
  t.deepEqual(await rowsOf(b.sql, 'select once.resolve()'), [])
  await refused(t, oneValue(b.sql, `select once.ask_home('${gid}')`), 'ONEXT', 'create extension dblink')
  await refused(t, oneValue(b.sql, 'select count(*) from once.recover()'), 'ONEXT', 'create extension dblink')
  await refused(t, oneValue(b.sql, `select once.add_peer('x')`), 'ONEXT', 'create extension dblink')
  await refused(t, oneValue(b.sql, `select once.gid_outcome('${gid}')`), 'ONIDN')
  t.is(
    await oneValue(a.sql, `select once.ask_home('${gid}')`),
    'committed',
    'the home itself needs no dblink',
  )
})

test('ask_home answers for any gid of ours whose home is in this cluster, and for no other', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await b.sql`create schema "odd Schema"`
  await b.sql`create extension dblink schema "odd Schema"`
  const ask = (gid: string) => oneValue(b.sql, `select once.ask_home('${gid}')`)
  t.is(await ask((await leaveOrphan(a, b, 1)).gid), 'committed')
  t.is(await ask((await leaveOrphan(a, b, 2, 'aborted')).gid), 'aborted')
  t.is(await ask((await leaveOrphan(a, b, 3, 'pending')).gid), 'pending')
  await refused(t, ask('citus_0_1_2_3'), 'ONARG', 'not a gid of pgonce')
  await refused(
    t,
    ask('once:1:00000000-0000-4000-8000-000000000000:00000000-0000-4000-8000-000000000000:700:b'),
    'ONPER',
    'add_peer',
  )
  t.deepEqual(
    await rowsOf(b.sql, 'select "odd Schema".dblink_get_connections()'),
    [[null]],
    'no connection stays open',
  )
})

test('A decision is not read under a frozen snapshot', async (t) => {
  const a = await effectsDatabase(t)
  const session = await openSession(t, a.url)
  await session.rows('begin isolation level serializable')
  await refused(t, session.value('select count(*) from once.resolve()'), 'ONISO')
})

test('What belongs to a role that we may take on is finished as that role', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await b.sql`create extension dblink`
  const app = await testRole(t, [a, b])
  const helper = await testRole(t, [a, b])
  for (const { sql } of [a, b]) {
    await sql.unsafe(
      `grant all on effect to ${app}; select once.grant_app('${app}'); select once.grant_recover('${helper}')`,
    )
  }
  await leaveOrphan(a, { sql: connect(t, b.urlAs(app)) }, 1)
  t.deepEqual(await rowsOf(b.sql, 'select ours, can_finish from once.in_doubt'), [[true, true]])
  const as = async (role: string) => {
    const session = await b.sql.reserve()
    await session.unsafe(`set role ${role}`)
    const lines = (await session.unsafe('select once.resolve()').values()).flat()
    await session.unsafe('reset role')
    session.release()
    return lines
  }
  t.deepEqual(await as(helper), [], 'not a member: nothing is offered')
  t.is((await rowsOf(b.sql, 'select once.resolve()')).length, 1, 'a superuser needs no other role')
})
