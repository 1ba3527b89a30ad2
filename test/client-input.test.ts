/** What callers pass in, and how they are told what is wrong with it. */
import { randomUUID } from 'node:crypto'
import test from 'ava'
import { InvalidInputError, pgonce, type TransactionOptions } from '../src/index.ts'
import { sharedShop } from './support/shop.ts'

const shared = sharedShop()

test('Names may hold quotes, emoji and 200 characters; NUL and 10 kB are refused before anything is sent', async (t) => {
  const { once } = shared()
  for (const name of [`it's "quoted" \\ $1 ;--`, '😀'.repeat(200), ' ', '\n', '{},']) {
    const producer = `${name.slice(0, -1)}${name.at(-1)}`
    t.is((await once.process('a', { producer, sequence: 0 }, async () => 1)).status, 'processed')
    t.is((await once.process('a', { producer, sequence: 0 }, async () => 1)).status, 'duplicate')
    t.is((await once.process('a', { scope: name, key: name }, async () => 1)).status, 'processed')
    t.like(await once.processBatch('a', { scope: name, messages: [name, `${name}2`] }, async () => 1), {
      claimed: [`${name}2`],
    })
    await once.takePartition('a', { group: name, topic: name }, name)
    t.is((await once.readPosition('a', { group: name, topic: name }))?.owner, name)
  }
  for (const name of ['', 'a\0b', 'x'.repeat(10_000), '😀'.repeat(201), 7, undefined] as string[]) {
    for (const attempt of [
      once.process('a', { producer: name, sequence: 0 }, async () => t.fail()),
      once.process('a', { scope: name, key: 'k' }, async () => t.fail()),
      once.processBatch('a', { producer: name, sequences: [0] }, async () => t.fail()),
      once.processBatch('a', { scope: name, messages: ['k'] }, async () => t.fail()),
      once.takePartition('a', { group: name, topic: 't' }),
      once.readPosition('a', { group: 'g', topic: name }),
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
  const { once } = shared()
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
  const { once } = shared()
  for (const [options, message] of [
    [{ timeout: -1 }, /`timeout`.* from 1 to 2147483647, got -1$/],
    [{ timeout: '60s' }, /`timeout`.*, got "60s"$/],
    [{ timeout: Number.NaN }, /`timeout`.*, got NaN$/],
    [{ lockTimeout: 1.5 }, /`lockTimeout`.* from 0 /],
    [{ lockTimeout: 2 ** 31 }, /`lockTimeout`/],
    [{ idleTimeout: 2 ** 31 }, /`idleTimeout`/],
    [{ idleTimeout: '60s' }, /`idleTimeout`/],
    [{ retries: -1 }, /`retries`/],
    [{ retries: 2 ** 60 }, /`retries`/],
    [{ finish: 'later' }, /`finish`.*'await' or 'background', got "later"$/],
    [
      { isolationLevel: 'snapshot' },
      /'read uncommitted', 'read committed', 'repeatable read' or 'serializable', got "snapshot"/,
    ],
    [{ isolationLevel: 'read committed; drop table effect' }, /`isolationLevel`/],
    [{ home: 'nowhere' }, /nowhere; there are a/],
  ] as const) {
    const refused = { instanceOf: InvalidInputError, code: 'ONARG', message }
    const said = JSON.stringify(options)
    const error = await t.throwsAsync(
      once.transaction(async () => t.fail(), options as TransactionOptions),
      refused,
      said,
    )
    // Only where numbers can be that large is there something to say about bigint.
    t.is((error as InvalidInputError).hint, undefined, said)
    const databases = { a: shared().a.url }
    t.throws(() => pgonce({ databases, transaction: options as TransactionOptions }), refused, said)
  }
})

test('What is wrong with an argument is said in its own terms', async (t) => {
  const { once } = shared()
  const run = async () => t.fail()
  const process = (message: unknown) => () => once.process('a', message as never, run)
  // Without a hint: there must be none.
  for (const [attempt, message, hint] of [
    [process({}), /`scope`/, /Use a short stable name/],
    [process({ producer: 'p' }), /`sequence`.*, got undefined$/],
    [process({ scope: 's' }), /`key`/],
    [process(null), /`message`.*, got null$/, /Pass \{ producer.* or \{ scope/],
    [process(undefined), /`message`.*, got undefined$/, /Pass \{ producer.* or \{ scope/],
    [process({ scope: 's', key: 'k', occurredAt: new Date(Number.NaN) }), /`occurredAt`/],
    [process({ scope: 's', key: 'k', payloadHash: new Uint8Array(65) }), /`payloadHash`.* 1 to 64 bytes/],
    [process({ scope: 's', key: 'k', payload: { a: 1 } }), /`payload`/, /before it is parsed/],
    [process({ producer: 'p', sequence: 1, epoch: 2 ** 60 }), /`epoch`/],
    [process({ producer: 'p', sequence: -1 }), /`sequence`/],
    [process({ producer: 'p', sequence: 2 ** 60 }), /`sequence`/, /pass a bigint/],
    [process({ producer: 'p', sequence: '7' }), /`sequence`/, /BigInt\(/],
    [() => once.process('nowhere' as 'a', { producer: 'p', sequence: 0 }, run), /a, b, c/],
    [
      () => once.process('a', { producer: 'p', sequence: 0 }, undefined as never),
      /`handler`/,
      /async \(trx\) =>/,
    ],
    [
      () => once.processBatch('a', { producer: 'p' } as never, run),
      /`sequences`/,
      /For a single message there is `process`/,
    ],
    [() => once.outcome('once:1:nonsense'), /id of a global transaction/, /looks like once:1:/],
    [
      () => once.outcome(`once:1:${randomUUID()}:${randomUUID()}:7`),
      /home/,
      /Add it: in that database once.database has the id/,
    ],
    [async () => pgonce(undefined as never), /`options`/, /pgonce\(\{ databases/],
    [async () => pgonce({} as never), /`databases`/, /pgonce\(\{ databases/],
  ] as const) {
    const error = await t.throwsAsync(attempt(), { instanceOf: InvalidInputError, code: 'ONARG', message })
    const said = (error as InvalidInputError).hint
    if (hint === undefined) t.is(said, undefined)
    else t.regex(said ?? '', hint)
  }
})

test('Options of the other kind of message are refused instead of ignored', async (t) => {
  const { once } = shared()
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

test('A client of no databases, of bad names or of what is no database is refused', (t) => {
  for (const databases of [
    {},
    { 'a:b': shared().a.url },
    { '': shared().a.url },
    { ['x'.repeat(64)]: shared().a.url },
    { a: 'localhost' },
    { a: 'mysql://localhost/x' },
    { a: null },
    { a: 7 },
    { a: {} },
    { a: () => 1 },
  ] as Record<string, string>[]) {
    t.throws(() => pgonce({ databases }), { instanceOf: InvalidInputError, code: 'ONARG' })
  }
  t.throws(() => pgonce({ databases: { a: shared().a.url }, maxConnections: 0 }), { code: 'ONARG' })
  const mistyped = { databases: { a: shared().a.url }, maxConections: 5 }
  t.throws(() => pgonce(mistyped), { code: 'ONARG', message: /the name of an option, got "maxConections"/ })
  const secret = t.throws(() => pgonce({ databases: { a: 'http://u:geheim@h/d' } }))
  t.false(secret?.message.includes('geheim'))
})
