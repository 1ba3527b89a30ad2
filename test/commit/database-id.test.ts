/** Databases that do not say who they are, or that are not who they were. */
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { createDatabase, type Database } from '../../src/connection/database.ts'
import { DatabaseError, InvalidInputError, OutcomeUnknownError } from '../../src/index.ts'
import { audit, runRecovery } from '../../src/recovery/recovery.ts'
import { client, reach, type Three, write } from '../support/client.ts'
import { connect, type TestContext } from '../support/database.ts'
import { type EffectsDatabase, threeDatabases } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { databaseIdOf } from '../support/sql.ts'

const drivers = ['postgres.js', 'pg']

// ---------------------------------------------------------------------------------------------------
// Silence

/** A database that lets everybody in and does not say who it is; gives what ends that. */
async function silence(t: TestContext, { url }: EffectsDatabase): Promise<() => Promise<void>> {
  const session = connect(t, url)
  await session.unsafe('begin; lock table once.database in access exclusive mode')
  return async () => void (await session.unsafe('rollback'))
}

/** What comes in good time, that is, long before the `connectTimeout` of these tests. */
const promptly = <T>(answer: Promise<T>) =>
  Promise.race([answer, sleep(6_000, 'nothing' as const, { ref: false })])

for (const driver of drivers) {
  test(`A database that does not say who it is keeps recovery from no other (${driver})`, async (t) => {
    const [a, b, c] = await threeDatabases(t)
    const { gid } = await leaveOrphan(a, c, 1)
    const speak = await silence(t, b)
    const once = client<Three>(
      t,
      { a: reach(t, driver, a.url), b: reach(t, driver, b.url), c: reach(t, driver, c.url) },
      { connectTimeout: 2_000 },
    )
    const report = await promptly(once.recovery.run())
    if (report === 'nothing') return t.fail('recovery waits')
    t.like(report, { committed: 1, unfinished: [] })
    t.deepEqual(
      report.unreachable.map(({ database }) => database),
      ['b'],
    )
    t.deepEqual(await c.effects(), [1], gid)
    await speak()
    t.like(await once.recovery.run(), { unreachable: [] }, 'that it failed is not remembered')
  })

  test(`A database that does not say who it is keeps no client from closing (${driver})`, async (t) => {
    const [a, b, c] = await threeDatabases(t)
    const speak = await silence(t, b)
    const once = client<Three>(
      t,
      { a: reach(t, driver, a.url), b: reach(t, driver, b.url), c: reach(t, driver, c.url) },
      { connectTimeout: 2_000 },
    )
    once.recovery.start()
    await t.throwsAsync(promptly(write(once, 1, 'b')), {
      code: 'CONNECTION_LOST',
      message: /^Database b did not say/,
    })
    t.not(await promptly(once.close()), 'nothing')
    await speak()
  })
}

test('A home answers what became of its transaction while another database does not say who it is', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const { id } = await write(client<Three>(t, { a: a.url, b: b.url, c: c.url }), 1, 'ac')
  const speak = await silence(t, b)
  const once = client<Three>(t, { b: b.url, a: a.url, c: c.url }, { connectTimeout: 20_000 })
  t.is(await promptly(once.outcome(id ?? '')), 'committed')
  await speak()
})

// ---------------------------------------------------------------------------------------------------
// Another database id than is remembered

for (const driver of drivers) {
  for (const renewed of ['home', 'participant'] as const) {
    test(`A ${renewed} that has a new database id takes part under that only (${driver})`, async (t) => {
      const [a, b, c] = await threeDatabases(t)
      const once = client<Three>(t, {
        a: reach(t, driver, a.url),
        b: reach(t, driver, b.url),
        c: reach(t, driver, c.url),
      })
      await write(once, 0, 'ab')
      const { sql } = renewed === 'home' ? a : b
      const before = await databaseIdOf(sql)
      const [row] = await sql`select once.renew_database_id('test') as id`
      const { message, detail } = await t.throwsAsync<DatabaseError>(write(once, 1, 'ab'), {
        instanceOf: DatabaseError,
        code: 'ONIDN',
      })
      t.true([row?.id, before].some((id) => `${message} ${detail}`.includes(id)))
      t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[0], [0], 0])

      const { id } = await write(once, 2, 'ab')
      t.is(await once.outcome(id ?? ''), 'committed')
      t.deepEqual(
        [await a.effects(), await b.effects()],
        [
          [0, 2],
          [0, 2],
        ],
      )
      const [decision] =
        await a.sql`select database_ids[1] as b from once.global_transaction where proven_at is null
                                      order by decided_at desc limit 1`
      t.deepEqual(decision?.b, await databaseIdOf(b.sql))
    })
  }

  test(`A recorded transaction of one database is recorded under its new database id only (${driver})`, async (t) => {
    const [a, b, c] = await threeDatabases(t)
    const once = client<Three>(t, {
      a: reach(t, driver, a.url),
      b: reach(t, driver, b.url),
      c: reach(t, driver, c.url),
    })
    await write(once, 0, 'a', { record: true })
    await a.sql`select once.renew_database_id('test')`
    await t.throwsAsync(write(once, 1, 'a', { record: true }), { instanceOf: DatabaseError, code: 'ONIDN' })
    const { id } = await write(once, 2, 'a', { record: true })
    t.is(await once.outcome(id ?? ''), 'committed')
    t.deepEqual(await a.effects(), [0, 2])
  })
}

test('A URL that leads to another database by now commits nothing there under the database id of the first', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const once = client<Three>(t, { a: a.url, b: b.url, c: c.url }, { transaction: { retries: 0 } })
  const { id } = await write(once, 0, 'ab')
  await exchange(t, a, c)
  // The connections to the first are lost, which the client may hear of now.
  const first = await t.throwsAsync(write(once, 1, 'ab'))
  if ((first as { code?: string }).code === 'CONNECTION_LOST')
    await t.throwsAsync(write(once, 1, 'ab'), { code: 'ONIDN' })
  else t.is((first as { code?: string }).code, 'ONIDN')
  t.deepEqual(
    [await a.effects(), await b.effects(), await c.effects(), await b.prepared()],
    [[], [0], [0], 0],
  )
  t.is(await once.outcome(id ?? ''), 'committed', 'the home is known by another name by now')
  t.is((await write(once, 2, 'ab')).finished, true)
  t.deepEqual([await a.effects(), await b.effects(), await c.effects()], [[2], [0, 2], [0]])
})

/** From now on each of the two has the name of the other, which their sessions here follow. */
async function exchange(t: TestContext, one: EffectsDatabase, other: EffectsDatabase): Promise<void> {
  const url = new URL(one.url)
  url.pathname = '/postgres'
  const admin = connect(t, url.href)
  const steps = [
    [one.name, `${one.name}_`],
    [other.name, one.name],
    [`${one.name}_`, other.name],
  ]
  for (const [from = '', to = ''] of steps) {
    await admin.unsafe(`alter database ${from} with allow_connections false`)
    await admin`select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = ${from}`
    await admin.unsafe(`alter database ${from} rename to ${to}`)
    await admin.unsafe(`alter database ${to} with allow_connections true`)
  }
}

test('A branch of a home that has a new database id is finished by a recovery that knew the old one', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const once = client<Three>(t, { a: a.url, b: b.url, c: c.url })
  await once.recovery.run()
  for (const { sql } of [a, b]) await sql`select once.renew_database_id('test')`
  await leaveOrphan(a, b, 1)
  t.like(await once.recovery.run({ keep: 0 }), {
    committed: 1,
    unfinished: [],
    unreachable: [],
    losses: [],
  })
  t.like(await once.recovery.run({ keep: 0 }), { unreachable: [], losses: [] })
  t.deepEqual(
    [await b.effects(), await a.count('once.global_transaction'), await b.count('once.evidence')],
    [[1], 0, 0],
  )
})

test('What became of a transaction is asked at the home’s new database id, and nobody answers for the old one', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const once = client<Three>(t, { a: a.url, b: b.url, c: c.url })
  const { id: before } = await write(once, 0, 'ab')
  await a.sql`select once.renew_database_id('test')`
  const { id: after } = await write(client<Three>(t, { a: a.url, b: b.url, c: c.url }), 1, 'ab')
  t.is(await once.outcome(after ?? ''), 'committed')
  await t.throwsAsync(once.outcome(before ?? ''), { instanceOf: InvalidInputError, message: /is the home/ })
})

/** A database of recovery's that has just said it was another: it became what it is right after. */
function believed(t: TestContext, name: string, { url }: EffectsDatabase, databaseId: string): Database {
  const database = createDatabase(name, url, { maxConnections: 2, connectTimeout: 5_000 })
  t.teardown(() => database.close())
  database.identify = async () => databaseId
  return database
}

test('Recovery believes no evidence, and no lack of it, of a database that is not who it was', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const once = client<Three>(t, { a: a.url, b: b.url, c: c.url })
  for (const id of [1, 2]) await write(once, id, 'ab')
  const as = async (one: EffectsDatabase, reached: EffectsDatabase) =>
    believed(t, reached === b ? 'b' : 'a', reached, await databaseIdOf(one.sql))
  const looks = [
    // The participant, and the home, are another database by now.
    [await as(a, a), await as(b, c)],
    [await as(a, c), await as(b, b)],
  ]
  const state = async () => ({
    decisions:
      await a.sql`select transaction_id, proven_at, confirmed_at from once.global_transaction order by 1`,
    evidence: await b.count('once.evidence'),
    losses: [await a.count('once.loss'), await b.count('once.loss')],
  })
  // Neither proven; then proven; then confirmed, and to be purged.
  for (const step of ['unproven', 'proven', 'confirmed']) {
    if (step === 'proven') await a.sql`update once.global_transaction set proven_at = now()`
    if (step === 'confirmed') await a.sql`update once.global_transaction set confirmed_at = now()`
    const before = await state()
    for (const some of looks) {
      t.like(await runRecovery(some, { keep: 0 }), { proven: 0, purged: 0, losses: [] }, step)
      t.deepEqual((await audit(some)).losses, [], step)
      t.deepEqual(await state(), before, step)
    }
  }
  t.like(await once.recovery.run({ keep: 0 }), { purged: 2, losses: [] })
  t.is(await b.count('once.evidence'), 0)
})

// ---------------------------------------------------------------------------------------------------
// What a pooler says

for (const code of ['08006', '08P01', '40003']) {
  test(`ERROR ${code} in answer to COMMIT is no rollback for certain`, async (t) => {
    const [a, b, c] = await threeDatabases(t)
    const once = client<Three>(
      t,
      { a: a.url, b: b.url, c: c.url },
      { transaction: { home: 'a', retries: 0 } },
    )
    // Postgres itself says it at COMMIT, as a pooler does that has lost the server.
    await a.sql.unsafe(`
      create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'server closed the connection' using errcode = '${code}'; end $$;
      create constraint trigger refuse after insert on effect deferrable initially deferred
        for each row when (new.id = 1) execute function refuse()`)
    await write(once, 0, 'ab')
    await t.throwsAsync(write(once, 1, 'a'), { instanceOf: OutcomeUnknownError })
    // With a home to ask there is an answer.
    await t.throwsAsync(write(once, 1, 'ab'), { code: 'CONNECTION_LOST' })
    t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[0], [0], 0])
    await write(once, 2, 'ab')
  })
}
