import { createHash } from 'node:crypto'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import type postgres from 'postgres'
import { connect, randomName, testDatabase, testRole } from '../support/database.ts'
import {
  freshName,
  isPending,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'
import { until } from '../support/until.ts'

const shared = sharedDatabase()

const claim = async (sql: postgres.Sql, call: string) =>
  (await rowsOf(sql, `select status from once.claim_key(${call})`))[0]?.[0]
const claimBatch = (sql: postgres.Sql, call: string) =>
  rowsOf(sql, `select key, status, result from once.claim_key_batch(${call})`)
const partitions = async (sql: postgres.Sql) =>
  (
    await rowsOf(
      sql,
      `select relname from pg_class where relkind = 'r' and relname ~ '^message_[0-9]' order by 1`,
    )
  ).map(([name]) => String(name).slice('message_'.length))
/** Expires until nothing is left to do; the rows of all steps. */
async function expireAll(sql: postgres.Sql, batchSize = 5000): Promise<unknown[][]> {
  const rows: unknown[][] = []
  for (let more = true; more; ) {
    const step = await rowsOf(sql, `select action, scope, detail, count, more from once.expire(${batchSize})`)
    rows.push(...step)
    more = step.some((row) => row[4])
  }
  return rows
}
/** Moves the clock of the ledger forward: the only thing that reads it is expiry. */
const setHorizon = (sql: postgres.Sql, scope: string, horizon: string) =>
  sql`update once.scope set horizon = ${horizon} where scope = ${scope}`
/** A retention that puts the horizon somewhere on this day, whatever today is. */
const retentionSince = (day: string) => `(now() - timestamptz '${day} 12:00Z')::interval`

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

test('A message lands in the partition of its own day in UTC, whatever the session’s time zone', async (t) => {
  const { sql, url } = await testDatabase(t)
  const a = await openSession(t, url)
  await a.sql`set time zone 'Pacific/Kiritimati'`
  await a.rows(`select once.claim_key('s', 'late', '2024-02-29 23:59:59.999999+00')`)
  await a.rows(`select once.claim_key('s', 'early', '2024-03-01 00:00+00')`)
  await a.sql`set time zone 'Pacific/Pago_Pago'`
  t.is(await claim(a.sql, `'s', 'late', '2024-02-29 23:59:59.999999+00'`), 'duplicate')
  t.deepEqual(
    await rowsOf(
      sql,
      `select tableoid::regclass::text, count(*)::int from once.message group by 1 order by 1`,
    ),
    [
      ['once.message_20240229', 1],
      ['once.message_20240301', 1],
    ],
  )
  t.is(await claim(sql, `'s', '01HQRQ6Z2J7Q2J7Q2J7Q2J7Q2J'`), 'claimed')
  t.is(await claim(sql, `'s', '018dfb74-1f40-7000-8000-000000000000'`), 'claimed')
  t.is(await claim(sql, `'s', 'no time'`), 'claimed')
  t.is(await oneValue(sql, `select count(*)::int from once.message where day is not null`), 4)
  t.is(await oneValue(sql, `select count(*)::int from once.message_timeless`), 1)
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

test('The range of times in a key ends where the range of partitions ends', async (t) => {
  const { sql } = await testDatabase(t)
  const uuid = (ms: number) => {
    const hex = ms.toString(16).padStart(12, '0')
    return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`
  }
  for (const ms of [Date.UTC(2010, 0, 1), Date.UTC(2100, 0, 1) - 1]) {
    t.is(await claim(sql, `'s', '${uuid(ms)}'`), 'claimed')
    t.is(await claim(sql, `'s', '${uuid(ms)}'`), 'duplicate')
  }
  t.deepEqual(await partitions(sql), ['20100101', '20991231'])
  t.is(await oneValue(sql, `select once.message_time('${uuid(Date.UTC(2010, 0, 1) - 1)}')`), null)
  t.is(await oneValue(sql, `select once.message_time('${uuid(Date.UTC(2100, 0, 1))}')`), null)
  t.is(await claim(sql, `'s', 'first', '1970-01-01 00:00Z'`), 'claimed')
  t.is(await claim(sql, `'s', 'last', '2099-12-31 23:59:59.999999Z'`), 'claimed')
})

test('A time outside 1970 to 2100 is refused, also where its digits name an existing day', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-01'`)
  const times = [
    '1969-12-31 23:59:59.999999Z',
    '2100-01-01 00:00Z',
    '2024-01-01 BC',
    '12024-01-01',
    'infinity',
    '-infinity',
  ]
  for (const time of times) {
    await refused(t, claim(sql, `'s', 'b', '${time}'`), 'ONARG', 'bad occurred_at', 'between 1970 and 2100')
    await refused(t, claimBatch(sql, `'s', '{a,b}', '{2024-01-01,"${time}"}'`), 'ONARG', 'bad occurred_at')
  }
  for (const day of ['1969-12-31', '2100-01-01', '2024-01-01 BC', 'infinity', '-infinity'])
    await refused(t, oneValue(sql, `select once.ensure_partition('${day}')`), 'ONARG', 'bad day')
  await refused(t, oneValue(sql, `select once.ensure_partition(null)`), 'ONARG', 'bad day')
  t.deepEqual(await partitions(sql), ['20240101'])
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
  const { sql } = shared()
  for (const [scope, key] of [
    ['s', 'k'],
    ['schön', '😀'],
  ] as const) {
    const hash = createHash('sha256').update(`${scope}\0${key}`).digest('hex').slice(0, 32)
    const [row] = await sql`select replace(once.message_digest(${scope}, ${key})::text, '-', '') as digest`
    t.is(row?.digest, hash)
  }
  t.not(
    await oneValue(sql, `select once.message_digest('ab', 'c')`),
    await oneValue(sql, `select once.message_digest('a', 'bc')`),
  )
})

test('A row of the ledger with neither hash nor result takes 48 bytes', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-01'`)
  await claim(sql, `'s', 'a'`)
  t.deepEqual(await rowsOf(sql, `select pg_column_size(m) from once.message m`), [[48], [48]])
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

test('A claim touches only the partition of its message, however many there are', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`
    select count(once.ensure_partition(d::date)) from generate_series('2023-01-01'::date, '2023-07-01', '1 day') d`
  await sql`select once.claim_key('s', 'a', '2023-05-05')`
  const a = await openSession(t, url)
  const statements = [
    `select once.claim_key('s', 'b', '2023-05-05')`,
    `select once.claim_key('s', 'a', '2023-05-05')`,
    `select once.claim_key('s', 'a', '2023-05-05', '\\x00')`,
    `select once.claim_key_batch('s', '{a,b,c}', '{2023-05-05,2023-05-05,2023-05-05}', '{a,b,c}')`,
  ]
  for (const statement of statements) {
    // Seven times: from the sixth on Postgres considers a plan that does not know the day.
    for (let i = 0; i < 7; i++) {
      await a.sql`begin`
      await a.rows(statement)
      if (i % 2 === 1) await a.rows(`select once.keep_result('s', 'a', '1', '2023-05-05')`)
      t.deepEqual(
        await a.rows(
          `select distinct relation::regclass::text from pg_locks
            where pid = pg_backend_pid() and relation::regclass::text ~ 'once.message_[0-9]+$'`,
        ),
        [['once.message_20230505']],
        statement,
      )
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
        if (time === 'a time') await sql`select once.ensure_partition('2024-05-05')`
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

for (const isolation of ['read committed', 'repeatable read']) {
  test(`Two transactions may need the same new day at once, under ${isolation} too`, async (t) => {
    const { sql, url } = await testDatabase(t)
    await sql`select once.set_retention('s', null)`
    for (const [day, end] of [
      ['2024-06-01', 'commit'],
      ['2024-06-02', 'rollback'],
    ] as const) {
      const [a, b] = [await openSession(t, url), await openSession(t, url)]
      await b.rows(`set default_transaction_isolation = '${isolation}'`)
      await a.sql`begin`
      t.is(await claim(a.sql, `'s', 'a', '${day}'`), 'claimed')
      const second = claim(b.sql, `'s', 'b', '${day}'`)
      await untilBlocked(sql, b)
      await a.rows(end)
      t.is(await second, 'claimed')
      t.is(await claim(sql, `'s', 'a', '${day}'`), end === 'commit' ? 'duplicate' : 'claimed')
    }
    t.deepEqual(await partitions(sql), ['20240601', '20240602'])
  })
}

test('Two batches with new days in opposite order do not deadlock', async (t) => {
  const { sql, url } = await testDatabase(t)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await sql`select once.set_retention('s', null)`
  for (let round = 1; round <= 9; round++) {
    const days = [1, 2, 3].map((month) => `2024-0${month}-0${round}`)
    const batch = (keys: string, times: readonly string[]) => `'s', '{${keys}}', '{${times.join()}}'`
    const [first, second] = await Promise.all([
      claimBatch(a.sql, batch('a,b,c', days)),
      claimBatch(b.sql, batch('d,e,f', days.toReversed())),
    ])
    t.true([...first, ...second].every(([, status]) => status === 'claimed'))
  }
  t.is((await partitions(sql)).length, 27)
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

test('A claim that created its partition can be prepared, and others wait only for the partition', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('s', 'x', '2024-01-01')`
  for (const finish of ['commit', 'rollback'] as const) {
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    const gid = randomName('key')
    const day = finish === 'commit' ? '2024-07-01' : '2024-07-02'
    await a.sql`begin`
    t.is(await claim(a.sql, `'s', 'a', '${day}'`), 'claimed')
    await a.rows(`prepare transaction '${gid}'`)
    t.is(await claim(sql, `'s', 'y-${finish}', '2024-01-01'`), 'claimed', 'days that exist are free')
    t.is(await claim(sql, `'s', 'y-${finish}'`), 'claimed')
    const second = claim(b.sql, `'s', 'a', '${day}'`)
    await untilBlocked(sql, b)
    await a.rows(`${finish} prepared '${gid}'`)
    t.is(await second, finish === 'commit' ? 'duplicate' : 'claimed')
  }
})

test('A scope’s horizon decides what is expired, and only moves forward', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`)
  await claim(sql, `'s', 'b', '2024-01-10 13:00Z'`)
  await claim(sql, `'keeps', 'b', '2024-01-10 13:00Z'`)
  await sql.unsafe(`select once.set_retention('s', ${retentionSince('2024-01-10')})`)
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'duplicate', 'not before the expiry')
  await expireAll(sql)
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'expired')
  t.is(await claim(sql, `'s', 'never seen', '2024-01-10 11:59Z'`), 'expired')
  t.is(await claim(sql, `'s', 'older', '2020-01-01'`), 'expired')
  t.is(await claim(sql, `'s', 'b', '2024-01-10 13:00Z'`), 'duplicate')
  t.is(await claim(sql, `'s', 'new', '2024-01-10 13:00Z'`), 'claimed')
  t.is(await claim(sql, `'keeps', 'c', '2020-01-01'`), 'claimed', 'other scopes have horizons of their own')
  t.deepEqual(
    await claimBatch(sql, `'s', '{a,b,d,e}', '{2024-01-10 11:00Z,2024-01-10 13:00Z,2024-02-01Z,NULL}'`),
    [
      ['a', 'expired', null],
      ['b', 'duplicate', null],
      ['d', 'claimed', null],
      ['e', 'claimed', null],
    ],
  )

  const before = await oneValue(sql, `select horizon from once.scope where scope = 's'`)
  for (const retention of [`'100 years'`, 'null']) {
    await sql.unsafe(`select once.set_retention('s', ${retention})`)
    await expireAll(sql)
    t.deepEqual(await oneValue(sql, `select horizon from once.scope where scope = 's'`), before)
  }
  t.is(await claim(sql, `'s', 'a', '2024-01-10 11:00Z'`), 'expired')
})

test('Two expiries at once never move a horizon back', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.set_retention('s', '1 day')`
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  await a.rows('select now()')
  await until('the clock moves', () => oneValue(sql, `select clock_timestamp() > now()`))
  await b.sql`begin`
  await b.rows('select once.expire()')
  const late = await b.value(`select horizon from once.scope`)
  t.deepEqual(await a.rows('select action, detail, more from once.expire()'), [
    ['busy', 'another expiry is at work', false],
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
  for (const bad of ['0', '-1', '1000001', 'null'])
    await refused(t, rowsOf(sql, `select * from once.expire(${bad})`), 'ONARG', 'bad batch_size')
})

test('Expiry creates the partitions of the next days, so that claims need not', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(await rowsOf(sql, 'select * from once.expire()'), [], 'nothing where no key was ever claimed')
  await claim(sql, `'s', 'a'`)
  t.deepEqual(
    await rowsOf(sql, 'select action, count, more from once.expire()'),
    [0, 1, 2].map(() => ['create', '1', false]),
  )
  const days = [0, 1, 2].map((n) =>
    new Date(Date.now() + n * 86_400_000).toISOString().slice(0, 10).replaceAll('-', ''),
  )
  t.deepEqual(await partitions(sql), days)
  t.deepEqual(await rowsOf(sql, 'select * from once.expire()'), [])
})

test('A partition is dropped once it is past the horizon of every scope, ten a step', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`
    select count(once.ensure_partition(d::date)) from generate_series('2024-01-01'::date, '2024-01-25', '1 day') d`
  await claim(sql, `'a', 'k', '2024-01-20 09:00Z'`)
  await claim(sql, `'b', 'k', '2024-01-20 09:00Z'`)
  await sql.unsafe(`select once.set_retention('a', ${retentionSince('2024-01-24')})`)
  await expireAll(sql)
  t.is((await partitions(sql)).length, 28, 'scope b keeps for ever')
  await sql.unsafe(`select once.set_retention('b', ${retentionSince('2024-01-23')})`)
  const step = await rowsOf(sql, `select action, more from once.expire() where action = 'drop'`)
  t.deepEqual(
    step,
    Array.from({ length: 10 }, () => ['drop', true]),
  )
  t.is((await partitions(sql))[0], '20240111')
  t.is(await claim(sql, `'b', 'new', '2024-01-10'`), 'expired')
  t.is(await claim(sql, `'c', 'new', '2024-01-10'`), 'expired', 'a new scope starts at the floor')
  t.is(await claim(sql, `'c', 'new', '2024-01-11'`), 'claimed', 'what is still there can be used')
  await expireAll(sql)
  t.is((await partitions(sql))[0], '20240111', 'and keeps the rest from then on')
  await sql.unsafe(`select once.set_retention('c', ${retentionSince('2024-01-23')})`)
  await expireAll(sql)
  t.deepEqual((await partitions(sql)).slice(0, 3), ['20240123', '20240124', '20240125'])
  t.is(await oneValue(sql, 'select day::text from once.message_floor'), '2024-01-23')
  t.false(await oneValue(sql, `select once.ensure_partition('2024-01-22')`))
  t.true(await oneValue(sql, `select once.ensure_partition('2024-01-23')`))
})

test('Timeless keys past the retention are deleted in batches, a bounded stretch of the table a call', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.claim_key_batch('short', array(select g::text from generate_series(1, 2500) g))`
  await sql`select once.claim_key_batch('ever', array(select g::text from generate_series(1, 500) g))`
  await sql`update once.message_timeless set claimed_on = claimed_on - 10`
  await sql`select once.claim_key_batch('short', array(select g::text from generate_series(3001, 3100) g))`
  await sql`select once.set_retention('short', '9 days')`
  const deletes = (await expireAll(sql, 1000)).filter(([action]) => action === 'delete')
  t.deepEqual(
    deletes.map(([, scope, , count, more]) => [scope, count, more]),
    [
      ['short', '1000', false],
      [null, '0', true],
      ['short', '1000', false],
      [null, '0', true],
      ['short', '500', false],
    ],
  )
  const left = `select scope, count(*)::int from once.message_timeless join once.scope using (scope_id) group by 1 order by 1`
  t.deepEqual(await rowsOf(sql, left), [
    ['ever', 500],
    ['short', 100],
  ])
  t.is(await claim(sql, `'short', '3001'`), 'duplicate')
  t.is(await claim(sql, `'short', '1'`), 'claimed', 'a key without time is gone with its row')

  await sql`update once.message_timeless set claimed_on = claimed_on - 10`
  t.false(
    (await expireAll(sql)).some(([action]) => action === 'delete'),
    'one pass a day is enough',
  )
  await sql`select once.set_retention('short', '8 days')`
  t.true(
    (await expireAll(sql)).some(([action]) => action === 'delete'),
    'another retention starts another pass',
  )
})

test('A pass over many timeless keys goes on where the last call stopped, also over what it keeps', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_retention('short', '1 day')`
  await sql`select once.set_retention('long', '30 days')`
  await sql`
    insert into once.message (digest, scope_id, claimed_on)
    select gen_random_uuid(), s.scope_id, current_date - 9 from once.scope s, generate_series(1, 85000)
     order by s.scope = 'short'`
  const steps = (await expireAll(sql, 1_000_000)).filter(([action]) => action === 'delete')
  t.deepEqual(
    steps.map(([, scope, , count, more]) => [scope, count, more]),
    [
      ['short', (steps[0]?.[3] ?? '') as string, false],
      [null, '0', true],
      ['short', (steps[2]?.[3] ?? '') as string, false],
    ],
  )
  t.deepEqual(await rowsOf(sql, 'select count(*)::int from once.message_timeless'), [[85_000]])
})

test('Expiry passes over timeless keys that somebody has locked', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key_batch('s', array['a', 'b'])`
  await sql`update once.message_timeless set claimed_on = claimed_on - 10`
  await sql`select once.set_retention('s', '1 day')`
  const a = await openSession(t, url)
  await a.sql`begin`
  await a.rows(`select once.keep_result('s', 'a', '1')`)
  await expireAll(sql)
  await a.sql`commit`
  t.is(await claim(sql, `'s', 'a'`), 'duplicate')
  t.is(await claim(sql, `'s', 'b'`), 'claimed')
})

test('Expiry waits for no claim: a partition in use is left to the next one, and nothing is lost', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-01'`)
  await sql.unsafe(`select once.set_retention('s', ${retentionSince('2024-01-05')})`)
  const a = await openSession(t, url)
  await a.sql`begin`
  t.is(await claim(a.sql, `'s', 'b', '2024-01-01'`), 'claimed')
  const rows = await rowsOf(sql, 'select action, detail, more from once.expire()')
  t.deepEqual(rows.at(-1), ['busy', 'partitions are in use, left to the next call', false])
  t.is(await oneValue(sql, `show lock_timeout`), '0')
  await a.sql`commit`
  t.is(await claim(sql, `'s', 'b', '2024-01-01'`), 'expired', 'the horizon has moved all the same')
  await expireAll(sql)
  t.is(await oneValue(sql, `select count(*)::int from once.message`), 0)
})

test('Expiry sets the caller’s lock_timeout back, whether it got its locks or not', async (t) => {
  const { url } = await testDatabase(t)
  const a = await openSession(t, url)
  await a.rows(`set lock_timeout = '1234ms'`)
  await a.sql`begin`
  await a.rows('select once.expire()')
  t.is(await a.value('show lock_timeout'), '1234ms')
  await a.sql`commit`
})

for (const [isolation, answers] of [
  ['read committed', ['expired', 'expired']],
  ['repeatable read', ['40001', 'duplicate']],
] as const) {
  test(`A claim in a ${isolation} transaction that began before the expiry never reprocesses`, async (t) => {
    const { sql, url } = await testDatabase(t)
    const times = ['2024-01-10 09:00Z', '2024-01-12 09:00Z']
    for (const time of times) await claim(sql, `'s', 'a', '${time}'`)
    await sql.unsafe(`select once.set_retention('s', ${retentionSince('2024-01-12')})`)
    const a = await openSession(t, url)
    await a.rows(`begin isolation level ${isolation}`)
    t.is(await a.value('select horizon from once.scope'), null)
    await expireAll(sql)
    t.is((await partitions(sql))[0], '20240112', 'the first was dropped, the second only expired')
    for (const form of [`claim_key('s', 'a', '$')`, `claim_key_batch('s', '{a}', '{$}')`]) {
      for (const [i, time] of times.entries()) {
        await a.sql`savepoint s`
        const answer = a.value(`select status from once.${form.replace('$', time)}`)
        t.is(await answer.catch((error) => error.code), answers[i])
        await a.sql`rollback to s`
      }
    }
    await a.sql`rollback`
  })
}

// The lock of an expiry that has dropped but not committed holds a claim between its horizon and its insert.
for (const form of ['claim_key', 'claim_key_batch'] as const) {
  test(`A claim (${form}) that a drop overtakes between horizon and insert is answered expired`, async (t) => {
    const { sql, url } = await testDatabase(t)
    await claim(sql, `'s', 'a', '2024-01-10 09:00Z'`)
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    const statement =
      form === 'claim_key'
        ? `select status from once.claim_key('s', 'a', '2024-01-10 09:00Z')`
        : `select status from once.claim_key_batch('s', '{a}', '{2024-01-10 09:00Z}')`
    t.is(await a.value(statement), 'duplicate')
    await b.sql`begin`
    await b.rows(`select once.set_retention('s', ${retentionSince('2024-01-20')})`)
    const rows = await b.rows(`select action, detail from once.expire()`)
    t.true(rows.some(([action, detail]) => action === 'drop' && detail === 'partition of 2024-01-10'))
    const answer = a.value(statement)
    await untilBlocked(sql, a)
    await b.sql`commit`
    t.is(await answer, 'expired')
  })

  test(`A claim (${form}) that a drop overtakes and that rolls back goes on`, async (t) => {
    const { sql, url } = await testDatabase(t)
    await claim(sql, `'s', 'a', '2024-01-10 09:00Z'`)
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await b.sql`begin`
    await b.rows(`select once.set_retention('s', ${retentionSince('2024-01-20')})`)
    await b.rows(`select once.expire()`)
    const answers = Promise.all(
      ['a', 'b'].map((key) =>
        form === 'claim_key'
          ? claim(a.sql, `'s', '${key}', '2024-01-10 09:00Z'`)
          : claimBatch(a.sql, `'s', '{${key}}', '{2024-01-10 09:00Z}'`).then(([row]) => row?.[1]),
      ),
    )
    await untilBlocked(sql, a)
    await b.sql`rollback`
    t.deepEqual(await answers, ['duplicate', 'claimed'])
  })
}

test('A scope that is created while an expiry decides what to drop keeps what it claimed', async (t) => {
  const { sql, url } = await testDatabase(t)
  await claim(sql, `'s', 'a', '2024-01-10'`)
  await sql.unsafe(`select once.set_retention('s', ${retentionSince('2024-01-20')})`)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  t.is(await claim(a.sql, `'new', 'a', '2024-01-10'`), 'claimed')
  // Expiry cannot see the new scope yet, finds the partition doomed and waits for the claim to end.
  const expiry = b.rows(`select action from once.expire() where action in ('drop', 'busy')`)
  await until('the expiry waits', async () => {
    if (!(await isPending(expiry))) return true
    return oneValue(
      sql,
      `select exists (select from pg_locks where pid = ${b.pid} and not granted and mode = 'AccessExclusiveLock')`,
    )
  })
  await a.sql`commit`
  await expiry
  await expireAll(sql)
  t.is(await claim(sql, `'new', 'a', '2024-01-10'`), 'duplicate')
})

test('A key that an expiry is deleting is claimed anew only once the expiry has committed', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('s', 'a')`
  await sql`update once.message_timeless set claimed_on = claimed_on - 10`
  await sql`select once.set_retention('s', '1 day')`
  for (const [end, answer] of [
    ['rollback', 'duplicate'],
    ['commit', 'claimed'],
  ]) {
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await a.sql`begin`
    await a.rows('select once.expire()')
    const second = claim(b.sql, `'s', 'a'`)
    await untilBlocked(sql, b)
    await a.rows(`${end}`)
    t.is(await second, answer)
  }
})

test('More days than the ledger can have as partitions is a clear error, and known days go on', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('s', 'a', '2024-01-01')`
  // 4001 partitions take a while; so many rows in the catalog are enough for the count.
  const a = await openSession(t, url)
  await a.sql`begin`
  await a.sql`set local allow_system_table_mods = on`
  await a.sql`
    insert into pg_inherits (inhrelid, inhparent, inhseqno, inhdetachpending)
    select g, 'once.message'::regclass, 1, false from generate_series(100000001, 100004000) g`
  const refusal = a.value(`select once.ensure_partition('2024-02-02')`)
  await refused(t, refusal, 'ONMAX', 'limit is 4000', 'set_retention', 'once.expire()')
  await a.sql`rollback`
  t.is(await claim(sql, `'s', 'b', '2024-01-01'`), 'claimed')
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
          // Other scopes keep the partitions; that drops are safe is tested above.
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
            await expirer.unsafe(`update once.scope set retention = ${retentionSince(date(day))}`)
            await rowsOf(expirer, 'select * from once.expire()')
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
  t.log(`${expired} answered expired`)
})
