import { createHash } from 'node:crypto'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import type postgres from 'postgres'
import { connect, testDatabase, testRole } from '../support/database.ts'
import {
  claimKey as claim,
  claimKeyBatch as claimBatch,
  expireOnce,
  retentionSince,
} from '../support/ledger.ts'
import {
  freshName,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'

const shared = sharedDatabase()

/** Moves the clock of the ledger forward: the only thing that reads it is expiry. */
const setHorizon = (sql: postgres.Sql, scope: string, horizon: string) =>
  sql`update once.scope set horizon = ${horizon} where scope = ${scope}`

test('A key is claimed once, and every later claim of it is answered duplicate', async (t) => {
  const { sql } = shared()
  const [scope, other] = [freshName(), freshName()]
  for (const time of ['null', `'2024-03-01 10:00Z'`]) {
    const call = (name: string, key: string) => `'${name}', '${key}', ${time}`
    t.is(await claim(sql, call(scope, 'a')), 'claimed')
    t.is(await claim(sql, call(scope, 'a')), 'duplicate')
    t.is(await claim(sql, call(scope, 'A')), 'claimed')
    t.is(await claim(sql, call(other, 'a')), 'claimed', 'scopes do not share keys')
    t.is(await claim(sql, call(scope, 'a')), 'duplicate')
  }
})

test('A batch answers every key in its order, and of a repeated key the first is the claim', async (t) => {
  const { sql } = shared()
  const scope = freshName()
  await claim(sql, `'${scope}', 'old'`)
  t.deepEqual(
    await rowsOf(sql, `select * from once.claim_key_batch('${scope}', array['b', 'old', 'a', 'b', 'a'])`),
    [
      [1, 'b', 'claimed', null],
      [2, 'old', 'duplicate', null],
      [3, 'a', 'claimed', null],
      [4, 'b', 'duplicate', null],
      [5, 'a', 'duplicate', null],
    ],
  )
  t.deepEqual(await claimBatch(sql, `'${scope}', '{}'`), [])
})

test('A message is kept under its own day in UTC, whatever the session’s time zone', async (t) => {
  const { sql, url } = await testDatabase(t)
  const a = await openSession(t, url)
  await a.sql`set time zone 'Pacific/Kiritimati'`
  await a.rows(`select once.claim_key('s', 'late', '2024-02-29 23:59:59.999999+00')`)
  await a.rows(`select once.claim_key('s', 'early', '2024-03-01 00:00+00')`)
  await a.rows(`select once.claim_key_batch('s', '{b}', '{2024-03-01 00:00+00}')`)
  await a.sql`set time zone 'Pacific/Pago_Pago'`
  t.is(await claim(a.sql, `'s', 'late', '2024-02-29 23:59:59.999999+00'`), 'duplicate')
  t.is(await claim(a.sql, `'s', 'b', '2024-03-01 00:00+00'`), 'duplicate')
  await a.rows(`select once.claim_key('s', 'no time')`)
  const days = `
    select d.day, count(*)::int
      from (select date '1999-12-31' + ('x' || left(m.digest::text, 4))::bit(16)::int as day from once.message m) d
     group by 1 order by 1`
  t.deepEqual(await rowsOf(sql, days.replace('d.day', 'd.day::text')), [
    ['1999-12-31', 1],
    ['2024-02-29', 1],
    ['2024-03-01', 2],
  ])
  t.is(
    await oneValue(
      sql,
      `select claimed_on = (now() at time zone 'UTC')::date from once.message where claimed_on is not null`,
    ),
    true,
  )
})

test('The time in a UUIDv7 or ULID is read exactly, and nothing else is taken for one', async (t) => {
  const { sql } = shared()
  const time = async (key: string) => {
    const [row] = await sql`select (extract(epoch from once.message_time(${key})) * 1000)::int8::text as ms`
    return row?.ms
  }
  t.is(await time('017F22E2-79B0-7CC3-98C4-DC0C0C07398F'), '1645557742000', 'the example of RFC 9562')
  t.is(await time('01ARZ3NDEKTSV4RRFFQ69G5FAV'), '1469922850259', 'the example of the ULID specification')
  t.is(await time('017f22e2-79b0-7cc3-98c4-dc0c0c07398f'), '1645557742000')
  const none = [
    '017f22e2-79b0-4cc3-98c4-dc0c0c07398f', // version 4
    '017f22e2-79b0-7cc3-18c4-dc0c0c07398f', // not the RFC's variant
    '017f22e279b07cc398c4dc0c0c07398f',
    '{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}',
    '017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n',
    '01arz3ndektsv4rrffq69g5fav', // a ULID is written in capitals
    '01ARZ3NDEKTSV4RRFFQ69G5FAU', // no U in Crockford's alphabet
    '81ARZ3NDEKTSV4RRFFQ69G5FAV', // more than 128 bits
    '00000000000000000000000000', // 1970
    '7ZZZZZZZZZZZZZZZZZZZZZZZZZ', // 10889
    '00000000-0000-7000-8000-000000000000',
    'ffffffff-ffff-7fff-bfff-ffffffffffff',
    'evt_1',
    '',
    '2024-01-01',
  ]
  for (const key of none) t.is(await time(key), null, key)
  t.is(await oneValue(sql, 'select once.message_time(null)'), null)
})

test('A time before 2000 or more than two days ahead is refused, also one that only wraps round to a day', async (t) => {
  const { sql } = await testDatabase(t)
  t.is(await claim(sql, `'s', 'a', '2000-01-01 00:00Z'`), 'claimed')
  t.is(await claim(sql, `'s', 'a', now() + '47 hours 59 minutes'`), 'claimed')
  const times = [
    `'1999-12-31 23:59:59.999999Z'`,
    `to_timestamp(1764590400 / 1000.0)`, // seconds taken for milliseconds
    `now() + interval '2 days 1 second'`,
    `'2179-06-07'`, // 65,536 days after the first
    `'2024-01-01 BC'`,
    `'12024-01-01'`,
    `'infinity'`,
    `'-infinity'`,
  ]
  for (const time of times) {
    for (const known of [`'s'`, `'${freshName()}'`]) {
      const words = ['bad occurred_at', 'to two days from now', 'milliseconds where seconds were meant']
      await refused(t, claim(sql, `${known}, 'b', ${time}`), 'ONARG', ...words)
      await refused(
        t,
        claimBatch(sql, `${known}, '{a,b}', array['2024-01-01', ${time}]::timestamptz[]`),
        'ONARG',
        ...words,
      )
    }
    await refused(t, oneValue(sql, `select once.keep_result('s', 'b', '1', ${time})`), 'ONARG')
    await refused(
      t,
      rowsOf(sql, `select once.claim_keys('s', '{a}', array[${time}]::timestamptz[])`),
      'ONARG',
    )
  }
  t.is(await oneValue(sql, 'select count(*)::int from once.message'), 2)
})

test('Whoever chooses times chooses nothing but rows: thousands of days make no table, and hold nobody up', async (t) => {
  const { sql, url } = await testDatabase(t)
  const relations = `select count(*)::int from pg_class where relnamespace = 'once'::regnamespace`
  const before = await oneValue(sql, relations)
  const a = await openSession(t, url)
  await a.sql`begin`
  const statuses = await a.rows(`
    select status, count(*)::int
      from once.claim_key_batch('hostile', array(select 'k' || g from generate_series(0, 8999) g),
                                array(select timestamptz '2001-01-01Z' + g * interval '1 day' from generate_series(0, 8999) g))
     group by 1`)
  t.deepEqual(statuses, [['claimed', 9000]])
  t.is(await oneValue(sql, relations), before)
  for (const time of ['now()', `'2013-01-01'`, `'2001-01-01'`, 'null'])
    t.is(await claim(sql, `'stripe', 'evt_1', ${time}`), 'claimed', 'while the other transaction is open')
  await a.sql`commit`
})

test('A handler that takes long with the first message of a day holds no other message of any day up', async (t) => {
  const { sql, url } = await testDatabase(t)
  for (const scope of ['s', 'other']) await claim(sql, `'${scope}', 'warm up'`)
  const a = await openSession(t, url)
  await a.sql`begin`
  t.is(await claim(a.sql, `'s', 'slow', '2023-06-01 00:00:01Z'`), 'claimed')
  await sql`set lock_timeout = '1s'`
  t.is(await claim(sql, `'s', 'same day', '2023-06-01 00:00:02Z'`), 'claimed')
  t.is(await claim(sql, `'s', 'another day', '2023-06-02'`), 'claimed')
  t.is(await claim(sql, `'other', 'another day', '2023-06-03'`), 'claimed')
  t.is(await claim(sql, `'new scope', 'today', now()`), 'claimed')
  await a.sql`commit`
})

test('Bad keys, scopes and arrays are refused with what was expected', async (t) => {
  const { sql } = shared()
  for (const bad of ['null', `''`]) {
    await refused(t, claim(sql, `'s', ${bad}`), 'ONARG', 'bad key')
    await refused(t, claimBatch(sql, `'s', array['a', ${bad}]`), 'ONARG', 'bad key')
    await refused(t, claim(sql, `${bad}, 'a'`), 'ONARG', 'bad scope')
    await refused(t, claimBatch(sql, `${bad}, '{a}'`), 'ONARG', 'bad scope')
    await refused(t, oneValue(sql, `select once.set_retention(${bad}, '1 day')`), 'ONARG', 'bad scope')
  }
  await refused(t, claimBatch(sql, `'s', null`), 'ONARG', 'keys')
  await refused(t, claimBatch(sql, `'s', '{a,b}', array[now()]`), 'ONARG', '2 keys, 1 times')
  await refused(
    t,
    claimBatch(sql, `'s', '{a,b}', null, '{a,b,c}'`),
    'ONARG',
    '2 keys, no times, 3 payload hashes',
  )
  await refused(t, claim(sql, `'${'x'.repeat(201)}', 'a'`), 'ONARG', 'bad scope', 'got 201')
})

test('Keys and scopes may hold quotes, emoji and control characters, keys also 10 kB and more', async (t) => {
  const { sql } = shared()
  const texts = [
    `o'neill "&" \\ $$; drop schema once; --`,
    '😀'.repeat(200),
    ' ',
    '\n',
    '\u00e9',
    'e\u0301',
    '\u0001',
  ]
  const keys = [...texts, 'x'.repeat(10_000), 'x'.repeat(10_001), '😀'.repeat(300_000)]
  for (const scope of texts) {
    const answers = await sql`select status from once.claim_key_batch(${scope}, ${keys})`
    t.true(answers.every(({ status }) => status === 'claimed'))
    for (const key of keys) {
      const [row] = await sql`select status from once.claim_key(${scope}, ${key})`
      t.is(row?.status, 'duplicate')
    }
  }
})

test('The digest of a key is the one that any language can compute', async (t) => {
  const { sql } = await testDatabase(t)
  const digest = (day: number, scope: string, key: string) =>
    day.toString(16).padStart(4, '0') +
    createHash('sha256').update(`${scope}\0${key}`).digest('hex').slice(0, 28)
  for (const [scope, key, time, day] of [
    ['s', 'k', null, 0],
    ['schön', '😀', null, 0],
    ['s', 'k', '2000-01-01 00:00Z', 1],
    ['s', 'k', '2024-03-01 23:59:59Z', 8827],
  ] as const) {
    const expected = digest(day, scope, key)
    const [row] = await sql`
      select replace(once.message_digest(${scope}, ${key}, ${time})::text, '-', '') as digest`
    t.is(row?.digest, expected)
    await sql`select once.claim_key(${scope}, ${key}, ${time})`
    await sql`select once.claim_keys(${scope}, ${[`batch ${key}`]}, ${[time]}::timestamptz[])`
    const kept = await rowsOf(sql, `select replace(digest::text, '-', '') from once.message`)
    t.true(kept.flat().includes(expected))
    t.true(kept.flat().includes(digest(day, scope, `batch ${key}`)))
  }
  t.not(
    await oneValue(sql, `select once.message_digest('ab', 'c')`),
    await oneValue(sql, `select once.message_digest('a', 'bc')`),
  )
  t.is(await oneValue(sql, `select once.message_digest('s', 'k', 'infinity')`), null)
  t.is(await oneValue(sql, `select once.message_digest('s', 'k', '1999-12-31')`), null)
})

test('A row of the ledger with neither hash nor result takes at most 48 bytes', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-01'`)
  await claim(sql, `'s', 'a'`)
  t.deepEqual(await rowsOf(sql, `select pg_column_size(m) from once.message m`), [[44], [48]])
})

test('A result that was kept is given to duplicates, and the first one stays', async (t) => {
  const { sql } = shared()
  const scope = freshName()
  for (const time of ['null', `'2024-03-01 10:00Z'`, `'2024-03-02 10:00Z'`]) {
    const call = `'${scope}', 'a', ${time}`
    t.is(await claim(sql, call), 'claimed')
    t.deepEqual(await rowsOf(sql, `select * from once.claim_key(${call})`), [['duplicate', null]])
    await oneValue(sql, `select once.keep_result('${scope}', 'a', '{"id": 7}', ${time})`)
    t.deepEqual(await rowsOf(sql, `select * from once.claim_key(${call})`), [['duplicate', { id: 7 }]])
    await refused(
      t,
      oneValue(sql, `select once.keep_result('${scope}', 'a', '8', ${time})`),
      'ONARG',
      'kept already',
    )
    await refused(t, oneValue(sql, `select once.keep_result('${scope}', 'b', '8', ${time})`), 'ONARG', `'b'`)
  }
})

test('A batch gives each duplicate the result of its own first claim', async (t) => {
  const { sql } = shared()
  const scope = freshName()
  const times = `'{2024-04-01,2024-04-02,2024-04-01,NULL,NULL}'`
  await claimBatch(sql, `'${scope}', '{a,b,c,d,e}', ${times}`)
  await oneValue(sql, `select once.keep_result('${scope}', 'b', '"B"', '2024-04-02')`)
  await oneValue(sql, `select once.keep_result('${scope}', 'c', 'null', '2024-04-01')`)
  await oneValue(sql, `select once.keep_result('${scope}', 'e', '["E"]')`)
  t.deepEqual(
    await claimBatch(
      sql,
      `'${scope}', '{x,a,e,b,c,d,e}', '{2024-04-01,2024-04-01,NULL,2024-04-02,2024-04-01,NULL,NULL}'`,
    ),
    [
      ['x', 'claimed', null],
      ['a', 'duplicate', null],
      ['e', 'duplicate', ['E']],
      ['b', 'duplicate', 'B'],
      ['c', 'duplicate', null],
      ['d', 'duplicate', null],
      ['e', 'duplicate', ['E']],
    ],
  )
})

test('A key that comes again with another payload is an error, never a duplicate', async (t) => {
  const { sql } = shared()
  const scope = freshName()
  for (const time of ['null', `'2024-03-01 10:00Z'`]) {
    t.is(await claim(sql, `'${scope}', 'a', ${time}, '\\x01'`), 'claimed')
    t.is(await claim(sql, `'${scope}', 'a', ${time}, '\\x01'`), 'duplicate')
    t.is(await claim(sql, `'${scope}', 'a', ${time}`), 'duplicate', 'who knows no hash asks for no check')
    await refused(t, claim(sql, `'${scope}', 'a', ${time}, '\\x02'`), 'ONPAY', `'a'`, scope)
    const times = `array[${time}, ${time}, ${time}]::timestamptz[]`
    await refused(
      t,
      claimBatch(sql, `'${scope}', '{b,c,b}', ${times}, '{"\\\\x01","\\\\x01","\\\\x02"}'`),
      'ONPAY',
      `'b'`,
    )
    t.is(await claim(sql, `'${scope}', 'c', ${time}`), 'claimed', 'the refused batch claimed nothing')
    t.is(await claim(sql, `'${scope}', 'c', ${time}, '\\x05'`), 'duplicate', 'nothing to compare with')
  }
})

test('100,000 keys are claimed in one batch, and their cost grows no faster than their number', async (t) => {
  const { sql } = await testDatabase(t)
  const claimed = async (count: number) => {
    const began = Date.now()
    const numbers = `from generate_series(1, ${count}) g`
    const statement = `
      select status, count(*)::int from once.claim_key_batch('${count}',
        array(select g::text ${numbers}),
        array(select case when g % 3 > 0 then timestamptz '2024-01-01Z' + g % 5 * interval '1 day' end ${numbers}),
        array(select case when g % 7 > 0 then sha256(g::text::bytea) end ${numbers}))
      group by 1`
    t.deepEqual(await rowsOf(sql, statement), [['claimed', count]])
    t.deepEqual(await rowsOf(sql, statement), [['duplicate', count]])
    return Date.now() - began
  }
  await claimed(10)
  const [few, many] = [await claimed(5000), await claimed(100_000)]
  // Twenty times as many took twenty times as long when this was written; a quadratic step took 400 times.
  t.true(many < 100 * few, `${few} ms, ${many} ms`)
})

test('A claim by key locks the ledger, its scope and their indexes, and nothing else, and a duplicate writes nothing', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2023-05-05', '\\x00'`)
  await claim(sql, `'s', 'a', null, '\\x00'`)
  const a = await openSession(t, url)
  const duplicates = [
    `select once.claim_key('s', 'a', '2023-05-05')`,
    `select once.claim_key('s', 'a', '2023-05-05', '\\x00')`,
    `select once.claim_key('s', 'a', null, '\\x00')`,
    `select once.claim_keys('s', '{a,a}', '{2023-05-05,NULL}')`,
  ]
  const locked = `
    select distinct relation::regclass::text from pg_locks
     where pid = pg_backend_pid() and relation::regclass::text ~ '^once' order by 1`
  for (const statement of [...duplicates, `select once.claim_key('s', 'b', '2023-05-05')`]) {
    // Seven times: from the sixth on Postgres considers a generic plan.
    for (let i = 0; i < 7; i++) {
      await a.sql`begin`
      await a.rows(statement)
      const names = (await a.rows(locked)).flat().filter((name) => !/^once\.scope/.test(String(name)))
      t.deepEqual(
        names.filter((name) => name !== 'once.message_pkey'),
        ['once.message'],
        statement,
      )
      const isNew = await a.value('select pg_current_xact_id_if_assigned() is not null')
      t.is(isNew, statement.includes(`'b'`), statement)
      await a.sql`rollback`
    }
  }
})

for (const time of ['no time', 'a time'] as const) {
  const at = time === 'no time' ? 'null::timestamptz' : `timestamptz '2024-05-05 05:05Z'`
  for (const form of ['claim_key', 'claim_key_batch'] as const) {
    const call = (scope: string) =>
      form === 'claim_key'
        ? `select status from once.claim_key('${scope}', 'k', ${at})`
        : `select status from once.claim_key_batch('${scope}', '{k}', array[${at}])`
    for (const known of ['a new scope', 'a known scope'] as const) {
      const title = `of a key with ${time} in ${known} (${form})`

      const scene = async (t: ExecutionContext) => {
        const { sql, url } = shared()
        const scope = freshName()
        if (known === 'a known scope') await sql`select once.set_retention(${scope}, null)`
        return { sql, statement: call(scope), a: await openSession(t, url), b: await openSession(t, url) }
      }

      for (const [end, answer] of [
        ['commit', 'duplicate'],
        ['rollback', 'claimed'],
      ] as const) {
        test(`Of two claims ${title} the second waits, and is ${answer} after a ${end}`, async (t) => {
          const { sql, statement, a, b } = await scene(t)
          await a.sql`begin`
          t.is(await a.value(statement), 'claimed')
          const second = b.value(statement)
          await untilBlocked(sql, b)
          await a.rows(end)
          t.is(await second, answer)
        })
      }

      test(`Two claims ${title} under repeatable read are never both new`, async (t) => {
        const { sql, statement, a, b } = await scene(t)
        await b.sql`set default_transaction_isolation = 'repeatable read'`
        await a.sql`begin`
        t.is(await a.value(statement), 'claimed')
        const second = b.value(statement)
        await untilBlocked(sql, b)
        await a.sql`commit`
        await refused(t, second, '40001')
        t.is(await b.value(statement), 'duplicate')
      })

      test(`A claim ${title} with a snapshot older than the first one fails with 40001`, async (t) => {
        const { statement, a, b } = await scene(t)
        await b.sql`begin isolation level repeatable read`
        await b.rows('select from once.scope')
        t.is(await a.value(statement), 'claimed')
        await refused(t, b.value(statement), '40001')
      })
    }
  }
}

test('A result that the first claim keeps reaches the duplicate that waited for it', async (t) => {
  const { sql, url } = shared()
  const scope = freshName()
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  await a.rows(`select once.claim_key('${scope}', 'k')`)
  const second = b.rows(`select * from once.claim_key('${scope}', 'k')`)
  await untilBlocked(sql, b)
  await a.rows(`select once.keep_result('${scope}', 'k', '42')`)
  await a.sql`commit`
  t.deepEqual(await second, [['duplicate', 42]])
})

test('Two batches with the same keys in opposite order do not deadlock', async (t) => {
  const { url } = await testDatabase(t)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  for (let round = 0; round < 10; round++) {
    const keys = Array.from({ length: 300 }, (_, i) => `k${round}-${i}`)
    const answers = await Promise.all([
      claimBatch(a.sql, `'s', '{${keys.join()}}'`),
      claimBatch(b.sql, `'s', '{${keys.toReversed().join()}}'`),
    ])
    t.is(answers.flat().filter(([, status]) => status === 'claimed').length, 300)
  }
})

test('A claiming transaction waits for its flush although the default is synchronous_commit = off', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  await database.sql.unsafe(`alter role ${role} in database ${database.name} set synchronous_commit = off`)
  const a = await openSession(t, database.urlAs(role))
  for (const call of [
    `once.claim_key('s', 'a')`,
    `once.claim_key('s', 'a')`,
    `once.claim_key('s', 'b')`,
    `once.claim_key('s', 'a', '2024-01-01')`,
    `once.claim_key('s', 'b', '2024-01-01')`,
    `once.claim_key_batch('s', '{c,d}')`,
    `once.claim_keys('s', '{c,d}')`,
  ]) {
    t.is(await a.value('show synchronous_commit'), 'off')
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
})

/** What the ledger promises: a set of (scope, key, day), a horizon a scope, and the first result. */
test('Any claims by key are answered as a plain map would answer them, expiries in between', async (t) => {
  const { sql } = await testDatabase(t)
  const days = ['2024-01-01', '2024-01-02', '2024-01-03', '2024-01-04']
  const item = fc.record({ key: fc.constantFrom('a', 'b', 'c'), day: fc.option(fc.nat(3), { freq: 5 }) })
  const command = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ what: fc.constant('claim' as const), items: fc.array(item, { maxLength: 6 }) }),
    },
    { weight: 2, arbitrary: fc.record({ what: fc.constant('keep' as const), item, result: fc.nat(99) }) },
    { weight: 1, arbitrary: fc.record({ what: fc.constant('expire' as const), day: fc.nat(4) }) },
  )
  let run = 0
  await fc.assert(
    fc.asyncProperty(fc.array(command, { maxLength: 12 }), async (commands) => {
      const scope = `s${run++}`
      const kept = new Map<string, number | null>()
      let horizon = -1
      await sql`select once.set_retention(${scope}, null)`
      const time = (day: number | null) => (day === null ? null : `${days[day]} 12:00Z`)
      for (const one of commands) {
        if (one.what === 'expire') {
          horizon = Math.max(horizon, one.day)
          await setHorizon(sql, scope, `${days[horizon] ?? '2024-01-05'} 00:00Z`)
          // That deleting is safe is tested with expiry.
        } else if (one.what === 'keep') {
          const id = `${one.item.key} ${one.item.day}`
          const [kind] = await Promise.allSettled([
            sql`select once.keep_result(${scope}, ${one.item.key}, ${one.result}::text::jsonb, ${time(one.item.day)})`,
          ])
          const expected = kept.get(id) === null
          t.is(kind?.status === 'fulfilled', expected)
          if (expected) kept.set(id, one.result)
        } else {
          const expected = one.items.map(({ key, day }) => {
            const id = `${key} ${day}`
            if (day !== null && day < horizon) return { key, status: 'expired', result: null }
            if (kept.has(id)) return { key, status: 'duplicate', result: kept.get(id) }
            kept.set(id, null)
            return { key, status: 'claimed', result: null }
          })
          const [single] = one.items
          const rows =
            one.items.length === 1 && single
              ? await sql`
                  select ${single.key} as key, status, result
                    from once.claim_key(${scope}, ${single.key}, ${time(single.day)})`
              : await sql`
                  select key, status, result
                    from once.claim_key_batch(${scope}, ${one.items.map(({ key }) => key)}::text[],
                                              ${one.items.map(({ day }) => time(day))}::timestamptz[])
                   order by ordinal`
          t.deepEqual(
            rows.map((row) => ({ ...row })),
            expected,
          )
        }
      }
    }),
    { numRuns: 100 },
  )
})

test('Concurrent workers that deliver repeated keys, and often roll back, process each once, beside expiry', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`create table effect (scope text, key text, day date)`
  const workers = Array.from({ length: 4 }, () => connect(t, url))
  const expirer = connect(t, url)
  const delivery = fc.record({
    items: fc.array(fc.record({ key: fc.nat(6), day: fc.nat(4) }), { minLength: 1, maxLength: 6 }),
    fails: fc.boolean(),
  })
  let run = 0
  let expired = 0
  let deleted = 0
  const deletedBy = (rows: unknown[][]) =>
    rows.filter(([action]) => action === 'delete').reduce((sum, row) => sum + Number(row[3]), 0)
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(delivery, { maxLength: 5 }), { minLength: 4, maxLength: 4 }),
      async (plans) => {
        const scope = `s${run}`
        const month = new Date(Date.UTC(2011, 0, 1) + run++ * 10 * 86_400_000)
        const date = (day: number) => new Date(month.getTime() + day * 86_400_000).toISOString().slice(0, 10)
        await sql`select once.set_retention(${scope}, null)`
        const work = async (worker: postgres.Sql, plan: (typeof plans)[number]) => {
          for (const { items, fails } of plan) {
            const attempt = () =>
              worker.begin(async (trx) => {
                const rows = await trx<{ n: number; status: string }[]>`
                select ordinal as n, status
                  from once.claim_key_batch(${scope}, ${items.map(({ key }) => `k${key}`)},
                                            ${items.map(({ day }) => date(day))}::timestamptz[])`
                const fresh = rows.filter((row) => row.status === 'claimed').map((row) => items[row.n - 1])
                expired += rows.filter((row) => row.status === 'expired').length
                for (const one of fresh)
                  if (one) await trx`insert into effect values (${scope}, ${`k${one.key}`}, ${date(one.day)})`
                if (fails) throw new Error('the handler fails')
              })
            await attempt().catch((error) => {
              if (!fails) throw error
            })
          }
        }
        const expiries = async () => {
          for (let day = 0; day < 3; day++) {
            const scopes = await expirer<{ scope: string }[]>`select scope from once.scope`
            for (const { scope: one } of scopes)
              await expirer.unsafe(`select once.set_retention('${one}', ${retentionSince(date(day))})`)
            for (let call = 0; call < 3; call++) deleted += deletedBy(await expireOnce(expirer))
          }
        }
        await Promise.all([...workers.map((worker, i) => work(worker, plans[i] ?? [])), expiries()])
        const [doubled] = await sql`
        select key, day from effect where scope = ${scope} group by 1, 2 having count(*) > 1`
        t.is(doubled, undefined)
        const delivered = new Set(
          plans.flatMap((plan) =>
            plan.flatMap(({ items, fails }) =>
              fails ? [] : items.map(({ key, day }) => `k${key} ${date(day)}`),
            ),
          ),
        )
        const rows = await sql<{ id: string }[]>`
        select key || ' ' || day as id from effect where scope = ${scope}`
        const done = new Set(rows.map((row) => row.id))
        for (const id of done) t.true(delivered.has(id))
        // What no expiry can have overtaken is there.
        for (const id of delivered) if (id.endsWith(date(3)) || id.endsWith(date(4))) t.true(done.has(id), id)
      },
    ),
    { numRuns: 15 },
  )
  t.log(`${expired} answered expired, ${deleted} deleted`)
})
