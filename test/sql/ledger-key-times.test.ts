import test from 'ava'
import type postgres from 'postgres'
import { testDatabase } from '../support/database.ts'
import { claimKey as claim, claimKeyBatch as claimBatch, expireAll, uuidv7 } from '../support/ledger.ts'
import { oneValue, openSession, refused, rowsOf, untilBlocked } from '../support/sql.ts'

const hour = 3_600_000
const day = 24 * hour
/** A ULID of 2024-03-03. */
const ulid = '01HR0X6ZZZ7Q2J7Q2J7Q2J7Q2J'

/** How many keys are kept with a time, and how many without. */
const counts = async (sql: postgres.Sql) =>
  (
    await rowsOf(
      sql,
      `select count(*) filter (where claimed_on is null)::int, count(claimed_on)::int from once.message`,
    )
  )[0]

test('A key’s own time counts for nothing unless the scope says so', async (t) => {
  const { sql } = await testDatabase(t)
  const keys = [
    uuidv7(Date.UTC(2024, 0, 1)),
    uuidv7(Date.now()),
    uuidv7(Date.UTC(2093, 5, 5)),
    ulid,
    '7000000000000000000000000A',
  ]
  for (const key of keys) {
    t.is(await claim(sql, `'http', '${key}'`), 'claimed')
    t.is(await claim(sql, `'http', '${key}'`), 'duplicate')
  }
  t.deepEqual(await counts(sql), [0, keys.length])
  await sql`select once.set_retention('http', '30 days')`
  await expireAll(sql)
  for (const key of keys) t.is(await claim(sql, `'http', '${key}'`), 'duplicate', 'nor is it expired')
})

test('In a new scope it can count at once, and occurred_at counts before it', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_key_times('s', true)`
  const key = uuidv7(Date.UTC(2024, 2, 1))
  for (const one of [key, ulid]) {
    t.is(await claim(sql, `'s', '${one}'`), 'claimed')
    t.is(await claim(sql, `'s', '${one}'`), 'duplicate')
    t.is((await claimBatch(sql, `'s', '{${one}}'`))[0]?.[1], 'duplicate')
    await oneValue(sql, `select once.keep_result('s', '${one}', '7')`)
    t.deepEqual(await rowsOf(sql, `select * from once.claim_key('s', '${one}')`), [['duplicate', 7]])
  }
  t.deepEqual(await counts(sql), [2, 0])
  t.is(await claim(sql, `'s', 'no time'`), 'claimed')
  t.is(await claim(sql, `'s', '${uuidv7(Date.UTC(2009, 0, 1))}'`), 'claimed', 'no time that a key can carry')
  t.deepEqual(await counts(sql), [2, 2])
  t.is(await claim(sql, `'s', '${key}', '2024-03-01 12:00Z'`), 'duplicate')
  t.is(await claim(sql, `'s', '${key}', '2024-03-02'`), 'claimed')
  t.is(
    await oneValue(
      sql,
      `select exists (select from once.message
                          where digest = once.message_digest('s', '${key}', once.message_time('${key}')))`,
    ),
    true,
  )

  await sql.unsafe(`select once.set_retention('s', now() - timestamptz '2024-03-02 12:00Z')`)
  await expireAll(sql)
  t.is(await claim(sql, `'s', '${key}'`), 'expired')
  t.is(await claim(sql, `'s', '${ulid}'`), 'duplicate')
})

test('Where it counts, a time of more than two days ahead is refused, and says whose it is', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_key_times('s', true)`
  t.is(await claim(sql, `'s', '${uuidv7(Date.now() + 47 * hour)}'`), 'claimed')
  const far = uuidv7(Date.now() + 49 * hour)
  for (const call of [
    `select once.claim_key('s', '${far}')`,
    `select once.claim_keys('s', '{a,${far}}')`,
    `select once.claim_keys('s', '{a,${far}}', '{2024-01-01,NULL}')`,
  ])
    await refused(t, rowsOf(sql, call), 'ONARG', 'bad time in key', far, 'key times')
  t.is(await claim(sql, `'s', '${far}', now()`), 'claimed', 'occurred_at is what counts')
})

test('A scope that is there keeps what it has, so that no key is claimed again', async (t) => {
  const { sql } = await testDatabase(t)
  // Nothing refuses a key from the future where its time does not count: it must be found when that has come.
  const soon = uuidv7(Date.now() + 2 * day + hour)
  t.is(await claim(sql, `'off', '${soon}'`), 'claimed')
  await sql`select once.set_key_times('on', true), once.set_retention('named', '1 day')`
  await sql`select once.set_key_times('on', true), once.set_key_times('off', false)`
  for (const [scope, enabled] of [
    ['off', true],
    ['named', true],
    ['on', false],
  ] as const)
    await refused(
      t,
      oneValue(sql, `select once.set_key_times('${scope}', ${enabled})`),
      'ONARG',
      `scope '${scope}' is there already, with key times ${enabled ? 'off' : 'on'}`,
      'new scope',
    )
  t.is(await claim(sql, `'off', '${soon}'`), 'duplicate')
})

test('The same keys in a batch are kept where they are one by one', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_key_times('s', true)`
  const keys = [
    uuidv7(Date.UTC(2024, 2, 1)),
    ulid,
    'plain',
    uuidv7(Date.UTC(2024, 2, 2)),
    uuidv7(Date.UTC(2009, 1, 1)),
  ]
  const times = `'{NULL,NULL,NULL,2024-03-05,NULL}'`
  t.is(await oneValue(sql, `select once.claim_keys('s', '{${keys.join()}}', ${times})`), 'claimed')
  for (const [i, key] of keys.entries())
    t.is(await claim(sql, `'s', '${key}', ${i === 3 ? `'2024-03-05'` : 'null'}`), 'duplicate')
  t.deepEqual(await counts(sql), [3, 2])
})

test('A claim that meets the switching on of a new scope is kept where later ones look', async (t) => {
  const { sql, url } = await testDatabase(t)
  const key = uuidv7(Date.UTC(2024, 2, 1))
  const forms = [
    `select status from once.claim_key('$', '${key}')`,
    `select once.claim_keys('$', '{${key}}')`,
  ]
  for (const [n, form] of forms.entries()) {
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    const call = form.replace('$', `s${n}`)
    await a.sql`begin`
    await a.rows(`select once.set_key_times('s${n}', true)`)
    const answer = b.value(call)
    await untilBlocked(sql, b)
    await a.sql`commit`
    t.is(await answer, 'claimed')
    t.is(await claim(sql, `'s${n}', '${key}'`), 'duplicate')
  }
  t.deepEqual(await counts(sql), [2, 0])

  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  t.is(await claim(a.sql, `'late', '${key}'`), 'claimed')
  const late = refused(t, b.value(`select once.set_key_times('late', true)`), 'ONARG', 'is there already')
  await untilBlocked(sql, b)
  await a.sql`commit`
  await late
  t.is(await claim(sql, `'late', '${key}'`), 'duplicate')
})

test('Who asks for neither on nor off, or for no scope, is told so', async (t) => {
  const { sql } = await testDatabase(t)
  await refused(t, oneValue(sql, `select once.set_key_times('s', null)`), 'ONARG', 'bad enabled')
  await refused(t, oneValue(sql, `select once.set_key_times('', true)`), 'ONARG', 'bad scope')
  await sql`select once.set_key_times('s', false)`
  t.is(await claim(sql, `'s', '${uuidv7(Date.now())}'`), 'claimed')
  t.deepEqual(await counts(sql), [0, 1])
})
