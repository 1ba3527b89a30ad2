import test from 'ava'
import { pgonce } from '../../src/index.ts'
import { connect, testRole } from '../support/database.ts'
import { effectsDatabase } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, openSession, refused, rowsOf } from '../support/sql.ts'
import { gexec, prepare } from '../support/strangers.ts'

/** A home out of reach of the participant, which is on another cluster, and knows no peer. */
async function lostHome(t: Parameters<typeof effectsDatabase>[0]) {
  return { home: await effectsDatabase(t, 'a'), b: await effectsDatabase(t, 'b') }
}

for (const [outcome, effects] of [
  ['commit', [1]],
  ['rollback', []],
] as const) {
  test(`A forced ${outcome} is on record before its line is given out, and is a hazard until the home is heard`, async (t) => {
    const { home, b } = await lostHome(t)
    const { gid, transactionId } = await leaveOrphan(home, b, 1)
    const lines = await rowsOf(
      b.sql,
      `select once.force('${gid}', '${outcome}', 'the data center burnt down')`,
    )
    t.deepEqual(lines, [[`/* forced by postgres */ ${outcome} prepared '${gid}'`]])
    t.deepEqual(await rowsOf(b.sql, 'select gid, outcome, forced_by, reason from once.heuristic'), [
      [gid, outcome, 'postgres', 'the data center burnt down'],
    ])
    t.deepEqual(
      await rowsOf(b.sql, `select action, reason, login, subject ->> 'gid' from once.intervention`),
      [['force', 'the data center burnt down', 'postgres', gid]],
    )
    t.regex(
      String(await oneValue(b.sql, 'select to_do from once.audit() where finding = $$hazard$$')),
      /was not typed/,
    )
    await b.sql.unsafe(String(lines[0]?.[0]))
    t.deepEqual(await b.effects(), [...effects])
    t.deepEqual(
      await rowsOf(b.sql, `select finding, transaction_id from once.audit() where finding <> 'not compared'`),
      [['hazard', transactionId]],
    )
    t.is(
      await oneValue(b.sql, `select status from once.health where name = 'unacknowledged_heuristics'`),
      'warn',
    )
  })
}

for (const [forced, decided, outcome] of [
  ['commit', 'committed', 'heuristic commit'],
  ['rollback', 'aborted', 'heuristic rollback'],
  ['commit', 'aborted', 'mixed'],
  ['rollback', 'committed', 'mixed'],
] as const) {
  test(`Forced to ${forced}, and the home that comes back had ${decided}: ${outcome}, until somebody acknowledges it`, async (t) => {
    const { home, b } = await lostHome(t)
    const { gid, transactionId } = await leaveOrphan(home, b, 1, decided)
    await gexec(b.sql, `select once.force('${gid}', '${forced}', 'gone')`)
    // It is back: whoever reaches both audits.
    await using once = pgonce<Record<string, object>>({ databases: { home: home.url, b: b.url } })
    await once.recovery.audit()
    t.deepEqual(await rowsOf(b.sql, `select outcome, done = 'committed', decided from once.heuristics`), [
      [outcome, forced === 'commit', decided],
    ])
    t.true((await rowsOf(b.sql, 'select finding from once.audit()')).flat().includes(outcome))
    await refused(t, oneValue(b.sql, `select once.acknowledge('${transactionId}', '')`), 'ONARG', 'reason')
    await oneValue(b.sql, `select once.acknowledge('${transactionId}', 'compared and repaired')`)
    t.deepEqual(
      await rowsOf(b.sql, `select finding from once.audit() where finding not in ('not compared')`),
      [],
    )
    await refused(t, oneValue(b.sql, `select once.acknowledge('${transactionId}', 'again')`), 'ONARG')
  })
}

test('A forced commit whose proof is purged by the handshake is still known as a heuristic commit', async (t) => {
  const { home, b } = await lostHome(t)
  const { gid } = await leaveOrphan(home, b, 1)
  await gexec(b.sql, `select once.force('${gid}', 'commit', 'gone')`)
  await using once = pgonce<Record<string, object>>({ databases: { home: home.url, b: b.url } })
  await once.recovery.run({ keep: 0 })
  await once.recovery.run({ keep: 0 })
  t.deepEqual(await rowsOf(b.sql, 'select * from once.evidence'), [])
  await once.recovery.audit()
  t.is(await oneValue(b.sql, 'select outcome from once.heuristics'), 'heuristic commit')
})

test('A commit that was forced before its home decided is judged beside the decision, and called no loss', async (t) => {
  const { home, b } = await lostHome(t)
  const { gid, endHome } = await leaveOrphan(home, b, 1, 'pending')
  await gexec(b.sql, `select once.force('${gid}', 'commit', 'gone')`)
  await using once = pgonce<Record<string, object>>({ databases: { home: home.url, b: b.url } })
  t.deepEqual(await once.recovery.audit(), [])
  for (const nothing of ['null', `'pending'`])
    t.is(
      await oneValue(b.sql, `select once.judge_heuristic(transaction_id, ${nothing}) from once.heuristic`),
      '0',
    )
  await endHome('commit')
  t.deepEqual(await once.recovery.audit(), [])
  t.is(await oneValue(b.sql, 'select outcome from once.heuristics'), 'heuristic commit')
  t.deepEqual(await rowsOf(b.sql, 'select * from once.loss'), [])
})

test('Nothing is forced while the home can be asked', async (t) => {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  await b.sql`create extension dblink`
  const force = async (gid: string) => oneValue(b.sql, `select once.force('${gid}', 'commit', 'impatience')`)
  await refused(
    t,
    force((await leaveOrphan(a, b, 1, 'aborted')).gid),
    'ONARG',
    'its home answers: aborted',
    'once.resolve()',
  )
  const pending = await leaveOrphan(a, b, 2, 'pending')
  await refused(t, force(pending.gid), 'ONARG', 'its home answers: pending')
  await pending.endHome('rollback')
  t.deepEqual(await rowsOf(b.sql, 'select * from once.heuristic'), [])
})

test('What is not ours, not here, or unclear cannot be forced', async (t) => {
  const { home, b } = await lostHome(t)
  const { gid } = await leaveOrphan(home, b, 1)
  const foreign = `42_Zm9v_${Buffer.from(b.name).toString('base64')}`
  await prepare(t, b.url, foreign, 'insert into effect values (2)')
  const force = (...args: string[]) =>
    oneValue(b.sql, `select once.force(${args.map((arg) => (arg === 'null' ? arg : `'${arg}'`)).join(', ')})`)
  await refused(t, force(foreign, 'commit', 'x'), 'ONARG', 'no branch of ours')
  await refused(t, force('null', 'commit', 'x'), 'ONARG', 'no branch of ours')
  await refused(t, force(gid, 'abort', 'x'), 'ONARG', 'Expected commit or rollback')
  await refused(t, force(gid, 'null', 'x'), 'ONARG', 'Expected commit or rollback')
  await refused(t, force(gid, 'commit', ''), 'ONARG', 'reason')
  await refused(t, force(gid, 'commit', 'null'), 'ONARG', 'reason')
  t.deepEqual(await rowsOf(b.sql, 'select * from once.heuristic'), [])
})

test('Only an operator forces, as himself, and as the owner of the branch', async (t) => {
  const { home, b } = await lostHome(t)
  const app = await testRole(t, b)
  await b.sql.unsafe(`grant all on effect to ${app}; select once.grant_app('${app}')`)
  const { gid } = await leaveOrphan(home, { sql: connect(t, b.urlAs(app)) }, 1, 'committed')
  for (const grant of ['app', 'monitor', 'recover']) {
    const role = await testRole(t, b)
    await b.sql.unsafe(`select once.grant_${grant}('${role}'); grant ${app} to ${role}`)
    const session = await openSession(t, b.urlAs(role))
    await refused(t, session.value(`select once.force('${gid}', 'commit', 'x')`), '42501')
    await refused(
      t,
      session.value(
        `insert into once.heuristic (gid, transaction_id, home, home_xid, participant, owner, outcome, reason)
         values ('x', gen_random_uuid(), gen_random_uuid(), '1', 'b', 'x', 'commit', 'x')`,
      ),
      '42501',
    )
  }
  const operator = await testRole(t, b)
  await b.sql.unsafe(`select once.grant_operator('${operator}')`)
  const stranger = await openSession(t, b.urlAs(operator))
  await refused(t, stranger.value(`select once.force('${gid}', 'commit', 'x')`), 'ONARG', 'only role')
  await b.sql.unsafe(`grant ${app} to ${operator}`)
  const session = connect(t, b.urlAs(operator))
  const lines = await gexec(session, `select statement from once.force('${gid}', 'commit', 'gone')`)
  t.deepEqual(lines, [
    `/* only its owner may finish it */ set role ${app}`,
    `/* forced by ${operator} */ commit prepared '${gid}'`,
    'reset role',
  ])
  t.deepEqual(await b.effects(), [1])
  t.is(await oneValue(b.sql, 'select forced_by from once.heuristic'), operator)
  await refused(t, oneValue(session, `update once.heuristic set forced_by = 'x'`), '42501')
})
