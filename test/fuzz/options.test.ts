/**
 * Every public option of the TypeScript API and of the command line, with what it must not be given. Each call
 * begins as a good one, and then one or two of its parts are replaced. It succeeds, or fails with an error of ours
 * that names what is wrong; it never hangs, never keeps a connection, and never does a part of its work.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { CommanderError } from 'commander'
import fc from 'fast-check'
import { show } from '../../src/check.ts'
import { chooseDatabases, type DatabaseFlags } from '../../src/cli/databases.ts'
import { createProgram } from '../../src/cli/program.ts'
import {
  InvalidInputError,
  migrate,
  migrationSql,
  type Pgonce,
  PgonceError,
  pgonce,
} from '../../src/index.ts'
import { formatXid, parseXid, xaResource } from '../../src/xa/index.ts'
import { pgonceCli } from '../support/cli.ts'
import { client } from '../support/client.ts'
import { fileContext, randomName } from '../support/database.ts'
import { type EffectsDatabase, effectsDatabase } from '../support/effects.ts'
import { holds, stretch } from './runs.ts'

/** What a value of the caller's throws by itself is the caller's, and comes through. */
class Thrown extends Error {}
const thrower = () => {
  throw new Thrown('thrown by a value')
}

// ---------------------------------------------------------------------------------------------------
// Odd values

const revoked = (() => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
})()

const oddities: readonly unknown[] = [
  undefined,
  null,
  true,
  false,
  0,
  -0,
  1,
  -1,
  0.5,
  1e21,
  NaN,
  Infinity,
  -Infinity,
  2 ** 31,
  2 ** 53,
  -(2 ** 31),
  0n,
  -1n,
  2n ** 31n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n,
  10n ** 400n,
  '',
  ' ',
  '0',
  '1',
  'x',
  'x'.repeat(63),
  'x'.repeat(64),
  'x'.repeat(201),
  'x'.repeat(100_000),
  '😀'.repeat(200),
  '\0',
  'a\0b',
  '\ud800',
  'a\udc00',
  'null',
  "'",
  "'; drop table effect; --",
  '\\',
  '{}',
  '{NULL}',
  '$1',
  'read committed',
  'serializable; drop table effect',
  'await',
  'constructor',
  '__proto__',
  'toString',
  Symbol('odd'),
  Symbol.iterator,
  {},
  [],
  [undefined],
  [1, 2],
  ['x'],
  [[]],
  () => 1,
  async () => thrower(),
  class A {},
  Object.create(null),
  new Date(NaN),
  new Date(8.64e15),
  new Date(-8.64e15),
  new Date(0),
  new Map([[1, 2]]),
  new Set(['x']),
  new Uint8Array(0),
  new Uint8Array(65),
  new Uint16Array(3),
  Buffer.from('x'),
  new ArrayBuffer(8),
  new Number(5),
  new String('x'),
  Object(1n),
  /x/g,
  new Error('x'),
  new Proxy({}, {}),
  Promise.resolve(1),
  { toString: thrower },
  { valueOf: thrower, toString: () => '5' },
  { [Symbol.toPrimitive]: thrower },
  { toJSON: thrower },
  Object.freeze([1n]),
  new Array(3),
  AbortSignal.abort(),
  AbortSignal.abort(null),
  AbortSignal.abort('why'),
  new AbortController(),
  { aborted: false },
  revoked,
  new Proxy({}, { get: thrower, has: thrower, ownKeys: thrower }),
  new URL('postgres://127.0.0.1:1/x'),
  'postgres://',
  'postgres://[::',
  'postgres://127.0.0.1:99999/x',
  'postgres://127.0.0.1:1/x?host=/nowhere&port=x',
  'postgresql://%zz@127.0.0.1:1/x',
  'mysql://127.0.0.1/x',
  `once:1:${randomUUID()}:${randomUUID()}:1`,
]

/** In a wrapper, since fast-check looks into what it hands out, and some of it strikes back. */
interface Odd {
  readonly value: unknown
}

const wrap = (value: unknown): Odd => ({ value, [fc.toStringMethod]: () => show(value) }) as Odd

const odd: fc.Arbitrary<Odd> = fc.oneof(
  // What is right in some places.
  {
    weight: 2,
    arbitrary: fc
      .constantFrom<unknown>(undefined, 0, 1, 5n, 100, '1', 'x', true, false, new Date(), [], {}, () => {})
      .map(wrap),
  },
  { weight: 4, arbitrary: fc.constantFrom(...oddities.map(wrap)) },
  {
    weight: 1,
    arbitrary: fc
      .anything({
        withBigInt: true,
        withDate: true,
        withMap: true,
        withNullPrototype: true,
        withSparseArray: true,
        withTypedArray: true,
        maxDepth: 2,
      })
      .map(wrap),
  },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 210 }).map(wrap) },
)

// ---------------------------------------------------------------------------------------------------
// Calls

interface Stage {
  /** The id of a transaction. */
  readonly known: string
  readonly a: EffectsDatabase
  readonly b: EffectsDatabase
  readonly once: Pgonce<Record<string, { effect: { id: number } }>>
}

interface Target {
  readonly name: string
  /** Good arguments, anew for each call. */
  readonly args: (stage: Stage) => unknown[]
  readonly call: (stage: Stage, args: never[]) => unknown
}

/** As much of a handle as handlers here need. */
interface Inserts {
  insertInto(table: 'effect'): { values(row: { id: number }): { execute(): Promise<unknown> } }
}

let effects = 0
const handler = async (trx: Inserts | undefined, _: unknown, all?: Record<string, Inserts>) => {
  const id = effects++
  const handle = trx?.insertInto ? trx : all?.a
  await handle?.insertInto('effect').values({ id }).execute()
  return { id }
}
const everywhere = async (all: Record<string, Inserts>) => {
  const id = effects++
  for (const name of ['a', 'b']) await all[name]?.insertInto('effect').values({ id }).execute()
  return id
}
const options = () => ({
  signal: new AbortController().signal,
  timeout: 20_000,
  lockTimeout: 5_000,
  idleTimeout: 5_000,
  isolationLevel: 'read committed',
  finish: 'await',
  retries: 1,
  record: true,
})
const move = () => ({
  group: randomName('group'),
  topic: 'topic',
  partition: 0,
  epoch: 1,
  expected: null,
  next: 1n,
})

const targets: readonly Target[] = [
  {
    name: 'process by sequence',
    args: () => [
      'a',
      { producer: randomName('producer'), sequence: 0n, epoch: 0, strict: false },
      handler,
      options(),
    ],
    call: ({ once }, args) => once.process(...(args as unknown as Parameters<typeof once.process>)),
  },
  {
    name: 'process by key',
    args: () => [
      'b',
      { scope: 'scope', key: randomName('key'), occurredAt: new Date(), payload: 'x', keepResult: true },
      handler,
    ],
    call: ({ once }, args) => once.process(...(args as unknown as Parameters<typeof once.process>)),
  },
  {
    name: 'process by key and hash',
    args: () => [
      'b',
      { scope: randomName('scope'), key: randomName('key'), payloadHash: new Uint8Array(32) },
      handler,
      { ...options(), position: move() },
    ],
    async call({ once }, args) {
      // Where it cannot be taken, the move says so.
      const { position: moved } = (args[3] ?? {}) as {
        position?: { group: string; topic: string; partition: number }
      }
      if (typeof moved?.group === 'string') await once.takePartition('b', moved).catch(() => {})
      await once.process(...(args as unknown as Parameters<typeof once.process>))
    },
  },
  {
    name: 'processBatch of sequences',
    args: () => [
      'a',
      { producer: randomName('producer'), sequences: [0n, 1, 2n], epoch: 0, strict: true },
      handler,
      options(),
    ],
    call: ({ once }, args) => once.processBatch(...(args as unknown as Parameters<typeof once.processBatch>)),
  },
  {
    name: 'processBatch of keys',
    args: () => [
      'a',
      {
        scope: randomName('scope'),
        messages: [randomName('key'), { key: randomName('key'), occurredAt: new Date(), payload: 'x' }],
      },
      handler,
      {},
    ],
    call: ({ once }, args) => once.processBatch(...(args as unknown as Parameters<typeof once.processBatch>)),
  },
  {
    name: 'transaction',
    args: () => [everywhere, { ...options(), home: 'b' }],
    call: ({ once }, args) => once.transaction(...(args as unknown as Parameters<typeof once.transaction>)),
  },
  {
    name: 'takePartition',
    args: () => ['a', { group: randomName('group'), topic: 'topic', partition: 0 }, 'owner'],
    call: ({ once }, args) =>
      once.takePartition(...(args as unknown as Parameters<typeof once.takePartition>)),
  },
  {
    name: 'readPosition',
    args: () => ['a', { group: randomName('group'), topic: 'topic', partition: 0 }],
    call: ({ once }, args) => once.readPosition(...(args as unknown as Parameters<typeof once.readPosition>)),
  },
  { name: 'outcome', args: ({ known }) => [known], call: ({ once }, args) => once.outcome(args[0] as never) },
  {
    name: 'recovery.run',
    args: () => [{ settle: 60_000, keep: 600_000, purge: true }],
    call: ({ once }, args) => once.recovery.run(...args),
  },
  {
    name: 'recovery.start',
    args: () => [{ interval: 60_000, keep: 600_000, onReport: () => {} }],
    async call({ once }, args) {
      await using running = once.recovery.start(...args)
      running.poke()
    },
  },
  {
    name: 'pgonce',
    args: ({ a, b }) => [
      { databases: { a: a.url, b: b.url }, maxConnections: 2, connectTimeout: 2_000, transaction: options() },
    ],
    async call(_, args) {
      await using once = pgonce<Record<string, { effect: { id: number } }>>(...(args as unknown as [never]))
      await once.transaction(everywhere as never)
    },
  },
  {
    name: 'migrate',
    args: ({ a }) => [
      a.url,
      { dryRun: true, connectTimeout: 2_000, lockTimeout: 1_000, onProgress: () => {} },
    ],
    call: (_, args) => migrate(...(args as unknown as Parameters<typeof migrate>)),
  },
  { name: 'migrationSql', args: () => [{ from: 0 }], call: (_, args) => migrationSql(...args) },
  {
    name: 'xaResource',
    args: ({ a }) => [a.url, { maxConnections: 1, connectTimeout: 2_000, timeout: 2_000 }],
    async call(_, args) {
      await using resource = xaResource(...(args as unknown as Parameters<typeof xaResource>))
      await resource.recover()
    },
  },
  {
    name: 'formatXid',
    args: () => [{ formatId: 1, gtrid: 'order', bqual: new Uint8Array(3) }],
    call: (_, args) => formatXid(args[0] as never),
  },
  { name: 'parseXid', args: () => ['1_YQ==_Yg=='], call: (_, args) => parseXid(args[0] as never) },
  {
    name: 'xa verbs',
    args: () => [
      { formatId: 1, gtrid: randomUUID(), bqual: 'a' },
      0,
      0x04000000,
      { formatId: 1, gtrid: 'other', bqual: 'a' },
      0,
      0x01800000,
    ],
    async call({ a }, [xid, startFlags, endFlags, other, commitFlags, recoverFlags]) {
      await using resource = xaResource(a.url, { maxConnections: 2, timeout: 5_000 })
      await resource.recover(recoverFlags)
      const trx = await resource.start(xid as never, startFlags)
      try {
        await (trx as never as Inserts).insertInto('effect').values({ id: effects++ }).execute()
        await resource.end(xid as never, endFlags)
        await resource.prepare(xid as never)
        await resource.rollback(xid as never)
      } catch (error) {
        // What cannot be ended well ends with the resource.
        if (!(error instanceof PgonceError)) throw error
      }
      await resource.commit(other as never, commitFlags).catch((error: { code: string }) => {
        if (error.code !== 'XAER_NOTA') throw error
      })
      await resource.forget(other as never).catch((error: { code: string }) => {
        if (error.code !== 'XAER_NOTA') throw error
      })
    },
  },
]

type Path = readonly (string | number)[]

/** All places in arguments that can be replaced. */
function pathsOf(value: unknown, path: Path = []): Path[] {
  const inner =
    typeof value === 'object' &&
    value !== null &&
    (Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype)
      ? Object.entries(value).flatMap(([key, part]) => pathsOf(part, [...path, key]))
      : []
  return path.length === 0 ? inner : [path, ...inner]
}

function replace(value: unknown, [key, ...rest]: Path, by: unknown, how: 'value' | 'getter'): void {
  // Another replacement may have taken it away.
  if (typeof value !== 'object' || value === null || key === undefined) return
  if (rest.length > 0) {
    const descriptor = Reflect.getOwnPropertyDescriptor(value, key)
    replace(descriptor?.value, rest, by, how)
    return
  }
  if (how === 'getter')
    Reflect.defineProperty(value, key, { get: thrower, enumerable: true, configurable: true })
  else Reflect.set(value, key, by)
}

interface Case {
  readonly target: string
  readonly changes: readonly { readonly path: Path; readonly by: Odd; readonly how: 'value' | 'getter' }[]
}

const casesOf = (target: Target, stage: Stage): fc.Arbitrary<Case> =>
  fc.record({
    target: fc.constant(target.name),
    changes: fc.array(
      fc.record({
        path: fc.constantFrom(...pathsOf(target.args(stage))),
        by: odd,
        how: fc.oneof(
          { weight: 12, arbitrary: fc.constant('value' as const) },
          { weight: 1, arbitrary: fc.constant('getter' as const) },
        ),
      }),
      { minLength: 1, maxLength: 2, size: 'small' },
    ),
  })

const ofAll = fileContext(test.after.always)
let stage: Stage

test.before(async () => {
  const [a, b] = await Promise.all([effectsDatabase(ofAll, 'a'), effectsDatabase(ofAll, 'b')])
  const once = client(ofAll, { a: a.url, b: b.url }, { maxConnections: 2 }) as unknown as Stage['once']
  const { id } = await once.transaction(everywhere as never)
  stage = { a, b, once, known: String(id) }
  await stage.once.takePartition('a', { group: 'probe', topic: 'probe' })
})

/** What is left of a call: rows of each kind, in both databases. */
async function census(): Promise<string> {
  const query = `
    select (select count(*) from effect) as effects, (select count(*) from once.producer) as producers,
           (select count(*) from once.message) as messages, (select count(*) from once.scope) as scopes,
           (select count(*) from once.consumer_position) as positions, (select count(*) from once.global_transaction) as decisions,
           (select count(*) from once.evidence) as evidence,
           (select count(*) from pg_prepared_xacts where database = current_database()) as prepared,
           (select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%') as open`
  return JSON.stringify(await Promise.all([stage.a, stage.b].map(({ sql }) => sql.unsafe(query))))
}

async function inTime<T>(milliseconds: number, what: string, work: () => T | Promise<T>): Promise<T> {
  const done = new AbortController()
  const late = sleep(milliseconds, undefined, { signal: done.signal }).then(
    () => {
      throw new Error(`${what}: no end after ${milliseconds} ms`)
    },
    () => undefined as never,
  )
  try {
    return await Promise.race([(async () => await work())(), late])
  } finally {
    done.abort()
  }
}

function checkError(error: unknown, { changes }: Case): void {
  if (error instanceof Thrown) return
  // What a revoked proxy throws at every touch.
  if (error instanceof TypeError && /on a proxy that has been revoked/.test(error.message)) return
  // A class is as good a handler as any function until it is called.
  if (error instanceof TypeError && /^Class constructor A cannot be invoked/.test(error.message)) return
  if (!(error instanceof PgonceError))
    throw new Error(`not ours: ${String(error)}\n${(error as Error)?.stack}`)
  if (error.message.length > 500) throw new Error(`too long: ${error.message}`)
  if (error.message.includes('[object Object]') && !/got \[object Object\]/.test(error.message))
    throw new Error(`says nothing: ${error.message}`)
  if (!(error instanceof InvalidInputError) || changes.length > 1) return
  // It names what is wrong: the option, or what it is part of, or the value.
  const keys = changes.flatMap(({ path }) => path).filter((key) => !/^\d+$/.test(String(key)))
  const words = [...keys.map(String), 'got', 'No database named', 'cannot be read']
  if (!words.some((word) => error.message.includes(word)))
    throw new Error(`does not say what is wrong: ${error.message}`)
  if (!/Expected|No database|None of|cannot be read/.test(error.message))
    throw new Error(`does not say what was expected: ${error.message}`)
}

for (const target of targets) {
  test.serial(`${target.name}: any argument is taken, or refused with an error that says why`, async (t) => {
    t.timeout(300_000 * stretch)
    const tally = { succeeded: 0, refused: 0 }
    await t.notThrowsAsync(
      async () => target.call(stage, target.args(stage) as never[]),
      'as it is, it is good',
    )
    await holds(
      t,
      target.name,
      casesOf(target, stage),
      async (one) => {
        const before = await census()
        const args = target.args(stage)
        for (const { path, by, how } of one.changes) replace(args, path, by.value, how)
        let failed = false
        try {
          await inTime(30_000, target.name, () => target.call(stage, args as never[]))
          tally.succeeded += 1
        } catch (error) {
          if (/no end after/.test((error as Error)?.message)) throw error
          failed = true
          tally.refused += 1
          checkError(error, one)
        }
        // All connections are free: as many at once as there are.
        await inTime(5_000, 'the next call', () =>
          Promise.all([1, 2].map(() => stage.once.takePartition('a', { group: 'probe', topic: 'probe' }))),
        )
        if (!failed) return
        const after = await census()
        // The partition was taken by the test.
        const comparable = (text: string) =>
          target.name.endsWith('hash') ? text.replaceAll(/"positions":"\d+"/g, '') : text
        if (comparable(after) !== comparable(before))
          throw new Error(`it failed, and left something: ${before} became ${after}`)
      },
      60,
    )
    t.log(`${tally.succeeded} taken, ${tally.refused} refused`)
  })
}

// ---------------------------------------------------------------------------------------------------
// What was found here once

test.serial('What was found here once stays found', async (t) => {
  const { once, a } = stage
  const nothing = async () => {}
  const wrong = (value: unknown) => value as never
  const key = { scope: 'found', key: 'k' }
  const calls: readonly [named: string, call: () => unknown][] = [
    ['options', () => pgonce(wrong(undefined))],
    ['databases', () => pgonce({ databases: wrong(null) })],
    ['timeout', () => pgonce({ databases: { a: a.url }, transaction: { timeout: 0 } })],
    ['signal', () => pgonce({ databases: { a: a.url }, transaction: wrong({ signal: {} }) })],
    ['handler', () => once.transaction(wrong(undefined))],
    ['handler', () => once.process('a', { producer: 'found', sequence: 1 }, wrong('x'))],
    ['signal', () => once.process('a', { producer: 'found', sequence: 1 }, nothing, wrong({ signal: 'x' }))],
    ['strict', () => once.process('a', wrong({ producer: 'found', sequence: 1, strict: 'x' }), nothing)],
    ['partition', () => once.process('a', key, nothing, wrong({ position: null }))],
    ['payload', () => once.process('a', wrong({ ...key, payload: 5 }), nothing)],
    ['occurredAt', () => once.process('a', { ...key, occurredAt: new Date(8.64e15) }, nothing)],
    ['keepResult', () => once.process('a', wrong({ ...key, keepResult: 'x' }), nothing)],
    // Two keys that were one, so that the second message was dropped as a duplicate.
    ['key', () => once.process('a', { ...key, key: 'k\ud800' }, nothing)],
    ['handler', () => once.process('a', { ...key, keepResult: true }, async () => ({ text: '\ud800' }))],
    ['sequences', () => once.processBatch('a', wrong({ producer: 'found', sequences: 5 }), nothing)],
    ['sequence', () => once.processBatch('a', { producer: 'found', sequences: new Array(3) }, nothing)],
    ['messages', () => once.processBatch('a', wrong({ scope: 'found', messages: 'x' }), nothing)],
    ['message', () => once.processBatch('a', wrong({ scope: 'found', messages: [null] }), nothing)],
    ['batch', () => once.processBatch('a', wrong(null), nothing)],
    ['partition', () => once.takePartition('a', wrong(undefined))],
    ['partition', () => once.readPosition('a', wrong(null))],
    ['id', () => once.outcome(wrong(Object.create(null)))],
    ['options', () => once.recovery.run(wrong(null))],
    ['onReport', () => once.recovery.start(wrong({ onReport: 'x' }))],
    ['lockTimeout', () => migrate(a.url, { lockTimeout: wrong(Object.create(null)) })],
    ['from', () => migrationSql({ from: wrong(Symbol('x')) })],
    ['options', () => xaResource(a.url, wrong(null))],
    ['gid', () => parseXid(wrong(Symbol('x')))],
  ]
  // A whole number is one as a bigint too.
  await once.transaction(nothing, { timeout: 5_000n as never, retries: 1n as never })
  const before = await census()
  for (const [named, call] of calls) {
    const error = await (async () => await call())().then(
      () => undefined,
      (reason: unknown) => reason,
    )
    t.true(error instanceof PgonceError, `${named}: ${String(error)} ${call}`)
    t.true((error as Error)?.message.includes(named), `${named}: ${String(error)} ${call}`)
  }
  t.is(await census(), before)
})

// ---------------------------------------------------------------------------------------------------
// Names and results come back as they went in

test.serial('A name is kept as it is, or refused: no two of them become one', async (t) => {
  const any = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 210 }),
    fc
      .array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 12 })
      .map((units) => String.fromCharCode(...units)),
    fc.constantFrom(...oddities.filter((value): value is string => typeof value === 'string')),
  )
  const { once, a } = stage
  await holds(
    t,
    'names',
    any,
    async (name) => {
      const good = name !== '' && [...name].length <= 200 && name.isWellFormed() && !name.includes('\0')
      const group = randomName('group')
      try {
        await once.takePartition('a', { group, topic: name, partition: 1 }, name)
        await once.process('a', { producer: `${group}${name}`.slice(0, 200), sequence: 1 }, async () => {})
        await once.process('a', { scope: group, key: name }, async () => {})
        const found = await once.readPosition('a', { group, topic: name, partition: 1 })
        if (found?.owner !== name) throw new Error(`the owner came back as ${JSON.stringify(found?.owner)}`)
        const [row] = await a.sql`select topic from once.consumer_position where consumer_group = ${group}`
        if (row?.topic !== name) throw new Error(`the topic came back as ${JSON.stringify(row?.topic)}`)
      } catch (error) {
        if (good || !(error instanceof InvalidInputError)) throw error
        return
      }
      if (!good) throw new Error('it was not refused')
    },
    100,
  )
})

test.serial('What a handler returns is kept as JSON has it, or everything is rolled back', async (t) => {
  const { once, a } = stage
  await holds(
    t,
    'results',
    odd,
    async ({ value: result }) => {
      const message = { scope: 'results', key: randomName('key'), keepResult: true }
      const id = effects++
      let json: string | undefined
      try {
        json = JSON.stringify(result ?? null)
      } catch {
        // Not for JSON.
      }
      const handle = async (trx: Inserts) => {
        await trx.insertInto('effect').values({ id }).execute()
        return { result: result as never }
      }
      const error = await once.process('a', message, handle as never).then(
        () => undefined,
        (reason: unknown) => reason,
      )
      const [row] = await a.sql`select from effect where id = ${id}`
      if (error !== undefined) {
        if (!(error instanceof InvalidInputError)) throw new Error(`not ours: ${(error as Error).stack}`)
        if (row !== undefined) throw new Error('it failed, and took effect')
        return
      }
      const again = await once.process('a', message, handle as never)
      if (again.status !== 'duplicate') throw new Error(`the second was ${again.status}`)
      const kept = JSON.stringify((again.result as { result?: unknown }).result)
      // jsonb keeps no order of keys, and only the last of two.
      const plain = (text: string | undefined) => JSON.stringify([...(text ?? '')].sort())
      if (
        json !== undefined &&
        result !== undefined &&
        !/e[+-]?\d|\d{16}|-0/.test(json) &&
        plain(kept) !== plain(json)
      )
        throw new Error(`kept as ${kept}, was ${json}`)
    },
    60,
  )
})

// ---------------------------------------------------------------------------------------------------
// The command line

const secret = 'p4ssw0rd-of-ours'
const words = fc.oneof(
  fc.constantFrom(
    '--database',
    '--database=',
    '--database=a=postgres://127.0.0.1:1/x',
    `--database=a=postgres://u:${secret}@127.0.0.1:1/x`,
    `postgres://u:${secret}@127.0.0.1:1/x`,
    `--database=postgres://u:${secret}@127.0.0.1:1/x`,
    `a=postgres://u:${secret}@127.0.0.1:1/x`,
    `u:${secret}@127.0.0.1/x`,
    '--json',
    '--keep',
    '--keep=-1',
    '--keep=1e9',
    '--keep=0x10',
    '--keep=99999999999',
    '--keep=',
    '--max-connections',
    '--max-connections=NaN',
    '--max-connections=-5',
    '--max-connections=0',
    '--max-connections=1.5',
    '--batch',
    '--dry-run',
    '--sql',
    '--from=-1',
    '--port',
    '--port=70000',
    '--help',
    '--version',
    '-h',
    '--',
    '-',
    '',
    '--bogus',
    '--=',
    '-x',
    '--listen=x',
    '--listen=99999',
    '--json=yes',
    '__proto__',
    '--constructor',
    '--toString=1',
    '\ud800',
    "'; drop table effect; --",
  ),
  fc.string({ unit: 'grapheme', maxLength: 20 }),
  fc.string({ unit: fc.constantFrom(...'-=: /@a1'), maxLength: 12 }),
)
const commands = ['migrate', 'doctor', 'in-doubt', 'recover', 'expire', 'metrics', 'dev']
const commandLine = fc.tuple(
  fc.oneof({ weight: 8, arbitrary: fc.constantFrom(...commands) }, { weight: 1, arbitrary: words }),
  fc.array(words, { maxLength: 5 }),
)

class Parsed extends Error {}

test('Any command line is understood, or refused without giving a password away', async (t) => {
  await holds(
    t,
    'arguments',
    commandLine,
    async ([command, rest]) => {
      let said = ''
      const write = (text: string) => {
        said += text
      }
      const program = createProgram('0.0.0', { writeOut: write, writeErr: write })
      program.hook('preAction', (_, chosen) => {
        if (chosen.name() !== 'dev') chooseDatabases(chosen.args, chosen.opts() as DatabaseFlags)
        throw new Parsed()
      })
      try {
        await program.parseAsync([command, ...rest], { from: 'user' })
      } catch (error) {
        const fine =
          error instanceof Parsed || error instanceof CommanderError || error instanceof InvalidInputError
        if (!fine) throw new Error(`not ours: ${(error as Error).stack}`)
        // What commander says has been written.
        if (!(error instanceof CommanderError)) said += (error as Error).message
      }
      if (said.includes(secret)) throw new Error(`it gives the password away: ${said}`)
    },
    400,
  )
})

test('A command line ends with 0, 1 or 2, without a stack and without a password', async (t) => {
  t.timeout(120_000 * stretch)
  await holds(
    t,
    'processes',
    commandLine.filter(
      ([command, rest]) => command !== 'dev' && !rest.some((word) => /^--(watch|listen)|\0/.test(word)),
    ),
    async ([command, rest]) => {
      const { exitCode, stdout, stderr } = await inTime(30_000, 'pgonce', () => pgonceCli([command, ...rest]))
      if (![0, 1, 2].includes(exitCode ?? -1)) throw new Error(`exit code ${exitCode}: ${stderr}`)
      if (/\n {4}at /.test(stderr)) throw new Error(`a stack: ${stderr}`)
      if (stderr.includes('PGONCE_DEBUG')) throw new Error(`a fault of ours: ${stderr}`)
      if (`${stdout}${stderr}`.includes(secret))
        throw new Error(`it gives the password away: ${stdout}${stderr}`)
      if (exitCode !== 0 && stderr === '' && stdout === '') throw new Error('it fails in silence')
    },
    4,
  )
})
