import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import type postgres from 'postgres'
import { connect, randomName, testDatabase, testRole } from '../support/database.ts'
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

const statementIn = (hint: string) => /select .*'reason'\)/.exec(hint)?.[0] ?? 'no statement in the hint'

const claim = async (sql: postgres.Sql, call: string) => oneValue(sql, `select once.claim(${call})`)
const claimBatch = async (sql: postgres.Sql, call: string) =>
  (await rowsOf(sql, `select * from once.claim_batch(${call})`)).map(([value]) => String(value))
const producer = async (sql: postgres.Sql, name: string) =>
  (
    await rowsOf(
      sql,
      `select p.epoch, p.watermark, (select coalesce(range_agg(int8range(a.first, a.last, '[]')), '{}')::text
                                       from once.claimed_ahead a where a.producer = p.producer)
         from once.producer p where p.producer = '${name}'`,
    )
  )[0]

test('A message is claimed once, and every later claim of it is answered duplicate', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(
    [await claim(sql, `'shop', 0`), await claim(sql, `'shop', 0`), await claim(sql, `'shop', 1`)],
    ['claimed', 'duplicate', 'claimed'],
  )
  t.is(await claim(sql, `'other shop', 0`), 'claimed', 'producers do not share sequences')
})

test('Messages may come in any order, and what is below the watermark or ahead of it is a duplicate', async (t) => {
  const { sql } = await testDatabase(t)
  for (const sequence of [5, 3, 0]) t.is(await claim(sql, `'p', ${sequence}`), 'claimed')
  t.deepEqual(await producer(sql, 'p'), [0, '0', '{[3,4),[5,6)}'])
  for (const sequence of [5, 3, 0]) t.is(await claim(sql, `'p', ${sequence}`), 'duplicate')
  for (const sequence of [4, 1, 2]) t.is(await claim(sql, `'p', ${sequence}`), 'claimed')
  t.deepEqual(await producer(sql, 'p'), [0, '5', '{}'])
})

test('A batch gives back the new sequences, ascending and once each, however often it repeats them', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(await claimBatch(sql, `'p', array[2, 0, 2, 7, 0]`), ['0', '2', '7'])
  t.deepEqual(await claimBatch(sql, `'p', array[7, 1, 2, 3]`), ['1', '3'])
  t.deepEqual(await claimBatch(sql, `'p', array[4, 5, 6]`), ['4', '5', '6'])
  t.deepEqual(await claimBatch(sql, `'p', array[8, 9, 10]`), ['8', '9', '10'], 'the fast path')
  t.deepEqual(await claimBatch(sql, `'p', array[8, 9, 10]`), [])
  t.deepEqual(await producer(sql, 'p'), [0, '10', '{}'])
})

test('An empty batch claims nothing and leaves no producer behind', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(await claimBatch(sql, `'p', '{}'`), [])
  t.is(await producer(sql, 'p'), undefined)
})

test('Sequences reach from 0 to 2^63-2; anything else is refused with what was expected', async (t) => {
  const { sql } = await testDatabase(t)
  const last = '9223372036854775806'
  t.is(await claim(sql, `'p', ${last}`), 'claimed')
  t.is(await claim(sql, `'p', ${last}`), 'duplicate')
  t.deepEqual(await claimBatch(sql, `'q', array[0, ${last}]`), ['0', last])
  t.deepEqual(await claimBatch(sql, `'q', array[1, ${last}]`), ['1'])
  await sql`select once.set_watermark('q', 9223372036854775806, 'the end')`
  t.deepEqual(await claimBatch(sql, `'q', array[2, ${last}]`), [])
  t.is(await claim(sql, `'q', 3`), 'duplicate')
  for (const bad of ['-1', '(-9223372036854775808)', '9223372036854775807']) {
    await refused(t, claim(sql, `'p', ${bad}`), 'ONARG', 'bad sequence', '0 to 9223372036854775806')
    await refused(t, claimBatch(sql, `'p', array[0, ${bad}]`), 'ONARG', 'bad sequence')
    await refused(t, claimBatch(sql, `'p', array[${bad}, ${bad}]`), 'ONARG', 'bad sequence')
    await refused(t, oneValue(sql, `select once.set_watermark('p', ${bad}, 'why')`), 'ONARG', 'bad sequence')
  }
})

test('A null argument is refused, never taken for something else', async (t) => {
  const { sql } = await testDatabase(t)
  await refused(t, claim(sql, `null, 1`), 'ONARG', 'bad producer')
  await refused(t, claim(sql, `'p', null`), 'ONARG', 'sequence')
  await refused(t, claim(sql, `'p', 1, null`), 'ONARG', 'epoch')
  await refused(t, claim(sql, `'p', 1, 0, null`), 'ONARG', 'strict')
  await refused(t, claimBatch(sql, `'p', null`), 'ONARG', 'sequences')
  await refused(t, claimBatch(sql, `'p', array[1, null]`), 'ONARG', 'null')
  await refused(t, claim(sql, `'p', 1, -1`), 'ONARG', 'bad epoch')
  t.is(await producer(sql, 'p'), undefined)
})

test('A producer may have any name of 1 to 200 characters, and no other', async (t) => {
  const { sql } = await testDatabase(t)
  const names = [
    `o'neill "&" \\ $$; drop schema once; --`,
    '😀'.repeat(200),
    ' ',
    '\n',
    '\u00e9',
    'e\u0301',
    'x'.repeat(200),
  ]
  for (const name of names) {
    const [first] = await sql`select once.claim(${name}, 3)`
    const [second] = await sql`select once.claim(${name}, 3)`
    t.deepEqual([first?.claim, second?.claim], ['claimed', 'duplicate'])
    await refused(t, sql`select once.claim(${name}, 9, 0, true)`, 'ONGAP')
  }
  t.is(await oneValue(sql, 'select count(*)::int from once.producer'), names.length)
  for (const name of ['', '😀'.repeat(201), 'x'.repeat(10_000)]) {
    const { detail, message } = await refused(t, sql`select once.claim(${name}, 3)`, 'ONARG', 'bad producer')
    t.true(detail.includes(`got ${[...name].length}`))
    t.true(message.length < 200, 'a long name is not repeated in full')
  }
})

test('100,000 sequences are claimed in one batch, in order or shuffled', async (t) => {
  const { sql } = await testDatabase(t)
  const count = async (name: string, order: string) =>
    oneValue(
      sql,
      `select count(*)::int from once.claim_batch('${name}', array(
         select g::bigint from generate_series(0, 99999) g order by ${order}))`,
    )
  t.is(await count('ordered', 'g'), 100_000)
  t.is(await count('ordered', 'g'), 0)
  t.is(await count('shuffled', 'md5(g::text)'), 100_000)
  t.is(await count('shuffled', 'md5(g::text)'), 0)
  t.deepEqual(await producer(sql, 'shuffled'), [0, '99999', '{}'])
})

test('A batch that only looks contiguous from its ends is not taken for one', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(await claimBatch(sql, `'p', array[0, 2, 2]`), ['0', '2'])
  t.deepEqual(await claimBatch(sql, `'q', array[0, 2, 1, 3]`), ['0', '1', '2', '3'])
  t.deepEqual(await claimBatch(sql, `'r', '[0:2]={0,1,2}'::bigint[]`), ['0', '1', '2'])
  t.deepEqual(await claimBatch(sql, `'s', array[[0, 1], [2, 4]]`), ['0', '1', '2', '4'])
  t.deepEqual(await producer(sql, 's'), [0, '2', '{[4,5)}'])
})

test('Ranges are claimed as a whole or in part, and answered as they stand, without repetition', async (t) => {
  const { sql } = await testDatabase(t)
  const ranges = (call: string) => oneValue(sql, `select once.claim_ranges(${call})::text`)
  t.is(await ranges(`'p', '{[0,4]}', 1`), '{[0,5)}')
  t.is(await ranges(`'p', '{[5,5]}', 1`), '{[5,6)}')
  t.is(await ranges(`'p', '{[0,5]}', 1`), '{}')
  t.is(await ranges(`'p', '{[4,9]}', 1`), '{[6,10)}', 'begins with a duplicate')
  t.is(await ranges(`'p', '{[14,14],[12,12],[11,11],[12,12]}', 1`), '{[11,13),[14,15)}', 'in any order')
  t.is(await ranges(`'p', '{[0,3],[11,14]}', 1`), '{[13,14)}')
  t.is(await ranges(`'p', '{[0,3],[11,14]}', 1`), '{}')
  t.is(await ranges(`'p', '{}', 1`), '{}')
  t.is(await ranges(`'p', '{[10,20]}', 2`), '{[10,11),[15,21)}', 'a newer epoch')
  t.deepEqual(await producer(sql, 'p'), [2, '20', '{}'])
  await refused(t, ranges(`'p', '{[21,22]}', 1`), 'ONFEN')
  const bad = [`{[-1,9]}`, `{[-9223372036854775808,9]}`, `{[5,)}`, `{(,5]}`, `{(,)}`]
  for (const one of bad) await refused(t, ranges(`'p', '${one}', 2`), 'ONARG', 'bad sequence')
  await refused(t, ranges(`'p', null, 2`), 'ONARG', 'null is not allowed')
  await refused(t, ranges(`'p', '{[21,22]}', null`), 'ONARG', 'null is not allowed')
  await refused(t, ranges(`null, '{[21,22]}'`), 'ONARG', 'bad producer')
  t.is(await ranges(`'q', '{[0,9223372036854775806]}'`), '{[0,9223372036854775807)}')
  t.is(await claim(sql, `'q', 9223372036854775806`), 'duplicate')
})

test('A ledger of an ordered stream stays one row of constant size', async (t) => {
  const { sql } = await testDatabase(t)
  for (let i = 0; i < 20; i++)
    await rowsOf(
      sql,
      `select once.claim_batch('p', array(select generate_series(${i * 5000}::bigint, ${i * 5000 + 4999})))`,
    )
  t.deepEqual(await producer(sql, 'p'), [0, '99999', '{}'])
  t.true(((await oneValue(sql, `select pg_column_size(p) from once.producer p`)) as number) < 100)
})

test('A newer epoch takes the stream on where it was, and fences every older one', async (t) => {
  const { sql } = await testDatabase(t)
  await claim(sql, `'p', 0, 1`)
  t.is(await claim(sql, `'p', 0, 2`), 'duplicate', 'the new incarnation does not repeat what the old one did')
  t.deepEqual(await producer(sql, 'p'), [2, '0', '{}'])
  await refused(t, claim(sql, `'p', 1, 1`), 'ONFEN', `'p'`, 'epoch 1 is older than 2')
  await refused(t, claim(sql, `'p', 1`), 'ONFEN', 'epoch 0 is older than 2')
  await refused(t, claimBatch(sql, `'p', array[1, 2], 1`), 'ONFEN')
  await refused(t, claim(sql, `'p', 0, 1`), 'ONFEN', 'older')
  t.is(await claim(sql, `'p', 1, 2`), 'claimed')
  t.deepEqual(await claimBatch(sql, `'p', array[2, 3], 2147483647`), ['2', '3'])
})

test('Strict mode refuses a gap and claims nothing of the batch, but takes what closes one', async (t) => {
  const { sql } = await testDatabase(t)
  await refused(
    t,
    claim(sql, `'p', 1, 0, true`),
    'ONGAP',
    'expected sequence 0, got 1',
    `set_watermark('p', 0,`,
  )
  t.is(await claim(sql, `'p', 0, 0, true`), 'claimed')
  t.is(await claim(sql, `'p', 0, 0, true`), 'duplicate')
  await refused(
    t,
    claimBatch(sql, `'p', array[1, 2, 5, 6], 0, true`),
    'ONGAP',
    'expected sequence 3, got 5',
    `, 4,`,
  )
  await refused(t, claimBatch(sql, `'p', array[7, 5], 0, true`), 'ONGAP', 'expected sequence 1, got 5')
  t.deepEqual(await producer(sql, 'p'), [0, '0', '{}'])

  t.is(await claim(sql, `'p', 3`), 'claimed', 'ahead, without strict')
  t.deepEqual(await claimBatch(sql, `'p', array[1, 2, 3, 4], 0, true`), ['1', '2', '4'])
  t.deepEqual(await producer(sql, 'p'), [0, '4', '{}'])

  await claim(sql, `'p', 8`)
  t.is(await claim(sql, `'p', 8, 0, true`), 'duplicate', 'a duplicate is no gap')
  await refused(t, claimBatch(sql, `'p', array[5, 9], 0, true`), 'ONGAP', 'expected sequence 6, got 9')
})

test('The hint of a strict refusal works as it stands', async (t) => {
  const { sql } = await testDatabase(t)
  const { hint } = await refused(t, claimBatch(sql, `'it''s', array[0, 4, 5], 0, true`), 'ONGAP')
  await sql.unsafe(statementIn(hint))
  t.deepEqual(await claimBatch(sql, `'it''s', array[0, 4, 5], 0, true`), ['4', '5'])
})

test('Gaps are bounded, and one that closes is welcome even beyond the limit', async (t) => {
  const { sql } = await testDatabase(t)
  const odd = (n: number) => `array(select 2 * g::bigint from generate_series(1, ${n}) g)`
  t.is((await claimBatch(sql, `'p', ${odd(1000)}`)).length, 1000)
  const { hint } = await refused(
    t,
    claim(sql, `'p', 9999`),
    'ONMAX',
    `'p' would have 1001 gaps, the limit is 1000`,
    'Sequence 0 is not processed',
  )
  t.is(await claim(sql, `'p', 2000`), 'duplicate', 'a duplicate needs no room')
  t.is(await claim(sql, `'p', 2001`), 'claimed', 'what touches a range neither')
  t.is(await claim(sql, `'p', 501`), 'claimed', 'and what joins two')
  t.is(await claim(sql, `'p', 9999`), 'claimed', 'which made room for one')
  await sql`update once.producer set max_gaps = 10`
  t.is(await claim(sql, `'p', 503`), 'claimed', 'it gets better')
  t.is(await claim(sql, `'p', 10000`), 'claimed', 'it gets no worse')
  await refused(t, claim(sql, `'p', 99999`), 'ONMAX')
  await sql.unsafe(statementIn(hint))
  t.deepEqual((await producer(sql, 'p'))?.slice(0, 2), [0, '1002'], 'the hint gives the older half up')
  t.is(await oneValue(sql, 'select gaps::int from once.producers'), 500)
})

test('The hint of a first batch with too many gaps gives the older half of its gaps up', async (t) => {
  const { sql } = await testDatabase(t)
  const call = `'p', array(select 2 * g::bigint from generate_series(3, 1003) g)`
  const { hint } = await refused(
    t,
    claimBatch(sql, call),
    'ONMAX',
    `once.set_watermark('p', 1005, 'reason')`,
    'Sequence 0 is not processed',
    'key ledger',
    'start_at => 1',
  )
  t.is(await producer(sql, 'p'), undefined)
  await sql.unsafe(statementIn(hint))
  t.is((await claimBatch(sql, call)).length, 501)
})

test('An operator can close gaps and start in the middle, but never move a watermark back', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`select once.set_watermark('p', 99, 'starts in the middle')`
  t.is(await claim(sql, `'p', 99`), 'duplicate')
  t.is(await claim(sql, `'p', 100, 0, true`), 'claimed')
  await claimBatch(sql, `'p', array[105, 106, 110, 120]`)
  await sql`select once.set_watermark('p', 104, 'joins what is ahead')`
  t.deepEqual(await producer(sql, 'p'), [0, '106', '{[110,111),[120,121)}'])
  await sql`select once.set_watermark('p', 110, 'ends on what is ahead')`
  t.deepEqual(await producer(sql, 'p'), [0, '110', '{[120,121)}'])
  await sql`select once.set_watermark('p', 115, 'stays below what is ahead')`
  t.deepEqual(await producer(sql, 'p'), [0, '115', '{[120,121)}'])
  await refused(
    t,
    sql`select once.set_watermark('p', 115, 'again')`,
    'ONARG',
    'is 115 already',
    'once.producers',
  )
  await refused(t, sql`select once.set_watermark('p', 3, 'back')`, 'ONARG', 'never moves back')
  await refused(t, sql`select once.set_watermark('p', 200, '')`, 'ONARG', 'reason')
  await refused(t, sql`select once.set_watermark('p', 200, null)`, 'ONARG', 'reason')
  await refused(t, sql`select once.set_watermark('', 200, 'x')`, 'ONARG', 'bad producer')
  t.deepEqual(
    await rowsOf(
      sql,
      `select action, subject, reason from once.intervention order by intervention_id limit 1`,
    ),
    [['set_watermark', { producer: 'p', from: -1, to: 99 }, 'starts in the middle']],
  )
})

test('once.producers shows watermark, gaps and the highest claim', async (t) => {
  const { sql } = await testDatabase(t)
  await claimBatch(sql, `'p', array[0, 1, 5, 9], 3`)
  await claimBatch(sql, `'q', array[0, 1]`)
  t.deepEqual(
    await rowsOf(
      sql,
      'select producer, epoch, watermark, gaps, highest, max_gaps from once.producers order by 1',
    ),
    [
      ['p', 3, '1', '2', '9', 1000],
      ['q', 0, '1', '0', '1', 1000],
    ],
  )
})

for (const how of ['one message', 'a batch'] as const) {
  const claimed = how === 'one message' ? [['claimed']] : [['0'], ['1']]
  const duplicate = how === 'one message' ? [['duplicate']] : []
  for (const known of [false, true]) {
    const title = `${how} of ${known ? 'a known' : 'a new'} producer`

    /** Two sessions, and the claim that both of them make. */
    const scene = async (t: ExecutionContext) => {
      const { sql, url } = shared()
      const name = freshName('p')
      if (known) await sql`insert into once.producer (producer) values (${name})`
      const call =
        how === 'one message'
          ? `select once.claim('${name}', 0)`
          : `select once.claim_batch('${name}', array[0, 1])`
      return { sql, call, a: await openSession(t, url), b: await openSession(t, url) }
    }

    test(`Of two claims of ${title} the second waits, and takes over if the first rolls back`, async (t) => {
      const { sql, call, a, b } = await scene(t)
      await a.sql`begin`
      t.deepEqual(await a.rows(call), claimed)
      const second = b.rows(call)
      await untilBlocked(sql, b)
      await a.sql`rollback`
      t.deepEqual(await second, claimed)
    })

    test(`Of two claims of ${title} the second waits, and is the duplicate if the first commits`, async (t) => {
      const { sql, call, a, b } = await scene(t)
      await a.sql`begin`
      t.deepEqual(await a.rows(call), claimed)
      const second = b.rows(call)
      await untilBlocked(sql, b)
      await a.sql`commit`
      t.deepEqual(await second, duplicate)
    })

    test(`A prepared claim of ${title} holds its place until it is finished`, async (t) => {
      for (const finish of ['commit', 'rollback']) {
        const { sql, call, a, b } = await scene(t)
        const gid = randomName('sequence')
        await a.sql`begin`
        t.deepEqual(await a.rows(call), claimed)
        await a.rows(`prepare transaction '${gid}'`)
        const second = b.rows(call)
        await untilBlocked(sql, b)
        await sql.unsafe(`${finish} prepared '${gid}'`)
        t.deepEqual(await second, finish === 'commit' ? duplicate : claimed)
      }
    })

    for (const isolation of ['repeatable read', 'serializable']) {
      test(`Of two claims of ${title} under ${isolation} the second fails with 40001, never claims`, async (t) => {
        const { sql, call, a, b } = await scene(t)
        await b.rows(`set default_transaction_isolation = '${isolation}'`)
        await a.sql`begin`
        await a.rows(call)
        const second = b.rows(call)
        await untilBlocked(sql, b)
        await a.sql`commit`
        await refused(t, second, '40001')
        t.deepEqual(await b.rows(call), duplicate, 'and answers when it is tried again')
      })

      test(`A claim of ${title} under ${isolation} with an older snapshot fails with 40001`, async (t) => {
        const { call, a, b } = await scene(t)
        await b.rows(`begin isolation level ${isolation}`)
        await b.rows('select count(*) from once.producer')
        t.deepEqual(await a.rows(call), claimed)
        await refused(t, b.rows(call), '40001')
      })
    }
  }
}

test('A claim that is rolled back to a savepoint is undone, and can be made again', async (t) => {
  const { url } = await testDatabase(t)
  const a = await openSession(t, url)
  await a.sql`begin`
  await a.sql`savepoint s`
  t.is(await a.value(`select once.claim('p', 0)`), 'claimed')
  await a.sql`rollback to s`
  t.is(await a.value(`select once.claim('p', 0)`), 'claimed')
  await a.sql`commit`
  t.is(await a.value(`select once.claim('p', 0)`), 'duplicate')
})

test('A claiming transaction waits for its flush although the default is synchronous_commit = off', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  await database.sql.unsafe(`alter role ${role} in database ${database.name} set synchronous_commit = off`)
  const a = await openSession(t, database.urlAs(role))
  const calls = [
    `once.claim('p', 0)`,
    `once.claim('p', 0)`,
    `once.claim('p', 1)`,
    `once.claim_batch('p', array[2, 3])`,
    `once.claim_batch('p', array[7, 9])`,
    `once.claim_ranges('p', '{[4,5]}')`,
    `once.claim_ranges('p', '{[4,5]}')`,
    `once.claim('p', 7)`,
  ]
  for (const call of calls) {
    t.is(await a.value('show synchronous_commit'), 'off')
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
  await a.sql`begin`
  await a.rows(`set local synchronous_commit = 'local'`)
  await a.rows(`select once.claim('p', 10)`)
  t.is(
    await a.value('show synchronous_commit'),
    'local',
    'a flush is a flush: other levels are the caller’s choice',
  )
  await a.sql`commit`
})

/** What the ledger promises, in a few lines: a set of processed sequences and an epoch. */
interface Model {
  readonly done: Set<number>
  epoch: number
}

type Answer = { readonly code: string } | { readonly fresh: readonly number[] }

function claimInModel(
  model: Model,
  sequences: readonly number[],
  epoch: number,
  strict: boolean,
  maxGaps: number,
): Answer {
  if (sequences.length === 0) return { fresh: [] }
  if (epoch < model.epoch) return { code: 'ONFEN' }
  const fresh = [...new Set(sequences)].filter((one) => !model.done.has(one)).sort((x, y) => x - y)
  const done = new Set([...model.done, ...fresh])
  const watermark = watermarkOf(done)
  if (strict && fresh.some((one) => one > watermark)) return { code: 'ONGAP' }
  if (rangesAhead(done) > maxGaps && rangesAhead(done) > rangesAhead(model.done)) return { code: 'ONMAX' }
  for (const one of fresh) model.done.add(one)
  model.epoch = epoch
  return { fresh }
}

function watermarkOf(done: ReadonlySet<number>): number {
  let watermark = -1
  while (done.has(watermark + 1)) watermark++
  return watermark
}

const rangesAhead = (done: ReadonlySet<number>) =>
  [...done].filter((one) => one > watermarkOf(done) && !done.has(one - 1)).length

const step = fc.record({
  sequences: fc.oneof(
    fc.array(fc.nat(30), { maxLength: 12 }),
    fc.tuple(fc.nat(25), fc.nat(6)).map(([from, n]) => Array.from({ length: n + 1 }, (_, i) => from + i)),
  ),
  single: fc.boolean(),
  epoch: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(2) }),
  strict: fc.oneof({ weight: 3, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
})

test('Any claims one after the other are answered as a plain set would answer them', async (t) => {
  const { sql } = await testDatabase(t)
  let run = 0
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 15 }), fc.nat(4), async (steps, maxGaps) => {
      const name = `p${run++}`
      const model: Model = { done: new Set(), epoch: 0 }
      await sql`insert into once.producer (producer, max_gaps) values (${name}, ${maxGaps})`
      for (const { sequences, single, epoch, strict } of steps) {
        const given = single ? sequences.slice(0, 1) : sequences
        const expected = claimInModel(model, given, epoch, strict, maxGaps)
        const actual: Answer = await ask(sql, name, given, epoch, strict, single)
        t.deepEqual(actual, expected)
      }
      const [row] = await sql`select epoch, watermark::int from once.producer where producer = ${name}`
      t.deepEqual(row, { epoch: model.epoch, watermark: watermarkOf(model.done) })
    }),
    { numRuns: 120 },
  )
})

async function ask(
  sql: postgres.Sql,
  name: string,
  sequences: readonly number[],
  epoch: number,
  strict: boolean,
  single: boolean,
): Promise<Answer> {
  try {
    const [first] = sequences
    if (single && first !== undefined) {
      const [row] = await sql`select once.claim(${name}, ${first}, ${epoch}, ${strict}) as status`
      return { fresh: row?.status === 'claimed' ? [first] : [] }
    }
    const rows = await sql<{ sequence: number }[]>`
      select s::int as sequence
        from once.claim_batch(${name}, ${sequences.map(String)}::bigint[], ${epoch}, ${strict}) s`
    return { fresh: rows.map((row) => row.sequence) }
  } catch (error) {
    return { code: String((error as { code?: unknown }).code) }
  }
}

test('Concurrent workers that deliver shuffled and repeated messages, and often roll back, process each once', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`create table effect (producer text, sequence bigint)`
  const workers = Array.from({ length: 4 }, () => connect(t, url))
  let run = 0
  const delivery = fc.record({
    sequences: fc.array(fc.nat(15), { minLength: 1, maxLength: 6 }),
    fails: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(delivery, { maxLength: 6 }), { minLength: 4, maxLength: 4 }),
      async (plans) => {
        const name = `p${run++}`
        const work = async (worker: postgres.Sql, plan: (typeof plans)[number]) => {
          for (const { sequences, fails } of plan) {
            const attempt = worker.begin(async (trx) => {
              await trx`
                insert into effect
                select ${name}, s from once.claim_batch(${name}, ${sequences.map(String)}::bigint[]) s`
              if (fails) throw new Error('the handler fails')
            })
            await (fails ? attempt.catch(() => {}) : attempt)
          }
        }
        await Promise.all(workers.map((worker, i) => work(worker, plans[i] ?? [])))
        const expected = [
          ...new Set(
            plans.flatMap((plan) => plan.flatMap(({ sequences, fails }) => (fails ? [] : sequences))),
          ),
        ].sort((x, y) => x - y)
        const rows = await sql<{ sequence: number }[]>`
          select sequence::int from effect where producer = ${name} order by sequence`
        t.deepEqual(
          rows.map((row) => row.sequence),
          expected,
        )
      },
    ),
    { numRuns: 25 },
  )
})
