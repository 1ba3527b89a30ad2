import test from 'ava'
import { effectsDatabase, twoDatabases } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, rowsOf } from '../support/sql.ts'
import { gexec } from '../support/strangers.ts'

const findings = (sql: Parameters<typeof rowsOf>[0]) =>
  rowsOf(sql, 'select finding, transaction_id, participant from once.audit() order by 1')

async function cluster(t: Parameters<typeof effectsDatabase>[0]) {
  const [a, b] = [await effectsDatabase(t), await effectsDatabase(t)]
  for (const { sql } of [a, b]) await sql`create extension dblink`
  return { a, b }
}

/** What is younger than a minute is left to recovery. */
async function age({ sql }: { sql: Parameters<typeof rowsOf>[0] }): Promise<void> {
  await sql`update once.evidence set recorded_at = recorded_at - interval '2 minutes'`
  await sql`update once.global_transaction set decided_at = decided_at - interval '2 minutes'`
}

test('Where all adds up the audit is silent, and so it is about what recovery is still at', async (t) => {
  const { a, b } = await cluster(t)
  await leaveOrphan(a, b, 1)
  const { gid } = await leaveOrphan(a, b, 2)
  t.deepEqual([await findings(a.sql), await findings(b.sql)], [[], []])
  await b.sql.unsafe(`commit prepared '${gid}'`)
  t.deepEqual([await findings(a.sql), await findings(b.sql)], [[], []])
  await b.sql`select * from once.recover()`
  await a.sql`select * from once.recover()`
  for (const one of [a, b]) await age(one)
  t.deepEqual([await findings(a.sql), await findings(b.sql)], [[], []])
})

test('Evidence whose home has no row is found at the participant', async (t) => {
  const { a, b } = await cluster(t)
  const { transactionId } = await leaveOrphan(a, b, 1)
  await gexec(b.sql, 'select once.resolve()')
  await a.sql`delete from once.global_transaction`
  await age(b)
  t.deepEqual(await findings(b.sql), [['evidence without home row', transactionId, 'billing']])
  const [row] = await b.sql`select meaning, to_do, since from once.audit()`
  t.regex(row?.meaning, /its home has no decision/)
  t.regex(row?.to_do, /records it/)
  await b.sql`select * from once.recover()`
  t.deepEqual(
    await findings(b.sql),
    [['lost decision', transactionId, 'billing']],
    'recovery has recorded it',
  )
  await b.sql`select once.acknowledge(${transactionId}, 'repaired')`
  t.deepEqual(await findings(b.sql), [])
})

test('A home row without evidence is found at the home, apart from one that is only unfinished', async (t) => {
  const { a, b } = await cluster(t)
  const lost = await leaveOrphan(a, b, 1)
  const open = await leaveOrphan(a, b, 2)
  await b.sql.unsafe(`rollback prepared '${lost.gid}'`)
  await age(a)
  t.deepEqual(await findings(a.sql), [
    ['decided, not finished', open.transactionId, 'billing'],
    ['home row without evidence', lost.transactionId, 'billing'],
  ])
  await b.sql`select * from once.recover()`
  await a.sql`select * from once.recover()`
  t.deepEqual(await findings(a.sql), [['lost branch', lost.transactionId, 'billing']])
})

test('A branch that comes back after its transaction was acknowledged is found', async (t) => {
  const { a, b } = await cluster(t)
  const { gid, transactionId } = await leaveOrphan(a, b, 1)
  await b.sql.unsafe(`rollback prepared '${gid}'`)
  await a.sql`select * from once.recover()`
  await a.sql`select once.acknowledge(${transactionId}, 'booked by hand')`
  // A standby that still had it is promoted: the same branch under the same gid.
  const home = String(await oneValue(a.sql, 'select once.database_id()'))
  const session = await b.sql.reserve()
  await session.unsafe(`begin; call once.open('${transactionId}'); insert into effect values (1)`)
  await session`select once.vote(${transactionId}, ${home}, 'billing')`
  await session.unsafe(`prepare transaction '${gid}'`)
  session.release()
  t.deepEqual(await findings(b.sql), [['branch of an acknowledged transaction', transactionId, 'billing']])
})

test('Who cannot be reached is a finding, never silence', async (t) => {
  const [far, b] = await twoDatabases(t)
  const { gid } = await leaveOrphan(far, b, 1)
  await b.sql.unsafe(`commit prepared '${gid}'`)
  await age(b)
  const [row] = await b.sql`select finding, home, meaning, to_do from once.audit()`
  t.is(row?.finding, 'not compared')
  t.is(row?.home, await oneValue(far.sql, 'select once.database_id()'))
  t.regex(row?.meaning, /1 branches that committed here could not be compared with their home: .*dblink/)
})
