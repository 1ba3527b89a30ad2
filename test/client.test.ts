import { randomUUID } from 'node:crypto'
import { inspect } from 'node:util'
import test from 'ava'
import { CamelCasePlugin, type Generated, type Kysely, sql } from 'kysely'
import postgres from 'postgres'
import { checkUrl, describeTarget } from '../src/database/open.ts'
import {
  AbortedError,
  DatabaseError,
  FencedError,
  HandlerError,
  InvalidInputError,
  LimitError,
  OffsetError,
  PayloadMismatchError,
  pgonce,
  SequenceGapError,
} from '../src/index.ts'
import {
  client,
  type Effects,
  effectsDatabase,
  fileContext,
  kyselyOnPg,
  type Shop,
  shop,
} from './support/client.ts'
import { connect, emptyDatabase, makeStandby, ownServer, testDatabase, testRole } from './support/database.ts'
import { askForPasswords, hostedDatabase } from './support/hosted.ts'
import { makeOrphan } from './support/orphan.ts'

const file = fileContext(test.after.always)
let shared: Shop
test.before(async () => {
  shared = await shop(file)
})

let last = 0
/** An id that no other test of this file uses. */
const fresh = () => ++last

test('A message takes effect once, however often it is delivered', async (t) => {
  const { once, a } = shared
  const id = fresh()
  const message = { producer: randomUUID(), sequence: 41n }
  const deliver = () =>
    once.process('a', message, async (trx) => {
      await trx.insertInto('effect').values({ id }).execute()
      return 'done'
    })
  t.deepEqual(await deliver(), { status: 'processed', result: 'done', id: null, finished: true })
  t.deepEqual(await deliver(), { status: 'duplicate', result: undefined })
  t.true((await a.effects()).includes(id))
})

test('Of many concurrent deliveries of one message, one runs the handler', async (t) => {
  const { once } = shared
  for (const message of [
    { producer: randomUUID(), sequence: 0 },
    { scope: randomUUID(), key: 'k' },
  ]) {
    let runs = 0
    const answers = await Promise.all(
      Array.from({ length: 12 }, () => once.process('a', message, async () => ++runs)),
    )
    t.is(runs, 1)
    t.is(answers.filter(({ status }) => status === 'processed').length, 1)
    t.is(answers.filter(({ status }) => status === 'duplicate').length, 11)
  }
})

test('A handler that throws undoes the claim, and its error comes out as it is', async (t) => {
  const { once, a } = shared
  const id = fresh()
  const message = { producer: randomUUID(), sequence: 0 }
  const oops = new Error('oops')
  const thrown = await t.throwsAsync(
    once.process('a', message, async (trx) => {
      await trx.insertInto('effect').values({ id }).execute()
      throw oops
    }),
  )
  t.is(thrown, oops)
  t.false((await a.effects()).includes(id))
  t.is((await once.process('a', message, async () => 1)).status, 'processed')
})

test('An SQL error of the handler comes out with its code, and undoes the claim', async (t) => {
  const { once } = shared
  const id = fresh()
  const message = { producer: randomUUID(), sequence: 0 }
  await t.throwsAsync(
    once.process('a', message, async (trx) => {
      await trx.insertInto('effect').values([{ id }, { id }]).execute()
    }),
    { code: '23505' },
  )
  t.is((await once.process('a', message, async () => 1)).status, 'processed')
})

test('Claim and effects in several databases commit together', async (t) => {
  const { once, a, b } = shared
  const id = fresh()
  const message = { producer: randomUUID(), sequence: 0 }
  const deliver = (fail: boolean) =>
    once.process('a', message, async (trx, { b }) => {
      await trx.insertInto('effect').values({ id }).execute()
      await b.insertInto('effect').values({ id }).execute()
      if (fail) throw new Error('no')
    })
  await t.throwsAsync(deliver(true), { message: 'no' })
  t.false((await b.effects()).includes(id))
  const first = await deliver(false)
  t.like(first, { status: 'processed', finished: true })
  t.is((await deliver(false)).status, 'duplicate')
  t.true((await a.effects()).includes(id) && (await b.effects()).includes(id))
})

test('The kept result of the first delivery is returned to duplicates', async (t) => {
  const { once } = shared
  const message = { scope: randomUUID(), key: 'payment-1', keepResult: true }
  const result = { number: 7, text: 'é"\\', list: [1, null], deep: { yes: true } }
  t.like(await once.process('a', message, async () => result), { status: 'processed', result })
  t.deepEqual(await once.process('a', message, async () => ({ ...result, number: 8 })), {
    status: 'duplicate',
    result,
  })
})

test('A result that JSON cannot hold is refused, and the message is new again', async (t) => {
  const { once } = shared
  const message = { scope: randomUUID(), key: 'k', keepResult: true }
  const circular: { self?: unknown } = {}
  circular.self = circular
  for (const result of [() => 1, 1n, circular, 'a\0b', { deep: ['\0'] }]) {
    await t.throwsAsync(
      once.process('a', message, async () => result as unknown),
      { instanceOf: InvalidInputError, code: 'ONARG' },
    )
  }
  t.is((await once.process('a', message, async () => '\\u0000 spelled out')).status, 'processed')
})

test('A duplicate gets the kept result as JSON has it: a Date comes back as a string', async (t) => {
  const { once } = shared
  const message = { scope: randomUUID(), key: 'k', keepResult: true }
  const at = new Date(0)
  const deliver = () => once.process('a', message, async () => ({ at, gone: undefined }))
  const first = await deliver()
  t.is(first.status === 'processed' && first.result.at, at)
  const second = await deliver()
  if (second.status !== 'duplicate' || second.result === undefined) return t.fail()
  t.is(second.result.at.slice(0, 10), '1970-01-01')
  t.deepEqual(second.result, { at: at.toISOString() })
})

test('A query that the handler returns without executing it is refused, and everything is rolled back', async (t) => {
  const { once, a } = shared
  const id = fresh()
  const message = { producer: randomUUID(), sequence: 0 }
  type Trx = Parameters<Parameters<typeof once.transaction>[0]>[0]['a']
  const update = (trx: Trx) => trx.updateTable('effect').set({ note: 'never' })
  const refused = { instanceOf: HandlerError, code: 'NOT_EXECUTED' }
  for (const forget of [
    async (trx: Trx) => update(trx),
    async (trx: Trx) => [1, update(trx)],
    async (trx: Trx) => trx.insertInto('effect').values({ id: -1 }),
    async () => sql`select 1`,
    // As JavaScript may have it: neither async nor executed.
    (trx: Trx) => update(trx),
  ]) {
    const handler = async (trx: Trx) => {
      await trx.insertInto('effect').values({ id }).execute()
      return await forget(trx)
    }
    const error = await t.throwsAsync(once.process('a', message, handler), refused)
    t.regex((error as HandlerError).hint ?? '', /\.execute\(\)/)
    const batch = { producer: message.producer, sequences: [0] }
    await t.throwsAsync(once.processBatch('a', batch, handler), refused)
    await t.throwsAsync(
      once.transaction(({ a }) => handler(a)),
      refused,
    )
  }
  t.false((await a.effects()).includes(id))
  // The message is new again, and rows are no queries.
  const answer = await once.process('a', message, async (trx) => {
    await trx.insertInto('effect').values({ id }).execute()
    return await trx.selectFrom('effect').select('id').where('id', '=', id).execute()
  })
  t.like(answer, { status: 'processed', result: [{ id }] })
})

test('The same key with another payload is an error, with the same payload a duplicate', async (t) => {
  const { once } = shared
  const message = { scope: randomUUID(), key: 'k' }
  await once.process('a', { ...message, payload: 'one' }, async () => 1)
  t.is((await once.process('a', { ...message, payload: 'one' }, async () => 1)).status, 'duplicate')
  t.is(
    (await once.process('a', { ...message, payload: Buffer.from('one') }, async () => 1)).status,
    'duplicate',
  )
  await t.throwsAsync(
    once.process('a', { ...message, payload: 'two' }, async () => 1),
    { instanceOf: PayloadMismatchError, code: 'ONPAY' },
  )
})

test('A message older than the horizon of its scope is answered expired, and its handler does not run', async (t) => {
  const { once, a } = shared
  const scope = randomUUID()
  await a.sql`select once.set_retention(${scope}, '7 days')`
  await a.sql`select once.sweep()`
  const answer = await once.process(
    'a',
    { scope, key: 'k', occurredAt: new Date(Date.now() - 30 * 86_400_000) },
    async () => t.fail(),
  )
  t.deepEqual(answer, { status: 'expired' })
})

test('An older incarnation of a producer is fenced', async (t) => {
  const { once } = shared
  const producer = randomUUID()
  await once.process('a', { producer, sequence: 0, epoch: 2 }, async () => 1)
  await t.throwsAsync(
    once.process('a', { producer, sequence: 1, epoch: 1 }, async () => t.fail()),
    { instanceOf: FencedError, code: 'ONFEN' },
  )
})

test('In strict mode a gap is an error', async (t) => {
  const { once } = shared
  const producer = randomUUID()
  await once.process('a', { producer, sequence: 0, strict: true }, async () => 1)
  await t.throwsAsync(
    once.process('a', { producer, sequence: 2, strict: true }, async () => t.fail()),
    { instanceOf: SequenceGapError, code: 'ONGAP' },
  )
  t.is((await once.process('a', { producer, sequence: 1, strict: true }, async () => 1)).status, 'processed')
})

test('A batch runs the handler once, with the new ones in the order given', async (t) => {
  const { once } = shared
  const producer = randomUUID()
  const handler = async (_: unknown, sequences: readonly bigint[]) => sequences.length
  t.deepEqual(await once.processBatch('a', { producer, sequences: [2, 0, 1n, 1, 0] }, handler), {
    claimed: [2n, 0n, 1n],
    duplicates: 2,
    result: 3,
    id: null,
    finished: true,
  })
  t.like(await once.processBatch('a', { producer, sequences: [1, 3, 2] }, handler), {
    claimed: [3n],
    duplicates: 2,
    result: 1,
  })
  t.like(await once.processBatch('a', { producer, sequences: [0, 1] }, async () => t.fail()), {
    claimed: [],
    duplicates: 2,
    result: undefined,
  })
})

test('A batch of keys tells what became of each', async (t) => {
  const { once } = shared
  const scope = randomUUID()
  await once.process('a', { scope, key: 'old', keepResult: true }, async () => ({ was: 1 }))
  const answer = await once.processBatch(
    'a',
    { scope, messages: ['new', 'old', { key: 'newer', payload: 'x' }, 'new'] },
    async (_, keys) => keys.join(),
  )
  t.deepEqual(answer, {
    claimed: ['new', 'newer'],
    rest: [
      { key: 'old', status: 'duplicate', result: { was: 1 } },
      { key: 'new', status: 'duplicate', result: undefined },
    ],
    result: 'new,newer',
    id: null,
    finished: true,
  })
})

test('An empty batch is no error and runs no handler', async (t) => {
  const { once } = shared
  t.like(await once.processBatch('a', { producer: randomUUID(), sequences: [] }, async () => t.fail()), {
    claimed: [],
    duplicates: 0,
  })
  t.like(await once.processBatch('a', { scope: randomUUID(), messages: [] }, async () => t.fail()), {
    claimed: [],
    rest: [],
  })
})

test('100,000 messages fit in one batch, of either kind', async (t) => {
  t.timeout(600_000)
  const once = client<{ a: Effects }>(t, { a: shared.a.url }, { transaction: { timeout: 600_000 } })
  const producer = randomUUID()
  const sequences = Array.from({ length: 100_000 }, (_, n) => n)
  const first = await once.processBatch('a', { producer, sequences }, async (_, claimed) => claimed.length)
  t.is(first.result, 100_000)
  const again = await once.processBatch('a', { producer, sequences: [...sequences, 100_000] }, async () => 1)
  t.deepEqual(again.claimed, [100_000n])

  const messages = sequences.map((n) => `key ${n}`)
  const keys = await once.processBatch(
    'a',
    { scope: producer, messages },
    async (_, claimed) => claimed.length,
  )
  t.is(keys.result, 100_000)
})

test('A position moves in the same commit as the effects, also for duplicates', async (t) => {
  const { once } = shared
  const partition = { group: randomUUID(), topic: 'flights', partition: 3 }
  const { epoch, position } = await once.takePartition('a', partition, 'worker-1')
  t.is(position, null)
  const message = { producer: randomUUID(), sequence: 0 }
  const move = (expected: number | null, next: number) => ({
    offset: { ...partition, epoch, expected, next },
  })

  await t.throwsAsync(
    once.process(
      'a',
      message,
      async () => {
        throw new Error('no')
      },
      move(null, 1),
    ),
    { message: 'no' },
  )
  t.is((await once.readOffset('a', partition))?.position, null)

  t.is((await once.process('a', message, async () => 1, move(null, 1))).status, 'processed')
  t.is((await once.process('a', message, async () => 1, move(1, 2))).status, 'duplicate')
  t.like(
    await once.processBatch('a', { producer: message.producer, sequences: [0] }, async () => 1, move(2, 3)),
    {
      duplicates: 1,
    },
  )
  t.like(await once.readOffset('a', partition), { ...partition, position: 3n, epoch, owner: 'worker-1' })
})

test('A position that is not where it was expected undoes everything', async (t) => {
  const { once, a, b } = shared
  const id = fresh()
  const partition = { group: randomUUID(), topic: 't' }
  const { epoch } = await once.takePartition('a', partition)
  const message = { producer: randomUUID(), sequence: 0 }
  const offset = { ...partition, epoch, expected: 5n, next: 6n }
  const both = async (_: unknown, { a, b }: typeof handles) => {
    await a.insertInto('effect').values({ id }).execute()
    await b.insertInto('effect').values({ id }).execute()
  }
  type Handler = Parameters<typeof once.transaction>[0]
  const handles = undefined as unknown as Parameters<Handler>[0]
  await t.throwsAsync(
    once.process('a', message, async () => 1, { offset }),
    { instanceOf: OffsetError, code: 'ONCAS' },
  )
  await t.throwsAsync(once.process('a', message, both, { offset }), {
    instanceOf: OffsetError,
    code: 'ONCAS',
  })
  t.false((await a.effects()).includes(id) || (await b.effects()).includes(id))
  t.is((await once.process('a', message, async () => 1)).status, 'processed')
})

test('Who took a partition before is fenced by who takes it now', async (t) => {
  const { once } = shared
  const partition = { group: randomUUID(), topic: 't' }
  const before = await once.takePartition('a', partition)
  const now = await once.takePartition('a', partition)
  t.true(now.epoch > before.epoch)
  const move = (epoch: number) => ({ offset: { ...partition, epoch, expected: null, next: 'token-1' } })
  const message = { producer: randomUUID(), sequence: 0 }
  await t.throwsAsync(
    once.process('a', message, async () => 1, move(before.epoch)),
    {
      instanceOf: FencedError,
      code: 'ONFEN',
    },
  )
  await once.process('a', message, async () => 1, move(now.epoch))
  t.is((await once.takePartition('a', partition)).position, 'token-1')
})

test('A handler that meets a deadlock or a serialization failure is run anew, without the claim being lost', async (t) => {
  const { once, a } = shared
  for (const code of ['40001', '40P01']) {
    const id = fresh()
    let runs = 0
    const answer = await once.process('a', { producer: randomUUID(), sequence: 0 }, async (trx) => {
      runs += 1
      await trx.insertInto('effect').values({ id }).execute()
      if (runs < 3) await sql`do ${sql.lit(`begin raise sqlstate '${code}'; end`)}`.execute(trx)
      return runs
    })
    t.like(answer, { status: 'processed', result: 3 })
    t.true((await a.effects()).includes(id))
  }
})

test('A retryable error that the handler wraps is still retried', async (t) => {
  let runs = 0
  await shared.once.transaction(async ({ a }) => {
    runs += 1
    try {
      if (runs < 2) await sql`do $$ begin raise sqlstate '40001'; end $$`.execute(a)
    } catch (cause) {
      throw new Error('wrapped', { cause })
    }
  })
  t.is(runs, 2)
})

test('Retries are bounded, and none follow any other error', async (t) => {
  for (const [code, retries, expected] of [
    ['40001', 2, 3],
    ['40001', 0, 1],
    ['22012', 5, 1],
  ] as const) {
    let runs = 0
    await t.throwsAsync(
      shared.once.transaction(
        async ({ a }) => {
          runs += 1
          await sql`do ${sql.lit(`begin raise sqlstate '${code}'; end`)}`.execute(a)
        },
        { retries },
      ),
      { code },
    )
    t.is(runs, expected)
  }
})

test('Two serializable handlers that conflict both take effect, one after the other', async (t) => {
  const { once, a } = shared
  const ids = [fresh(), fresh()]
  const note = randomUUID()
  let waiting = 2
  let letGo = () => {}
  const both = new Promise<void>((resolve) => {
    letGo = resolve
  })
  const notes = await Promise.all(
    ids.map(async (id) => {
      let runs = 0
      const { result } = await once.transaction(
        async ({ a }) => {
          runs += 1
          const before = await a.selectFrom('effect').where('note', '=', note).select('id').execute()
          // Only in the first round do both read before either writes.
          if (runs === 1 && --waiting === 0) letGo()
          if (runs === 1) await both
          await a.insertInto('effect').values({ id, note }).execute()
          return before.length
        },
        { isolationLevel: 'serializable' },
      )
      return result
    }),
  )
  t.deepEqual(notes.toSorted(), [0, 1])
  t.is((await a.effects()).filter((id) => ids.includes(id)).length, 2)
})

// ---------------------------------------------------------------------------------------------------
// Every way to give a database

interface Camel {
  effect: { id: number; note: Generated<string> }
  camelCase: { someValue: string; bigNumber: string }
}

test('A postgres.js instance of the caller works, whatever it makes of names, numbers and missing values', async (t) => {
  const database = await effectsDatabase(t, 'a')
  await database.sql`create table camel_case (some_value text, big_number int8)`
  for (const options of [
    { transform: postgres.camel },
    { types: { bigint: postgres.BigInt } },
    { transform: { undefined: null } },
    { prepare: false },
    { max: 1 },
  ]) {
    const own = postgres(database.url, { max: 2, onnotice: () => {}, ...options } as postgres.Options<
      Record<string, postgres.PostgresType>
    >)
    t.teardown(() => own.end({ timeout: 1 }))
    const once = client<{ a: Effects; b: Effects }>(t, { a: own, b: shared.b.url })
    const id = fresh()
    const partition = { group: randomUUID(), topic: 't' }
    const { epoch } = await once.takePartition('a', partition)
    const message = { producer: randomUUID(), sequence: 2n ** 60n }
    const offset = { ...partition, epoch, expected: null, next: 2n ** 61n }
    const deliver = () =>
      once.process(
        'a',
        message,
        async (trx, { b }) => {
          await trx.insertInto('effect').values({ id }).execute()
          await b.insertInto('effect').values({ id }).execute()
        },
        { offset },
      )
    const first = await deliver()
    t.like(first, { status: 'processed', finished: true })
    if (first.status !== 'processed' || first.id === null) return t.fail('expected a recorded transaction')
    t.is(await once.outcome(first.id), 'committed')
    t.is((await once.process('a', message, async () => t.fail())).status, 'duplicate')
    t.like(await once.readOffset('a', partition), { position: 2n ** 61n })
    const scope = randomUUID()
    const keys = { scope, messages: ['k', { key: 'l', occurredAt: new Date() }] }
    t.deepEqual((await once.processBatch('a', keys, async () => 1)).claimed, ['k', 'l'])
    t.like(await once.processBatch('a', { ...message, sequences: [2n ** 60n, 7n] }, async () => 1), {
      claimed: [7n],
    })
    t.is((await once.recovery.sweep({ keep: 0 })).forgotten >= 1, true)
    t.deepEqual(await once.recovery.audit(), [])
    await once.close()
    t.is((await own`select 1 as one`)[0]?.one, 1, 'the instance stays its owner’s')
  }
})

test('A postgres.js instance that cannot hand out connections is refused', async (t) => {
  const own = connect(t, shared.a.url, { fetch_types: false })
  t.throws(() => pgonce({ databases: { a: own } }), { code: 'ONARG', message: /fetch_types/ })
})

test('A Kysely instance on pg works alone and beside postgres.js in one two-phase commit', async (t) => {
  const [a, c] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'a')])
  await a.sql`create table camel_case (some_value text, big_number int8)`
  const db = kyselyOnPg<Camel>(t, a.url, { plugins: [new CamelCasePlugin()] })
  const other = kyselyOnPg<Effects>(t, shared.b.url)
  const once = client<{ a: Camel; b: Effects; c: Effects }>(t, { a: db, b: other, c: c.url })
  for (const home of ['a', 'b', 'c'] as const) {
    const id = fresh()
    const { result, id: global } = await once.transaction(
      async ({ a, b, c }) => {
        await a.insertInto('camelCase').values({ someValue: home, bigNumber: '9007199254740993' }).execute()
        await b.insertInto('effect').values({ id }).execute()
        await c.insertInto('effect').values({ id }).execute()
        return await a
          .selectFrom('camelCase')
          .selectAll()
          .where('someValue', '=', home)
          .executeTakeFirstOrThrow()
      },
      { home },
    )
    t.deepEqual(result, { someValue: home, bigNumber: '9007199254740993' })
    t.is(await once.outcome(global ?? ''), 'committed')
    t.true((await c.effects()).includes(id) && (await shared.b.effects()).includes(id))
  }
  const message = { scope: randomUUID(), key: 'k', keepResult: true }
  t.is((await once.process('a', message, async () => ({ x: 1 }))).status, 'processed')
  t.deepEqual(await once.process('a', message, async () => ({ x: 2 })), {
    status: 'duplicate',
    result: { x: 1 },
  })
  t.like(await once.processBatch('a', { producer: 'p', sequences: [0, 1, 1] }, async () => 1), {
    claimed: [0n, 1n],
  })
  t.is((await once.recovery.sweep({ keep: 0 })).forgotten, 3)
  await once.close()
  t.deepEqual(await db.selectFrom('camelCase').select('someValue').orderBy('someValue').execute(), [
    { someValue: 'a' },
    { someValue: 'b' },
    { someValue: 'c' },
  ])
})

test('The handler gets Kysely’s own transaction, with the plugins of the instance it came from', async (t) => {
  const own = kyselyOnPg<Camel>(t, shared.a.url, { plugins: [new CamelCasePlugin()] })
  const once = client<{ a: Camel }>(t, { a: own })
  await once.transaction(async ({ a }) => {
    t.true(a.isTransaction)
    t.is(a.selectFrom('camelCase').select('someValue').compile().sql, 'select "some_value" from "camel_case"')
    await t.throwsAsync(async () => (a as Kysely<Camel>).transaction().execute(async () => 1))
  })
})

test('Values of every kind survive the way into a handler’s statement and back', async (t) => {
  const date = new Date('2026-01-02T03:04:05.678Z')
  const { result } = await shared.once.transaction(async ({ a }) => {
    const { rows } = await sql<{
      n: number
      s: string
      d: Date
      j: unknown
      b: Uint8Array
      l: string[]
      big: string
    }>`
      select ${1}::int as n, ${'é\\"'}::text as s, ${date}::timestamptz as d, ${{ x: [1] }}::jsonb as j,
             ${Buffer.from([0, 255])}::bytea as b, ${['x', 'y']}::text[] as l, ${2n ** 62n}::int8 as big`.execute(
      a,
    )
    return rows[0]
  })
  t.is(result?.n, 1)
  t.is(result?.s, 'é\\"')
  t.deepEqual(result?.d, date)
  t.deepEqual(result?.j, { x: [1] })
  t.deepEqual([...(result?.b ?? [])], [0, 255])
  t.deepEqual(result?.l, ['x', 'y'])
  t.is(result?.big, '4611686018427387904')
})

// ---------------------------------------------------------------------------------------------------
// Bad input

test('Names may hold quotes, emoji and 200 characters; NUL and 10 kB are refused before anything is sent', async (t) => {
  const { once } = shared
  for (const name of [`it's "quoted" \\ $1 ;--`, '😀'.repeat(200), ' ', '\n', '{},']) {
    const producer = `${name.slice(0, -1)}${name.at(-1)}`
    t.is((await once.process('a', { producer, sequence: 0 }, async () => 1)).status, 'processed')
    t.is((await once.process('a', { producer, sequence: 0 }, async () => 1)).status, 'duplicate')
    t.is((await once.process('a', { scope: name, key: name }, async () => 1)).status, 'processed')
    t.like(await once.processBatch('a', { scope: name, messages: [name, `${name}2`] }, async () => 1), {
      claimed: [`${name}2`],
    })
    await once.takePartition('a', { group: name, topic: name }, name)
    t.is((await once.readOffset('a', { group: name, topic: name }))?.owner, name)
  }
  for (const name of ['', 'a\0b', 'x'.repeat(10_000), '😀'.repeat(201), 7, undefined] as string[]) {
    for (const attempt of [
      once.process('a', { producer: name, sequence: 0 }, async () => t.fail()),
      once.process('a', { scope: name, key: 'k' }, async () => t.fail()),
      once.processBatch('a', { producer: name, sequences: [0] }, async () => t.fail()),
      once.processBatch('a', { scope: name, messages: ['k'] }, async () => t.fail()),
      once.takePartition('a', { group: name, topic: 't' }),
      once.readOffset('a', { group: 'g', topic: name }),
    ]) {
      const error = await t.throwsAsync(attempt, { instanceOf: InvalidInputError, code: 'ONARG' })
      t.true((error?.message.length ?? 0) < 200, error?.message)
    }
  }
  // Keys may be of any length, as only a digest is kept.
  t.is(
    (await once.process('a', { scope: 's', key: `${randomUUID()}${'x'.repeat(10_000)}` }, async () => 1))
      .status,
    'processed',
  )
  await t.throwsAsync(
    once.process('a', { scope: 's', key: 'a\0' }, async () => 1),
    { code: 'ONARG' },
  )
  await t.throwsAsync(
    once.process('a', { scope: 's', key: '' }, async () => 1),
    { code: 'ONARG' },
  )
})

test('Sequences go from 0 to 2^63-2; what JavaScript has rounded already is refused', async (t) => {
  const { once } = shared
  const producer = randomUUID()
  for (const sequence of [0, 2 ** 53 - 1, 2n ** 53n + 1n, 2n ** 63n - 2n]) {
    t.is((await once.process('a', { producer, sequence }, async () => 1)).status, 'processed')
    t.is((await once.process('a', { producer, sequence }, async () => 1)).status, 'duplicate')
  }
  for (const sequence of [
    -1,
    -1n,
    2n ** 63n - 1n,
    2n ** 64n,
    2 ** 53,
    0.5,
    Number.NaN,
    Infinity,
    '1',
    null,
  ] as number[]) {
    await t.throwsAsync(
      once.process('a', { producer, sequence }, async () => t.fail()),
      {
        instanceOf: InvalidInputError,
        code: 'ONARG',
      },
    )
    await t.throwsAsync(
      once.processBatch('a', { producer, sequences: [1, sequence] }, async () => t.fail()),
      {
        instanceOf: InvalidInputError,
        code: 'ONARG',
      },
    )
  }
})

test('Options that make no sense are refused before anything is sent', async (t) => {
  const { once } = shared
  const run = async () => t.fail()
  for (const options of [
    { timeout: -1 },
    { timeout: Number.NaN },
    { lockTimeout: 1.5 },
    { idleTimeout: 2 ** 31 },
    { retries: -1 },
    { finish: 'later' as 'await' },
    { isolationLevel: 'read committed; drop table effect' as 'read committed' },
    { home: 'nowhere' },
  ]) {
    await t.throwsAsync(
      once.transaction(run, options),
      { instanceOf: InvalidInputError, code: 'ONARG' },
      JSON.stringify(options),
    )
  }
  await t.throwsAsync(once.process('nowhere' as 'a', { producer: 'p', sequence: 0 }, run), {
    code: 'ONARG',
    message: /a, b, c/,
  })
  await t.throwsAsync(once.outcome('once:1:nonsense'), { instanceOf: InvalidInputError, code: 'ONARG' })
  await t.throwsAsync(once.outcome(`once:1:${randomUUID()}:${randomUUID()}:7`), {
    code: 'ONARG',
    message: /home/,
  })
  for (const message of [
    {},
    { producer: 'p' },
    { scope: 's' },
    null,
    undefined,
    { scope: 's', key: 'k', occurredAt: new Date(Number.NaN) },
    { scope: 's', key: 'k', payloadHash: new Uint8Array(65) },
  ]) {
    await t.throwsAsync(
      once.process('a', message as never, run),
      { instanceOf: InvalidInputError, code: 'ONARG' },
      JSON.stringify(message),
    )
  }
})

test('What is wrong with an argument is said in its own terms', async (t) => {
  const { once } = shared
  const run = async () => t.fail()
  const hintOf = async (attempt: Promise<unknown>) =>
    ((await t.throwsAsync(attempt, { instanceOf: InvalidInputError, code: 'ONARG' })) as InvalidInputError)
      .hint
  // Only where numbers can be that large is there something to say about bigint.
  for (const options of [
    { timeout: -1 },
    { retries: 2 ** 60 },
    { lockTimeout: 2 ** 31 },
    { idleTimeout: '60s' },
  ])
    t.is(await hintOf(once.transaction(run, options as { timeout: number })), undefined)
  t.is(await hintOf(once.process('a', { producer: 'p', sequence: 1, epoch: 2 ** 60 }, run)), undefined)
  t.is(await hintOf(once.process('a', { producer: 'p', sequence: -1 }, run)), undefined)
  t.regex((await hintOf(once.process('a', { producer: 'p', sequence: 2 ** 60 }, run))) ?? '', /pass a bigint/)
  t.regex((await hintOf(once.process('a', { producer: 'p', sequence: '7' as never }, run))) ?? '', /BigInt\(/)

  await t.throwsAsync(once.transaction(run, { isolationLevel: 'snapshot' as never }), {
    message: /'read uncommitted', 'read committed', 'repeatable read', 'serializable', got "snapshot"/,
  })
  await t.throwsAsync(once.process('a', { scope: 's', key: 'k', payload: { a: 1 } as never }, run), {
    instanceOf: InvalidInputError,
    message: /`payload`/,
  })
  await t.throwsAsync(once.process('a', { producer: 'p', sequence: 0 }, undefined as never), {
    instanceOf: InvalidInputError,
    message: /`handler`/,
  })
  await t.throwsAsync(once.processBatch('a', { producer: 'p' } as never, run), {
    instanceOf: InvalidInputError,
    message: /`sequences`/,
  })
  const options = { instanceOf: InvalidInputError, code: 'ONARG' }
  t.throws(() => pgonce(undefined as never), options)
  t.throws(() => pgonce({} as never), options)
  const databases = { a: shared.a.url }
  t.throws(() => pgonce({ databases, transaction: { timeout: '60s' as never } }), {
    ...options,
    message: /`timeout`/,
  })
})

test('Options of the other kind of message are refused instead of ignored', async (t) => {
  const { once } = shared
  const run = async () => t.fail()
  for (const [message, named] of [
    [{ producer: 'p', sequence: 0, keepResult: true }, 'keepResult'],
    [{ producer: 'p', sequence: 0, scope: 's', key: 'k' }, 'scope'],
    [{ producer: 'p', sequence: 0, payload: 'x' }, 'payload'],
    [{ scope: 's', key: 'k', strict: true }, 'strict'],
    [{ scope: 's', key: 'k', epoch: 1 }, 'epoch'],
    [{ scope: 's', key: 'k', payload: 'x', payloadHash: new Uint8Array(32) }, 'payloadHash'],
  ] as const) {
    await t.throwsAsync(once.process('a', message as never, run), {
      instanceOf: InvalidInputError,
      code: 'ONARG',
      message: new RegExp(`\`${named}\``),
    })
  }
  for (const [batch, named] of [
    [{ producer: 'p', sequences: [0], messages: ['k'] }, 'messages'],
    [{ producer: 'p', sequences: [0], keepResult: true }, 'keepResult'],
    [{ scope: 's', messages: ['k'], keepResult: true }, 'keepResult'],
    [{ scope: 's', messages: ['k'], strict: true }, 'strict'],
    [{ scope: 's', messages: ['k', { key: 'l', keepResult: true }] }, 'keepResult'],
    [{ scope: 's', messages: [{ scope: 'other', key: 'l' }] }, 'scope'],
  ] as const) {
    await t.throwsAsync(once.processBatch('a', batch as never, run), {
      instanceOf: InvalidInputError,
      code: 'ONARG',
      message: new RegExp(`\`${named}\``),
    })
  }
  // What is undefined is not there.
  const scope = randomUUID()
  const message = { scope, key: 'k', producer: undefined, strict: undefined } as never
  t.is((await once.process('a', message, async () => 1)).status, 'processed')
})

test('A password in a URL is never shown, however the URL is mistyped', (t) => {
  for (const [url, shown] of [
    ['postgres://u:secret@h:5432/db', 'postgres://u:…@h:5432/db'],
    [
      'postgres://u:secret@h1:1,h2:2/db?application_name=a@b',
      'postgres://u:…@h1:1,h2:2/db?application_name=a@b',
    ],
    ['postgres://u:secr@et@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:secret@[::1]:5432/db', 'postgres://u:…@[::1]:5432/db'],
    ['postgres://h/db?user=u&password=p@secret&x=y', 'postgres://h/db?user=u&password=…&x=y'],
    ['postgres://u@h:5432/db', 'postgres://u@h:5432/db'],
    ['postgres://h1:1,h2:2/db', 'postgres://h1:1,h2:2/db'],
    ['postgres:///db', 'postgres:///db'],
  ] as const) {
    t.is(describeTarget(url), shown)
    t.is(checkUrl(url), url)
  }
  for (const [url, shown] of [
    ['postgres://u:se/secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:1/secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:1?secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:se#secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:se@secret/x@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:secret%@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:a@secret@h1,h2/db', 'postgres://u:…@h1,h2/db'],
    ['postgres://us/er:secret@h/db', 'postgres://us/er:…@h/db'],
    ['postgres://u:secret/db', 'postgres://u:…/db'],
    ['postgres:/u:secret@h/db', 'postgres:/u:…@h/db'],
    ['postgresql+driver://u:secret@h/db', 'postgresql+driver://u:…@h/db'],
    ['jdbc:postgresql://h/db?user=u&password=secret', 'jdbc:postgresql://h/db?user=u&password=…'],
    ['u:secret@h/db', 'u:…@h/db'],
    ["host=h password='a secret' dbname=db", 'host=h password=… dbname=db'],
    ['"postgres://u:secret@h/db"', '"postgres://u:…@h/db"'],
  ] as const) {
    t.is(describeTarget(url), shown)
    const error = t.throws(
      () => pgonce({ databases: { a: url } }),
      { instanceOf: InvalidInputError, code: 'ONARG' },
      url,
    )
    t.notRegex(inspect(error, { depth: 9 }), /secret/)
  }
  const error = t.throws(() => pgonce({ databases: { a: 'postgres://u:se/cret@h/db' } }))
  t.regex((error as InvalidInputError).hint ?? '', /Percent-encode the password: \/ is %2F/)
})

test('A client of no databases, of bad names or of what is no database is refused', (t) => {
  for (const databases of [
    {},
    { 'a:b': shared.a.url },
    { '': shared.a.url },
    { ['x'.repeat(64)]: shared.a.url },
    { a: 'localhost' },
    { a: 'mysql://localhost/x' },
    { a: null },
    { a: 7 },
    { a: {} },
    { a: () => 1 },
  ] as Record<string, string>[]) {
    t.throws(() => pgonce({ databases }), { instanceOf: InvalidInputError, code: 'ONARG' })
  }
  t.throws(() => pgonce({ databases: { a: shared.a.url }, maxConnections: 0 }), { code: 'ONARG' })
  const secret = t.throws(() => pgonce({ databases: { a: 'http://u:geheim@h/d' } }))
  t.false(secret?.message.includes('geheim'))
})

test('A database without the schema is named, with what to type', async (t) => {
  const empty = await emptyDatabase(t)
  const once = client<{ a: Effects }>(t, { a: empty.url })
  await t.throwsAsync(
    once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    {
      code: 'NOT_INSTALLED',
      message: /Database a/,
    },
  )
  // It is installed meanwhile: the same client goes on.
  const { installSchema } = await import('./support/database.ts')
  await installSchema(empty.url)
  t.is((await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)).status, 'processed')
})

test('A role without grants is told which grant is missing, and works with it', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  const once = client<{ a: Effects }>(t, { a: database.urlAs(role) })
  await t.throwsAsync(
    once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    { code: 'NO_PRIVILEGE' },
  )
  await database.sql`select once.grant_app(${role})`
  t.is((await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)).status, 'processed')
})

test('With no more than its grants an application does everything: both ledgers, offsets, two phases, outcome', async (t) => {
  const [a, b] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b')])
  const urls = await Promise.all(
    [a, b].map(async (database) => {
      const role = await testRole(t, database)
      await database.sql`select once.grant_app(${role})`
      await database.sql.unsafe(`grant select, insert on effect to ${role}`)
      return database.urlAs(role)
    }),
  )
  const once = client<{ a: Effects; b: Effects }>(t, { a: urls[0] as string, b: urls[1] as string })
  const partition = { group: 'g', topic: 't' }
  const { epoch } = await once.takePartition('a', partition)
  for (const [id, home] of [
    [1, 'a'],
    [2, 'b'],
  ] as const) {
    const answer = await once.process(
      home,
      { scope: 's', key: `k${id}`, occurredAt: new Date(), keepResult: true },
      async (_, { a, b }) => {
        await a.insertInto('effect').values({ id }).execute()
        await b.insertInto('effect').values({ id }).execute()
        return id
      },
      home === 'a' ? { offset: { ...partition, epoch, expected: null, next: 1 } } : {},
    )
    if (answer.status !== 'processed') return t.fail()
    t.is(await once.outcome(answer.id ?? ''), 'committed')
  }
  // A reader among the participants makes the coordinator correct its decision row.
  await once.transaction(
    async ({ a, b }) => {
      await a.selectFrom('effect').selectAll().execute()
      await b.insertInto('effect').values({ id: 3 }).execute()
    },
    { home: 'a' },
  )
  t.like(await once.processBatch('b', { producer: 'p', sequences: [1, 2] }, async () => 1), {
    claimed: [1n, 2n],
  })
  t.deepEqual(
    [await a.effects(), await b.effects()],
    [
      [1, 2],
      [1, 2, 3],
    ],
  )
})

test('A standby is refused with a word about the primary', async (t) => {
  const server = await ownServer(t)
  const { installSchema } = await import('./support/database.ts')
  await installSchema(server.url())
  await makeStandby(server)
  const once = client<{ a: Effects }>(t, { a: server.url() })
  for (const attempt of [
    () => once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    () => once.transaction(async ({ a }) => void (await a.selectFrom('effect').selectAll().execute())),
    () => once.takePartition('a', { group: 'g', topic: 't' }),
  ]) {
    await t.throwsAsync(attempt(), { code: 'ONSTB' })
  }
  const { unreachable } = await once.recovery.sweep()
  t.is(unreachable.length, 1)
  t.regex(unreachable[0]?.reason ?? '', /standby/)
})

test('Two names for one database are refused, as its two branches would wait for each other', async (t) => {
  const { a } = shared
  const direct = new URL(a.url)
  direct.searchParams.set('application_name', 'same')
  const once = client<{ x: Effects; y: Effects }>(t, { x: a.url, y: direct.href })
  const both = once.transaction(async ({ x, y }) => {
    await x.selectFrom('effect').selectAll().execute()
    await y.selectFrom('effect').selectAll().execute()
  })
  await t.throwsAsync(both, { code: 'SAME_DATABASE', message: /x and y|y and x/ })
})

test('A copy of a database is refused until it has an identity of its own', async (t) => {
  const { sql: admin, url, name } = await testDatabase(t)
  const copy = `${name}_copy`
  await admin.end({ timeout: 1 })
  const control = connect(t, shared.a.url)
  await control.unsafe(`create database ${copy} template ${name}`)
  t.teardown(() => control.unsafe(`drop database ${copy} with (force)`))
  const once = client<{ a: Effects; b: Effects }>(t, { a: url, b: url.replace(name, copy) })
  await t.throwsAsync(
    once.process('b', { producer: 'p', sequence: 0 }, async () => 1),
    { code: 'ONCPY' },
  )
  const inside = connect(t, url.replace(name, copy))
  await inside`select once.renew_identity('test')`
  t.is((await once.process('b', { producer: 'p', sequence: 0 }, async () => 1)).status, 'processed')
  await once.close()
  await inside.end()
})

test('A database that is down is named, and used again as soon as it is back', async (t) => {
  const server = await ownServer(t)
  const { installSchema } = await import('./support/database.ts')
  await installSchema(server.url())
  const once = client<{ a: Effects }>(t, { a: server.url() })
  await server.stop('immediate')
  await t.throwsAsync(
    once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    {
      instanceOf: AbortedError,
      code: 'CONNECTION_LOST',
      message: /Database a/,
    },
  )
  await server.start()
  t.is((await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)).status, 'processed')
})

test('A server that refuses the login, the database or one connection more says so, which is no lost connection', async (t) => {
  const server = await ownServer(t)
  await askForPasswords(t, server)
  const hosted = await hostedDatabase(t, server, 'orders')
  const deliver = async (url: string) => {
    await using once = pgonce<{ a: Effects }>({ databases: { a: url } })
    return await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)
  }
  t.is((await deliver(hosted.urlAs('shop'))).status, 'processed')

  const wrong = new URL(hosted.urlAs('shop'))
  wrong.password = 'mistyped'
  const nobody = new URL(wrong)
  nobody.username = 'nobody'
  const missing = hosted.urlAs('shop').replace('/orders', '/ordres')
  for (const [url, Class, code] of [
    [wrong.href, DatabaseError, 'LOGIN_REFUSED'],
    [nobody.href, DatabaseError, 'LOGIN_REFUSED'],
    [missing, DatabaseError, 'NO_DATABASE'],
  ] as const) {
    const error = await t.throwsAsync(deliver(url), { instanceOf: Class, code, message: /Database a / })
    t.truthy((error as DatabaseError).hint)
    t.notRegex(inspect(error, { depth: 9 }), /mistyped/)
  }
  await hosted.sql`alter role shop nologin`
  await t.throwsAsync(deliver(hosted.urlAs('shop')), { instanceOf: DatabaseError, code: 'LOGIN_REFUSED' })
  await hosted.sql`alter role shop login connection limit 0`
  await t.throwsAsync(deliver(hosted.urlAs('shop')), { instanceOf: LimitError, code: 'TOO_MANY_CONNECTIONS' })
  await hosted.sql`alter role shop connection limit -1`
  await hosted.sql`revoke connect on database orders from public`
  await t.throwsAsync(deliver(hosted.urlAs('shop')), { instanceOf: DatabaseError, code: 'NO_PRIVILEGE' })
})

test('A claim, a move or a taking that waits in vain for a branch in doubt says whom to ask, and what to start', async (t) => {
  const [home, a] = [await effectsDatabase(t, 'b'), await effectsDatabase(t, 'a')]
  const once = client<{ a: Effects }>(t, { a: a.url }, { transaction: { lockTimeout: 50 } })
  const offset = await once.takePartition('a', { group: 'g', topic: 't' })
  await makeOrphan({
    home,
    participant: a,
    decision: 'committed',
    effect: `select once.claim('p', 0); select once.claim_key('s', 'k'); select once.advance('g', 't', 0, 1, null, 5)`,
  })
  const move = (expected: number | null) => ({ offset: { ...offset, expected, next: 6 } })
  for (const attempt of [
    () => once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    () => once.process('a', { scope: 's', key: 'k' }, async () => 1),
    () => once.processBatch('a', { producer: 'p', sequences: [0, 2] }, async () => 1),
    () => once.process('a', { producer: 'q', sequence: 0 }, async () => 1, move(null)),
    () => once.takePartition('a', { group: 'g', topic: 't' }),
  ]) {
    const error = await t.throwsAsync(attempt(), {
      instanceOf: LimitError,
      code: 'LOCK_TIMEOUT',
      message: /database a$/,
    })
    t.regex((error as LimitError).hint ?? '', /pgonce in-doubt.*once\.recovery\.start\(\)/)
  }
  const recovering = client<{ a: Effects; home: Effects }>(t, { a: a.url, home: home.url })
  t.is((await recovering.recovery.sweep()).committed, 1)
  t.is((await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)).status, 'duplicate')
  t.is((await once.process('a', { producer: 'q', sequence: 0 }, async () => 1, move(5))).status, 'processed')
})

test('Sessions whose default is synchronous_commit off or repeatable read are no obstacle', async (t) => {
  const [a, b] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b')])
  for (const { sql: admin, name } of [a, b]) {
    await admin.unsafe(`alter database ${name} set synchronous_commit = off`)
    await admin.unsafe(`alter database ${name} set default_transaction_isolation = 'repeatable read'`)
  }
  const once = client<{ a: Effects; b: Effects }>(t, { a: a.url, b: b.url })
  let setting: string | undefined
  const { id } = await once.transaction(async ({ a, b }) => {
    await a.insertInto('effect').values({ id: 1 }).execute()
    await b.insertInto('effect').values({ id: 1 }).execute()
    setting = (await sql<{ s: string }>`select current_setting('synchronous_commit') as s`.execute(a)).rows[0]
      ?.s
  })
  t.not(setting, 'off')
  t.is(await once.outcome(id ?? ''), 'committed')
  await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)
  t.is((await once.recovery.sweep({ keep: 0 })).forgotten, 1)
  t.deepEqual(await once.recovery.audit(), [])
})

// ---------------------------------------------------------------------------------------------------
// Closing

test('close() ends every connection, waits for transactions that run, and refuses new ones', async (t) => {
  const [a, b] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b')])
  const once = client<{ a: Effects; b: Effects }>(t, { a: a.url, b: b.url })
  once.recovery.start({ interval: 10 })
  let began = () => {}
  const running = new Promise<void>((resolve) => {
    began = resolve
  })
  let goOn = () => {}
  const held = new Promise<void>((resolve) => {
    goOn = resolve
  })
  const transaction = once.transaction(async ({ a, b }) => {
    await a.insertInto('effect').values({ id: 1 }).execute()
    began()
    await held
    await b.insertInto('effect').values({ id: 1 }).execute()
  })
  await running
  const closed = once.close()
  t.is(once.close(), closed)
  await t.throwsAsync(
    once.transaction(async () => 1),
    { instanceOf: AbortedError, code: 'CLOSED' },
  )
  await t.throwsAsync(
    once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
    { code: 'CLOSED' },
  )
  await t.throwsAsync(once.takePartition('a', { group: 'g', topic: 't' }), { code: 'CLOSED' })
  goOn()
  t.like(await transaction, { finished: true })
  await closed
  for (const { sql: admin, effects } of [a, b]) {
    t.deepEqual(await effects(), [1])
    const left = await admin`
      select application_name from pg_stat_activity where datname = current_database() and application_name like 'pgonce%'`
    t.deepEqual([...left], [])
  }
})

test('A client that was never used closes at once, and `await using` closes', async (t) => {
  {
    await using once = pgonce<{ a: Effects }>({ databases: { a: shared.a.url } })
    t.truthy(once)
  }
  await using never = pgonce<{ a: Effects }>({ databases: { a: 'postgres://nobody@127.0.0.1:1/none' } })
  t.truthy(never)
})
