/** Databases of callers: how they are reached, and what is said of those that will not do. */
import { randomUUID } from 'node:crypto'
import { inspect } from 'node:util'
import test from 'ava'
import { CamelCasePlugin, CompiledQuery, type Generated, type Kysely, sql } from 'kysely'
import postgres from 'postgres'
import { AbortedError, DatabaseError, LimitError, pgonce } from '../src/index.ts'
import { client, kyselyOnPg, type Two } from './support/client.ts'
import {
  connect,
  emptyDatabase,
  installSchema,
  makeStandby,
  ownServer,
  testDatabase,
  testRole,
} from './support/database.ts'
import { type Effects, effectsDatabase, twoDatabases } from './support/effects.ts'
import { askForPasswords, hostedDatabase } from './support/hosted.ts'
import { fresh, seen, sharedShop } from './support/shop.ts'

const shared = sharedShop()

interface Camel {
  effect: { id: number; note: Generated<string> }
  camelCase: { someValue: string; bigNumber: string }
}

test('A serializer of the caller’s that throws fails its statement, and nothing is sent in its place', async (t) => {
  const a = await effectsDatabase(t)
  await a.sql`create table note (words text)`
  const serialize = (value: unknown) => {
    if (value === 'bad') throw new Error('no such word')
    return value
  }
  const { hostname, port, pathname, username } = new URL(a.url)
  const words = { to: 25, from: [25], serialize, parse: (text: string) => text }
  const at = { host: hostname, port: Number(port), database: pathname.slice(1), username }
  const once = pgonce<{ a: { note: { words: string } } }>({
    databases: { a: { ...at, max: 1, types: { words } } },
  })
  t.teardown(once.close)
  const note = (sequence: number, said: string) =>
    once.process('a', { producer: 'p', sequence }, (trx) =>
      trx.insertInto('note').values({ words: said }).execute(),
    )
  await note(0, 'good')
  await t.throwsAsync(note(1, 'bad'), { code: 'ONARG', message: /could not be put into words/ })
  await note(1, 'better')
  t.deepEqual(
    (await a.sql`select words from note order by words`).map((row) => row.words),
    ['better', 'good'],
  )
})

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
    const once = client<Two>(t, { a: own, b: shared().b.url })
    const id = fresh()
    const partition = { group: randomUUID(), topic: 't' }
    const { epoch } = await once.takePartition('a', partition)
    const message = { producer: randomUUID(), sequence: 2n ** 60n }
    const move = { ...partition, epoch, expected: null, next: 2n ** 61n }
    const deliver = () =>
      once.process(
        'a',
        message,
        async (trx, { b }) => {
          await trx.insertInto('effect').values({ id }).execute()
          await b.insertInto('effect').values({ id }).execute()
        },
        { position: move },
      )
    const first = await deliver()
    t.like(first, { status: 'processed', finished: true })
    if (first.status !== 'processed' || first.id === null) return t.fail('expected a recorded transaction')
    t.is(await once.outcome(first.id), 'committed')
    t.is((await once.process('a', message, async () => t.fail())).status, 'duplicate')
    t.like(await once.readPosition('a', partition), { position: 2n ** 61n })
    const scope = randomUUID()
    const keys = { scope, messages: ['k', { key: 'l', occurredAt: new Date() }] }
    t.deepEqual((await once.processBatch('a', keys, async () => 1)).claimed, ['k', 'l'])
    t.like(await once.processBatch('a', { ...message, sequences: [2n ** 60n, 7n] }, async () => 1), {
      claimed: [7n],
    })
    t.is((await once.recovery.run({ keep: 0 })).purged >= 1, true)
    t.deepEqual(await once.recovery.audit(), [])
    await once.close()
    t.is((await own`select 1 as one`)[0]?.one, 1, 'the instance stays its owner’s')
  }
})

test('Of a postgres.js instance we take the options only: its own pool is left alone, whatever it can do', async (t) => {
  const { a } = shared()
  const own = connect(t, a.url, { fetch_types: false, max: 1, transform: postgres.camel })
  const once = client<{ a: Effects }>(t, { a: own } as never)
  const id = fresh()
  await once.transaction(({ a: trx }) => trx.insertInto('effect').values({ id }).execute())
  t.is(await seen(shared(), id), 'a')
})

test('Options of postgres.js will do as a URL does', async (t) => {
  const { a } = shared()
  const { hostname, port, pathname, username, password } = new URL(a.url)
  const target = {
    host: hostname,
    port: Number(port),
    database: pathname.slice(1),
    username,
    password,
    max: 2,
  }
  const once = client<{ a: Effects }>(t, { a: target } as never)
  const id = fresh()
  await Promise.all(
    [id, fresh(), fresh()].map((one) =>
      once.transaction(({ a: trx }) => trx.insertInto('effect').values({ id: one }).execute()),
    ),
  )
  t.is(await seen(shared(), id), 'a')
})

test('A Kysely instance on pg works alone and beside postgres.js in one two-phase commit', async (t) => {
  const [a, c] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'a')])
  await a.sql`create table camel_case (some_value text, big_number int8)`
  const db = kyselyOnPg<Camel>(t, a.url, { plugins: [new CamelCasePlugin()] })
  const other = kyselyOnPg<Effects>(t, shared().b.url)
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
    t.true((await c.effects()).includes(id) && (await shared().b.effects()).includes(id))
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
  t.is((await once.recovery.run({ keep: 0 })).purged, 3)
  await once.close()
  t.deepEqual(await db.selectFrom('camelCase').select('someValue').orderBy('someValue').execute(), [
    { someValue: 'a' },
    { someValue: 'b' },
    { someValue: 'c' },
  ])
})

test('The handler gets Kysely’s own transaction, with the plugins of the instance it came from', async (t) => {
  const own = kyselyOnPg<Camel>(t, shared().a.url, { plugins: [new CamelCasePlugin()] })
  const once = client<{ a: Camel }>(t, { a: own })
  await once.transaction(async ({ a }) => {
    t.true(a.isTransaction)
    t.is(a.selectFrom('camelCase').select('someValue').compile().sql, 'select "some_value" from "camel_case"')
    await t.throwsAsync(async () => (a as Kysely<Camel>).transaction().execute(async () => 1))
  })
})

test('Values of every kind survive the way into a handler’s statement and back', async (t) => {
  const date = new Date('2026-01-02T03:04:05.678Z')
  const { result } = await shared().once.transaction(async ({ a }) => {
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

test('With no more than its grants an application does everything: both ledgers, positions, two phases, outcome', async (t) => {
  const [a, b] = await twoDatabases(t)
  const urls = await Promise.all(
    [a, b].map(async (database) => {
      const role = await testRole(t, database)
      await database.sql`select once.grant_app(${role})`
      await database.sql.unsafe(`grant select, insert on effect to ${role}`)
      return database.urlAs(role)
    }),
  )
  const once = client<Two>(t, { a: urls[0] as string, b: urls[1] as string })
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
      home === 'a' ? { position: { ...partition, epoch, expected: null, next: 1 } } : {},
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
  const { unreachable } = await once.recovery.run()
  t.is(unreachable.length, 1)
  t.regex(unreachable[0]?.reason ?? '', /standby/)
})

test('Connections over the options of an instance of postgres.js are called pgonce, unless it has a name', async (t) => {
  const nameOver = async (connection: Record<string, string>) => {
    const instance = connect(t, shared().a.url, { connection })
    const once = client<{ a: Effects }>(t, { a: instance })
    const asked = CompiledQuery.raw("select current_setting('application_name') as name")
    const { result } = await once.transaction(({ a }) => a.executeQuery<{ name: string }>(asked))
    return result.rows[0]?.name
  }
  t.is(await nameOver({}), 'pgonce')
  t.is(await nameOver({ application_name: 'shop' }), 'shop')
})

test('Two names for one database are refused, as its two branches would wait for each other', async (t) => {
  const { a } = shared()
  const direct = new URL(a.url)
  direct.searchParams.set('application_name', 'same')
  const once = client<{ x: Effects; y: Effects }>(t, { x: a.url, y: direct.href })
  const both = once.transaction(async ({ x, y }) => {
    await x.selectFrom('effect').selectAll().execute()
    await y.selectFrom('effect').selectAll().execute()
  })
  await t.throwsAsync(both, { code: 'SAME_DATABASE', message: /x and y|y and x/ })
})

test('A copy of a database is refused until it has an id of its own', async (t) => {
  const { sql: admin, url, name } = await testDatabase(t)
  const copy = `${name}_copy`
  await admin.end({ timeout: 1 })
  const control = connect(t, shared().a.url)
  await control.unsafe(`create database ${copy} template ${name}`)
  t.teardown(() => control.unsafe(`drop database ${copy} with (force)`))
  const once = client<Two>(t, { a: url, b: url.replace(name, copy) })
  await t.throwsAsync(
    once.process('b', { producer: 'p', sequence: 0 }, async () => 1),
    { code: 'ONCPY' },
  )
  const inside = connect(t, url.replace(name, copy))
  await inside`select once.renew_database_id('test')`
  t.is((await once.process('b', { producer: 'p', sequence: 0 }, async () => 1)).status, 'processed')
  await once.close()
  await inside.end()
})

test('A database that is down is named, and used again as soon as it is back', async (t) => {
  const server = await ownServer(t)
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

test('Sessions whose default is synchronous_commit off or repeatable read are no obstacle', async (t) => {
  const [a, b] = await twoDatabases(t)
  for (const { sql: admin, name } of [a, b]) {
    await admin.unsafe(`alter database ${name} set synchronous_commit = off`)
    await admin.unsafe(`alter database ${name} set default_transaction_isolation = 'repeatable read'`)
  }
  const once = client<Two>(t, { a: a.url, b: b.url })
  const { id, result } = await once.transaction(async ({ a, b }) => {
    await a.insertInto('effect').values({ id: 1 }).execute()
    await b.insertInto('effect').values({ id: 1 }).execute()
    return await sql<{ lsn: string }>`select pg_current_wal_insert_lsn()::text as lsn`.execute(a)
  })
  const [flushed] = await a.sql`select pg_current_wal_flush_lsn() > ${result.rows[0]?.lsn ?? ''} as yes`
  t.true(flushed?.yes, 'the commit waited for its flush')
  t.is(await once.outcome(id ?? ''), 'committed')
  await once.process('a', { producer: 'p', sequence: 0 }, async () => 1)
  t.is((await once.recovery.run({ keep: 0 })).purged, 1)
  t.deepEqual(await once.recovery.audit(), [])
})
