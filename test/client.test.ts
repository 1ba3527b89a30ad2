import { randomUUID } from 'node:crypto'
import test from 'ava'
import { sql } from 'kysely'
import {
  AbortedError,
  FencedError,
  HandlerError,
  InvalidInputError,
  LimitError,
  PayloadMismatchError,
  PositionError,
  pgonce,
  SequenceGapError,
} from '../src/index.ts'
import { client, type Two } from './support/client.ts'
import { type Effects, effectsDatabase, twoDatabases } from './support/effects.ts'
import { leaveBehind } from './support/orphan.ts'
import { fresh, sharedShop } from './support/shop.ts'

const shared = sharedShop()

test('A message takes effect once, however often it is delivered', async (t) => {
  const { once, a } = shared()
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
  const { once } = shared()
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
  const { once, a } = shared()
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
  const { once } = shared()
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
  const { once, a, b } = shared()
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
  const { once } = shared()
  const message = { scope: randomUUID(), key: 'payment-1', keepResult: true }
  const result = { number: 7, text: 'é"\\', list: [1, null], deep: { yes: true } }
  t.like(await once.process('a', message, async () => result), { status: 'processed', result })
  t.deepEqual(await once.process('a', message, async () => ({ ...result, number: 8 })), {
    status: 'duplicate',
    result,
  })
})

test('A result that JSON cannot hold is refused, and the message is new again', async (t) => {
  const { once } = shared()
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
  const { once } = shared()
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
  const { once, a } = shared()
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
  const { once } = shared()
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
  const { once, a } = shared()
  const scope = randomUUID()
  await a.sql`select once.set_retention(${scope}, '7 days')`
  await a.sql`select once.expire()`
  const answer = await once.process(
    'a',
    { scope, key: 'k', occurredAt: new Date(Date.now() - 30 * 86_400_000) },
    async () => t.fail(),
  )
  t.deepEqual(answer, { status: 'expired' })
})

test('An older incarnation of a producer is fenced', async (t) => {
  const { once } = shared()
  const producer = randomUUID()
  await once.process('a', { producer, sequence: 0, epoch: 2 }, async () => 1)
  await t.throwsAsync(
    once.process('a', { producer, sequence: 1, epoch: 1 }, async () => t.fail()),
    { instanceOf: FencedError, code: 'ONFEN' },
  )
})

test('A duplicate by which a producer raises its epoch fences the older incarnation all the same', async (t) => {
  const { once } = shared()
  const producer = randomUUID()
  await once.process('a', { producer, sequence: 0 }, async () => 1)
  const answer = await once.process('a', { producer, sequence: 0, epoch: 1 }, async () => t.fail())
  t.is(answer.status, 'duplicate')
  const batch = await once.processBatch('a', { producer, sequences: [0], epoch: 2 }, async () => t.fail())
  t.is(batch.duplicates, 1)
  await t.throwsAsync(
    once.process('a', { producer, sequence: 1, epoch: 1 }, async () => t.fail()),
    { instanceOf: FencedError, code: 'ONFEN' },
  )
})

test('A duplicate that sets where its producer begins has set it', async (t) => {
  const { once } = shared()
  const [one, other] = [randomUUID(), randomUUID()]
  const before = await once.process('a', { producer: one, sequence: 5, startAt: 10 }, async () => t.fail())
  t.is(before.status, 'duplicate')
  await once.processBatch('a', { producer: other, sequences: [5, 6], startAt: 10 }, async () => t.fail())
  for (const producer of [one, other])
    t.is((await once.process('a', { producer, sequence: 6 }, async () => t.fail())).status, 'duplicate')
})

test('Queries that cannot be effects of a message in this database are refused before anything is sent', async (t) => {
  const { once } = shared()
  const message = { producer: randomUUID(), sequence: 0 }
  const b = once.builder('b').insertInto('effect').values({ id: 1 })
  for (const [query, said] of [
    [b, /database a, got one that the builder of b made/],
    [b.compile(), /the builder of b/],
    ['update effect set id = 1', /queries\[0\]/],
    [undefined, /queries\[0\]/],
    [async () => 1, /queries\[0\]/],
    [Promise.resolve(1), /queries\[0\]/],
  ] as const)
    await t.throwsAsync(once.process('a', message, [query as never]), { code: 'ONARG', message: said })
  await t.throwsAsync(once.process('a', message, [sql`commit`]), { code: 'ONEND' })
  const home = { home: 'b' } as object
  await t.throwsAsync(once.process('a', message, [], home), { code: 'ONARG', message: /no `home`/ })
  t.is((await once.process('a', message, [sql`select ${1}`])).status, 'processed')
})

test('A query that fails tells Postgres’s own error, however often its claim was sent before', async (t) => {
  const { once } = shared()
  const producer = randomUUID()
  for (let sequence = 0; sequence < 3; sequence += 1) {
    const wrong = sql`insert into effect (id) values (${'x'}::text)`
    await t.throwsAsync(once.process('a', { producer, sequence }, [wrong], { retries: 0 }), { code: '42804' })
    await once.process('a', { producer, sequence }, [sql`select 1`])
  }
})

test('A duplicate moves the position that comes with it, and leaves the connection as good as before', async (t) => {
  const { once } = shared()
  const [producer, partition] = [randomUUID(), { group: randomUUID(), topic: 't', partition: 0 }]
  const { epoch } = await once.takePartition('a', partition)
  await once.process('a', { producer, sequence: 0 }, async () => 1)
  const position = { ...partition, epoch, expected: null, next: 7 }
  for (const options of [{}, { position }]) {
    const answer = await once.process('a', { producer, sequence: 0 }, async () => t.fail(), options)
    t.is(answer.status, 'duplicate')
  }
  t.is((await once.readPosition('a', partition))?.position, 7n)
  const many = Array.from({ length: 50 }, (_, n) =>
    once.process('a', { producer, sequence: n % 2 }, async () => 'new'),
  )
  t.is((await Promise.all(many)).filter(({ status }) => status === 'processed').length, 1)
})

test('In strict mode a gap is an error', async (t) => {
  const { once } = shared()
  const producer = randomUUID()
  await once.process('a', { producer, sequence: 0, strict: true }, async () => 1)
  await t.throwsAsync(
    once.process('a', { producer, sequence: 2, strict: true }, async () => t.fail()),
    { instanceOf: SequenceGapError, code: 'ONGAP' },
  )
  t.is((await once.process('a', { producer, sequence: 1, strict: true }, async () => 1)).status, 'processed')
})

test('A batch runs the handler once, with the new ones in the order given', async (t) => {
  const { once } = shared()
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
  const { once } = shared()
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
  const { once } = shared()
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
  const once = client<{ a: Effects }>(t, { a: shared().a.url }, { transaction: { timeout: 600_000 } })
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
  const { once } = shared()
  const partition = { group: randomUUID(), topic: 'flights', partition: 3 }
  const { epoch, position } = await once.takePartition('a', partition, 'worker-1')
  t.is(position, null)
  const message = { producer: randomUUID(), sequence: 0 }
  const move = (expected: number | null, next: number) => ({
    position: { ...partition, epoch, expected, next },
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
  t.is((await once.readPosition('a', partition))?.position, null)

  t.is((await once.process('a', message, async () => 1, move(null, 1))).status, 'processed')
  t.is((await once.process('a', message, async () => 1, move(1, 2))).status, 'duplicate')
  t.like(
    await once.processBatch('a', { producer: message.producer, sequences: [0] }, async () => 1, move(2, 3)),
    {
      duplicates: 1,
    },
  )
  t.like(await once.readPosition('a', partition), { ...partition, position: 3n, epoch, owner: 'worker-1' })
})

test('A position that is not where it was expected undoes everything', async (t) => {
  const { once, a, b } = shared()
  const id = fresh()
  const partition = { group: randomUUID(), topic: 't' }
  const { epoch } = await once.takePartition('a', partition)
  const message = { producer: randomUUID(), sequence: 0 }
  const move = { ...partition, epoch, expected: 5n, next: 6n }
  const both = async (_: unknown, { a, b }: typeof handles) => {
    await a.insertInto('effect').values({ id }).execute()
    await b.insertInto('effect').values({ id }).execute()
  }
  type Handler = Parameters<typeof once.transaction>[0]
  const handles = undefined as unknown as Parameters<Handler>[0]
  await t.throwsAsync(
    once.process('a', message, async () => 1, { position: move }),
    { instanceOf: PositionError, code: 'ONCAS' },
  )
  await t.throwsAsync(once.process('a', message, both, { position: move }), {
    instanceOf: PositionError,
    code: 'ONCAS',
  })
  t.false((await a.effects()).includes(id) || (await b.effects()).includes(id))
  t.is((await once.process('a', message, async () => 1)).status, 'processed')
})

test('Who took a partition before is fenced by who takes it now', async (t) => {
  const { once } = shared()
  const partition = { group: randomUUID(), topic: 't' }
  const before = await once.takePartition('a', partition)
  const now = await once.takePartition('a', partition)
  t.true(now.epoch > before.epoch)
  const move = (epoch: number) => ({ position: { ...partition, epoch, expected: null, next: 'token-1' } })
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
  const { once, a } = shared()
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
  await shared().once.transaction(async ({ a }) => {
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
      shared().once.transaction(
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
  const { once, a } = shared()
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

test('A claim, a move or a taking that waits in vain for a branch in doubt says whom to ask, and what to start', async (t) => {
  const [home, a] = [await effectsDatabase(t, 'b'), await effectsDatabase(t, 'a')]
  const once = client<{ a: Effects }>(t, { a: a.url }, { transaction: { lockTimeout: 50 } })
  const taken = await once.takePartition('a', { group: 'g', topic: 't' })
  await leaveBehind(
    home,
    { a },
    {
      effect: `select once.claim('p', 0); select once.claim_key('s', 'k'); select once.advance('g', 't', 0, 1, null, 5)`,
    },
  )
  const move = (expected: number | null) => ({ position: { ...taken, expected, next: 6 } })
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
  t.is((await recovering.recovery.run()).committed, 1)
  t.is((await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)).status, 'duplicate')
  t.is((await once.process('a', { producer: 'q', sequence: 0 }, async () => 1, move(5))).status, 'processed')
})

// ---------------------------------------------------------------------------------------------------
// Closing

test('close() ends every connection, waits for transactions that run, and refuses new ones', async (t) => {
  const [a, b] = await twoDatabases(t)
  const once = client<Two>(t, { a: a.url, b: b.url })
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
    await using once = pgonce<{ a: Effects }>({ databases: { a: shared().a.url } })
    t.truthy(once)
  }
  await using never = pgonce<{ a: Effects }>({ databases: { a: 'postgres://nobody@127.0.0.1:1/none' } })
  t.truthy(never)
})
