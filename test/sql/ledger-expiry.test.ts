import test from 'ava'
import type postgres from 'postgres'
import { connect, randomName, testDatabase } from '../support/database.ts'
import {
  claimKey as claim,
  claimKeyBatch as claimBatch,
  expireAll,
  expireOnce,
  retentionSince,
} from '../support/ledger.ts'
import {
  freshName,
  type Link,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'
import { until } from '../support/until.ts'

const shared = sharedDatabase()

const setRetention = (sql: postgres.Sql, scope: string, day: string) =>
  sql.unsafe(`select once.set_retention('${scope}', ${retentionSince(day)})`)
/** Keys of a scope that the ledger holds, with and without a time. */
const kept = (sql: postgres.Sql, scope = 's') =>
  oneValue(
    sql,
    `select count(*)::int from once.message m join once.scope s using (scope_id) where s.scope = '${scope}'`,
  )
const deletedOf = (rows: readonly unknown[][]) =>
  rows.filter(([action]) => action === 'delete').reduce((sum, row) => sum + Number(row[3]), 0)
/** Takes a snapshot that lasts, at levels that keep one. */
const begin = async (session: Link, isolation: string) => {
  await session.rows(`begin isolation level ${isolation}`)
  await session.rows('select count(*) from once.scope')
}

test('A scope’s horizon decides what is expired, and only moves forward', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`)
  await claim(sql, `'s', 'b', '2024-01-10 13:00Z'`)
  await claim(sql, `'keeps', 'b', '2024-01-10 13:00Z'`)
  await setRetention(sql, 's', '2024-01-10')
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'duplicate', 'not before the expiry')
  await expireAll(sql)
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'expired')
  t.is(await claim(sql, `'s', 'never seen', '2024-01-10 11:59Z'`), 'expired')
  t.is(await claim(sql, `'s', 'older', '2020-01-01'`), 'expired')
  t.is(await claim(sql, `'s', 'b', '2024-01-10 13:00Z'`), 'duplicate')
  t.is(await claim(sql, `'s', 'new', '2024-01-10 13:00Z'`), 'claimed')
  t.is(await claim(sql, `'keeps', 'c', '2020-01-01'`), 'claimed', 'other scopes have horizons of their own')
  t.deepEqual(
    await claimBatch(
      sql,
      `'s', '{a,b,d,e,a}', '{2024-01-10 11:00Z,2024-01-10 13:00Z,2024-02-01Z,NULL,2024-01-10 14:00Z}'`,
    ),
    [
      ['a', 'expired', null],
      ['b', 'duplicate', null],
      ['d', 'claimed', null],
      ['e', 'claimed', null],
      ['a', 'duplicate', null],
    ],
    'of one key and day, one time is before the horizon and one after it',
  )

  const before = await oneValue(sql, `select horizon from once.scope where scope = 's'`)
  for (const retention of [`'100 years'`, 'null']) {
    await sql.unsafe(`select once.set_retention('s', ${retention})`)
    await expireAll(sql)
    t.deepEqual(await oneValue(sql, `select horizon from once.scope where scope = 's'`), before)
  }
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'expired')
})

test('Each scope’s keys go when their own days are past its own horizon, whatever other scopes keep', async (t) => {
  const { sql } = await testDatabase(t)
  const keys = `array(select 'k' || g from generate_series(0, 24) g)`
  const times = `array(select timestamptz '2024-01-01 09:00Z' + g * interval '1 day' from generate_series(0, 24) g)`
  for (const scope of ['a', 'b', 'ever']) await claimBatch(sql, `'${scope}', ${keys}, ${times}`)
  await setRetention(sql, 'a', '2024-01-24')
  await setRetention(sql, 'b', '2024-01-11')
  const rows = await expireAll(sql)
  t.deepEqual(
    rows.filter(([action, , , count]) => action === 'delete' && Number(count) > 0),
    [
      ['delete', 'a', 'keys past their horizon', '23', false],
      ['delete', 'b', 'keys past their horizon', '10', false],
    ],
  )
  t.deepEqual([await kept(sql, 'a'), await kept(sql, 'b'), await kept(sql, 'ever')], [2, 15, 25])
  t.is(await claim(sql, `'a', 'k0', '2024-01-01 09:00Z'`), 'expired')
  t.is(await claim(sql, `'b', 'k9', '2024-01-10 09:00Z'`), 'expired')
  t.is(await claim(sql, `'b', 'k10', '2024-01-11 13:00Z'`), 'duplicate')
  t.is(await claim(sql, `'ever', 'k0', '2024-01-01 09:00Z'`), 'duplicate')
  t.is(await claim(sql, `'new', 'k0', '2024-01-01 09:00Z'`), 'claimed', 'a new scope has no horizon')
  t.deepEqual(await expireAll(sql), [], 'and nothing is left to do')
})

test('Two expiries at once never move a horizon back, and the second says that it is not alone', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.set_retention('s', '1 day')`
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  await a.rows('select now()')
  await until('the clock moves', () => oneValue(sql, `select clock_timestamp() > now()`))
  await b.sql`begin`
  await b.rows('select once.expire()')
  const late = await b.value(`select horizon from once.scope`)
  t.deepEqual(await expireOnce(a.sql), [
    ['busy', null, 'another call of once.expire() is at work', '0', false],
  ])
  await b.sql`commit`
  await a.rows('select once.expire()')
  await a.sql`commit`
  t.deepEqual(await oneValue(sql, 'select horizon from once.scope'), late)
})

test('A retention must lie between nothing and 1000 years', async (t) => {
  const { sql } = shared()
  for (const bad of ['-1 second', '1000 years 1 day', '178000000 years'])
    await refused(t, oneValue(sql, `select once.set_retention('s', '${bad}')`), 'ONARG', 'bad retention')
  const scope = freshName()
  await sql`select once.set_retention(${scope}, '1000 years')`
  t.true((await rowsOf(sql, 'select * from once.expire()')).some((row) => row[1] === scope))
  await expireAll(sql)
  for (const bad of ['0', '-1', '1000001', 'null'])
    await refused(t, rowsOf(sql, `select * from once.expire(${bad})`), 'ONARG', 'bad batch_size')
})

for (const isolation of ['read committed', 'repeatable read', 'serializable']) {
  test(`While a ${isolation} transaction from before the horizon moved is open, nothing is deleted and it never reprocesses`, async (t) => {
    const { sql, url } = await testDatabase(t)
    for (const key of ['a', 'b']) await claim(sql, `'s', '${key}', '2024-01-10 09:00Z'`)
    const old = await openSession(t, url)
    await begin(old, isolation)
    await setRetention(sql, 's', '2024-01-20')
    const rows = await expireAll(sql)
    t.is(rows.at(-1)?.[0], 'wait')
    t.true(String(rows.at(-1)?.[2]).includes(`process ${old.pid} (postgres)`), String(rows.at(-1)?.[2]))
    t.is(await kept(sql), 2)
    t.is(await claim(sql, `'s', 'a', '2024-01-10 09:00Z'`), 'expired', 'whoever begins now hears of it')

    const answer = isolation === 'read committed' ? 'expired' : 'duplicate'
    for (const form of [`claim_key('s', 'a', '$')`, `claim_key_batch('s', '{a}', '{$}')`])
      t.is(
        await old.value(`select status from once.${form.replace('$', '2024-01-10 09:00Z')}`),
        answer,
        'with its own snapshot it sees the old horizon and the claim',
      )
    t.is(await kept(sql), 2)
    await old.sql`commit`
    t.is(deletedOf(await expireAll(sql)), 2)
    t.is(await claim(sql, `'s', 'a', '2024-01-10 09:00Z'`), 'expired')
  })
}

test('A claim that began before the horizon moved and inserts after it is as good as one before', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'warm up', '2024-02-01'`)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  t.is(await claim(a.sql, `'s', 'k', '2024-01-10 09:00Z'`), 'claimed')
  const second = claim(b.sql, `'s', 'k', '2024-01-10 09:00Z'`)
  await untilBlocked(sql, b)
  await setRetention(sql, 's', '2024-01-20')
  t.is((await expireAll(sql)).at(-1)?.[0], 'wait')
  await a.sql`rollback`
  t.is(await second, 'claimed', 'the statement still has the snapshot of its beginning')
  t.is(deletedOf(await expireAll(sql)), 1, 'what it left is deleted, since it had ended before')
  t.is(await kept(sql), 1)
  t.is(await claim(sql, `'s', 'k', '2024-01-10 09:00Z'`), 'expired')
})

test('Claims that overlap without a pause, each longer than any call waits, do not keep expiry from its work', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'old', '2024-01-10'`)
  const workers = await Promise.all(Array.from({ length: 3 }, () => openSession(t, url)))
  let stop = false
  let claims = 0
  const work = async (worker: Link, offset: number) => {
    await worker.rows(`select pg_sleep(${offset})`)
    while (!stop) {
      await worker.sql`begin`
      t.is(await claim(worker.sql, `'s', '${freshName()}', now()`), 'claimed')
      await worker.rows('select pg_sleep(1.5)')
      await worker.sql`commit`
      claims += 1
    }
  }
  const load = Promise.all(workers.map((worker, i) => work(worker, i * 0.5)))
  await until('claims run', async () => claims > 0)
  await setRetention(sql, 's', '2024-01-20')
  const calls: unknown[][][] = []
  for (; calls.length < 8 && deletedOf(calls.flat()) === 0; ) calls.push(await expireOnce(sql))
  stop = true
  await load
  t.is(deletedOf(calls.flat()), 1, JSON.stringify(calls))
  t.true(calls.flat().every(([action]) => action !== 'busy'))
})

test('What expiry waits for is what began before, not what began since', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'old', '2024-01-10'`)
  const [old, young] = [await openSession(t, url), await openSession(t, url)]
  await begin(old, 'repeatable read')
  await setRetention(sql, 's', '2024-01-20')
  t.is((await expireAll(sql)).at(-1)?.[0], 'wait')
  await begin(young, 'repeatable read')
  await old.sql`commit`
  t.is(await young.value(`select status from once.claim_key('s', 'old', '2024-01-10')`), 'expired')
  t.is(deletedOf(await expireAll(sql)), 1)
})

test('Who connected after the caller had looked at pg_stat_activity is waited for as well', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'k', '2024-01-10 09:00Z'`)
  const expirer = await openSession(t, url)
  await expirer.sql`begin`
  await expirer.rows('select count(*) from pg_stat_activity')
  const old = await openSession(t, url)
  await begin(old, 'repeatable read')
  await setRetention(sql, 's', '2024-01-20')
  await expireOnce(sql)
  const rows = await expireOnce(expirer.sql)
  t.is(rows.at(-1)?.[0], 'wait', JSON.stringify(rows))
  t.true(String(rows.at(-1)?.[2]).includes(`process ${old.pid} `), String(rows.at(-1)?.[2]))
  t.is(await kept(sql), 1)
  t.is(await old.value(`select status from once.claim_key('s', 'k', '2024-01-10 09:00Z')`), 'duplicate')
})

test('Neither another database nor a prepared transaction nor an idle connection is waited for', async (t) => {
  const { sql, url } = await testDatabase(t)
  const other = await testDatabase(t)
  await claim(sql, `'s', 'old', '2024-01-10'`)
  const [elsewhere, prepared] = [await openSession(t, other.url), await openSession(t, url)]
  await openSession(t, url)
  await begin(elsewhere, 'repeatable read')
  const gid = randomName('expiry')
  await prepared.sql`begin`
  t.is(await claim(prepared.sql, `'s', 'in doubt', '2024-01-11'`), 'claimed')
  await prepared.rows(`prepare transaction '${gid}'`)
  await setRetention(sql, 's', '2024-01-20')
  t.is(deletedOf(await expireAll(sql)), 1)
  await sql.unsafe(`commit prepared '${gid}'`)
  t.is(await claim(sql, `'s', 'in doubt', '2024-01-11'`), 'expired')
})

test('Calls in one transaction cannot see the horizon committed, and delete nothing', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'old', '2024-01-10'`)
  await setRetention(sql, 's', '2024-01-20')
  const a = await openSession(t, url)
  await a.sql`begin`
  t.deepEqual((await expireOnce(a.sql)).at(-1)?.slice(0, 3), [
    'delete',
    null,
    'keys past their horizon: from the next call on',
  ])
  t.deepEqual(await expireOnce(a.sql), [
    ['wait', null, 'keys past their horizon: call again in another transaction', '0', false],
  ])
  await a.sql`rollback`
  t.is(deletedOf(await expireAll(sql)), 1)
})

test('A transaction that keeps expiry waiting shows in once.health, which does not say that nobody expires', async (t) => {
  const { sql, url } = await testDatabase(t)
  const health = async () =>
    Object.fromEntries(
      (await rowsOf(sql, `select name, status, hint from once.health where name ~ '^expiry|^horizon'`)).map(
        ([name, status, hint]) => [name, [status, hint]],
      ),
    )
  await claim(sql, `'s', 'old', '2024-01-10'`)
  const old = await openSession(t, url)
  await begin(old, 'repeatable read')
  await setRetention(sql, 's', '2024-01-20')
  await expireAll(sql)
  await sql`update once.expiry set begun_at = begun_at - interval '25 hours'`
  await sql`update once.database set created_at = created_at - interval '1 day'`
  t.deepEqual(await health(), {
    expiry_age_seconds: ['ok', null],
    expiry_waits_seconds: [
      'warn',
      'keys past their horizon cannot be deleted: select * from once.expire() names the transactions that are in the way',
    ],
    horizon_lag_seconds: ['ok', null],
  })
  await old.sql`commit`
  await expireAll(sql)
  t.deepEqual((await health()).expiry_waits_seconds, ['ok', null])

  await sql`update once.expiry set finished_on = finished_on - 4`
  await sql`update once.database set created_at = created_at - interval '10 days'`
  const [status, hint] = (await health()).expiry_age_seconds ?? []
  t.is(status, 'warn')
  t.true(String(hint).includes('pgonce expire'))
})

test('Keys without time go by the day of their claim, in batches, a bounded stretch of the table per call', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.claim_key_batch('short', array(select g::text from generate_series(1, 25000) g))`
  await sql`select once.claim_key_batch('ever', array(select g::text from generate_series(1, 500) g))`
  await sql`update once.message set claimed_on = claimed_on - 10`
  await sql`vacuum full once.message`
  await sql`select once.claim_key_batch('short', array(select g::text from generate_series(30001, 30100) g))`
  await sql`select once.set_retention('short', '9 days')`
  const rows = await expireAll(sql, 9000)
  t.deepEqual(
    rows.slice(0, 2).map(([action, scope, , , more]) => [action, scope, more]),
    [
      ['horizon', 'short', false],
      ['delete', null, true],
    ],
  )
  const deletes = rows.slice(2).filter(([, scope]) => scope !== null)
  t.true(deletes.length > 1, 'in several calls')
  for (const [, scope, , count] of deletes) {
    t.is(scope, 'short')
    t.true(Number(count) < 9000 + 6000, `${count} at once`)
  }
  t.is(deletedOf(rows), 25_000)
  t.deepEqual([await kept(sql, 'ever'), await kept(sql, 'short')], [500, 100])
  t.is(await claim(sql, `'short', '30001'`), 'duplicate')
  t.is(await claim(sql, `'short', '1'`), 'claimed', 'a key without time is forgotten with its row')

  await sql`update once.message set claimed_on = claimed_on - 10`
  t.false(
    (await expireAll(sql)).some(([action]) => action === 'delete'),
    'one pass per day is enough',
  )
  await sql`select once.set_retention('short', '8 days')`
  t.is(deletedOf(await expireAll(sql)), 101, 'another retention starts another pass')
})

test('A pass over many keys goes on where the last call stopped, also over what it keeps', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_retention('short', '1 day')`
  await sql`select once.set_retention('long', '30 days')`
  await sql`
    insert into once.message (digest, scope_id, claimed_on, payload_hash)
    select gen_random_uuid(), s.scope_id, current_date - 9, convert_to(repeat('x', 1000), 'UTF8')
      from once.scope s, generate_series(1, 8000)
     order by s.scope = 'short'`
  const blocks = await oneValue(sql, `select pg_relation_size('once.message') / 8192`)
  t.true(Number(blocks) > 2000, `${blocks} blocks`)
  const steps = (await expireAll(sql, 1_000)).filter(([action]) => action === 'delete')
  t.regex(String(steps[1]?.[2]), /at block 1024 of \d+/)
  t.deepEqual(steps[1]?.slice(3), ['0', true], 'nothing to delete in the first stretch')
  t.is(deletedOf(steps), 8_000)
  t.deepEqual([await kept(sql, 'long'), await kept(sql, 'short')], [8_000, 0])
})

test('Expiry passes over keys that somebody has locked', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key_batch('s', array['a', 'b'])`
  await sql`update once.message set claimed_on = claimed_on - 10`
  await sql`select once.set_retention('s', '1 day')`
  await expireOnce(sql)
  // As after the wait: nobody is left who began before.
  await sql`update once.expiry set waits_for = '{}'`
  const a = await openSession(t, url)
  await a.sql`begin`
  await a.rows(`select once.keep_result('s', 'a', '1')`)
  t.is(deletedOf(await expireAll(sql)), 1)
  await a.sql`commit`
  t.is(await claim(sql, `'s', 'a'`), 'duplicate')
  t.is(await claim(sql, `'s', 'b'`), 'claimed')
})

test('A key that an expiry is deleting is claimed again only once the expiry has committed', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('s', 'a')`
  await sql`update once.message set claimed_on = claimed_on - 10`
  await sql`select once.set_retention('s', '1 day')`
  await expireOnce(sql)
  for (const [end, answer] of [
    ['rollback', 'duplicate'],
    ['commit', 'claimed'],
  ]) {
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await a.sql`begin`
    t.is(deletedOf(await expireOnce(a.sql)), 1)
    const second = claim(b.sql, `'s', 'a'`)
    await untilBlocked(sql, b)
    await a.rows(`${end}`)
    t.is(await second, answer)
  }
})

test('Records of expired claims are deleted after two days, in batches', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_retention('s', '1 day')`
  await expireAll(sql)
  t.is(await claim(sql, `'s', 'late', '2024-01-01'`), 'expired')
  await sql`
    insert into once.expired_claim (answered_at, scope_id, claims, oldest_day)
    select now() - interval '3 days', scope_id, 1, '2024-01-01' from once.scope, generate_series(1, 25)`
  const rows = (await expireAll(sql, 10)).map(([, , detail, count, more]) => [detail, count, more])
  t.deepEqual(rows, [
    ['records of expired claims', '10', true],
    ['records of expired claims', '10', true],
    ['records of expired claims', '5', false],
  ])
  t.is(await oneValue(sql, 'select sum(claims)::int from once.expired_claims'), 1)
})

test('Retention and kept results work while a publication has all tables', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`create publication everything for all tables`
  for (const time of ['null', `'2024-01-10 09:00Z'`]) {
    t.is(await claim(sql, `'s', 'a', ${time}`), 'claimed')
    await oneValue(sql, `select once.keep_result('s', 'a', '{"id": 7}', ${time})`)
    t.deepEqual(await rowsOf(sql, `select * from once.claim_key('s', 'a', ${time})`), [
      ['duplicate', { id: 7 }],
    ])
  }
  await sql`select once.claim_batch('p', array[0, 2, 4])`
  await sql`select once.claim_batch('p', array[1, 3])`
  await setRetention(sql, 's', '2024-01-20')
  await expireAll(sql)
  t.is(await claim(sql, `'s', 'late', '2024-01-01'`), 'expired')
  await sql`update once.expired_claim set answered_at = answered_at - interval '3 days'`
  await expireAll(sql)
  t.is(await kept(sql), 1)
  t.is(await oneValue(sql, 'select count(*)::int from once.expired_claim'), 0)
})

test('Expiry runs for who was granted recovery and nothing else, by the rights of the schema’s owner', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const { testRole } = await import('../support/database.ts')
  const role = await testRole(t, database)
  await sql`select once.grant_recover(${role})`
  await claim(sql, `'s', 'old', '2024-01-10'`)
  await setRetention(sql, 's', '2024-01-20')
  const recoverer = connect(t, database.urlAs(role))
  await refused(t, recoverer`delete from once.message`, '42501')
  // What it may not see of others, it does not need.
  const old = await openSession(t, database.url)
  await begin(old, 'repeatable read')
  t.true(String((await expireAll(recoverer)).at(-1)?.[2]).includes(`process ${old.pid}`))
  await old.sql`commit`
  t.is(deletedOf(await expireAll(recoverer)), 1)
})
