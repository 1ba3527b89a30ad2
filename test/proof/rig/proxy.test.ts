import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import postgres from 'postgres'
import {
  type Message,
  type ProxyOptions,
  startProxy,
  type Proxy as TcpProxy,
} from '../../../proof/rig/proxy/index.ts'
import { conversation, type Direction } from '../../../proof/rig/proxy/protocol.ts'
import { connect } from '../../support/database.ts'
import { type EffectsDatabase, effectsDatabase } from '../../support/effects.ts'
import { until } from '../../support/until.ts'

interface Between {
  readonly database: EffectsDatabase
  readonly proxy: TcpProxy
  /** One connection through the proxy, which does not connect again. */
  readonly sql: postgres.Sql
  readonly messages: Message[]
}

async function between(t: ExecutionContext, options: Partial<ProxyOptions> = {}): Promise<Between> {
  const database = await effectsDatabase(t)
  const messages: Message[] = []
  const proxy = await startProxy({
    target: database.url,
    observe: (message) => messages.push(message),
    ...options,
  })
  t.teardown(() => proxy.close())
  const sql = connect(t, proxy.url(database.url), { fetch_types: false, connect_timeout: 5 })
  await sql`select 1`
  messages.length = 0
  return { database, proxy, sql, messages }
}

const saidBy = (messages: readonly Message[], direction: Direction) =>
  messages.filter((message) => message.direction === direction).map(({ name }) => name)

const insert = (sql: postgres.ISql, id: number) => sql`insert into effect (id) values (${id})`

test('Messages of the simple and of the extended protocol are known by name, statement and tag', async (t) => {
  const { sql, messages } = await between(t)
  await sql.unsafe('select 1; select 2').simple()
  t.deepEqual(saidBy(messages, 'client'), ['Query'])
  t.deepEqual(saidBy(messages, 'server'), [
    'RowDescription',
    'DataRow',
    'CommandComplete',
    'RowDescription',
    'DataRow',
    'CommandComplete',
    'ReadyForQuery',
  ])
  t.true(messages.every(({ statement }) => statement === 'select 1; select 2'))

  for (const again of [false, true]) {
    messages.length = 0
    await insert(sql, again ? 2 : 1)
    // The first time it asks for the parameters' types, and waits for them.
    const parsed = again ? [] : ['Parse', 'Describe', 'Flush']
    t.deepEqual(saidBy(messages, 'client').sort(), [...parsed, 'Bind', 'Execute', 'Sync'].sort())
    const done = messages.find(({ name }) => name === 'CommandComplete')
    t.like(done, { tag: 'INSERT 0 1', statement: 'insert into effect (id) values ($1)' })
    t.like(
      messages.findLast(({ name }) => name === 'Execute'),
      { statement: done?.statement },
    )
    t.like(messages.at(-1), { name: 'ReadyForQuery', statement: done?.statement })
  }
})

test('Statements that are sent ahead are told apart, also behind one that fails', async (t) => {
  const { sql, messages } = await between(t)
  await t.throwsAsync(
    sql.begin((inside) =>
      Promise.all([insert(inside, 1), inside`select 1/${0}::int as nothing`, inside`select 'behind' as it`]),
    ),
  )
  const answers = messages.filter(({ name }) => name === 'ErrorResponse' || name === 'CommandComplete')
  t.deepEqual(
    answers.map(({ statement, tag }) => [statement?.slice(0, 9), tag]),
    [
      ['begin ', 'BEGIN'],
      ['insert in', 'INSERT 0 1'],
      ['select 1/', undefined],
      ["select 'b", undefined],
      ['rollback', 'ROLLBACK'],
    ].map(([statement, tag]) => [statement?.slice(0, 9), tag]),
  )
})

test('However the stream is cut into chunks, the messages are the same', async (t) => {
  const { database } = await between(t)
  const recorded: Message[] = []
  await using proxy = await startProxy({
    target: database.url,
    observe: (message) => recorded.push(message),
  })
  const sql = postgres(proxy.url(database.url), { max: 1, fetch_types: false })
  await insert(sql, 1)
  await sql`select id, note from effect`
  await t.throwsAsync(sql`select 1/0`)
  await sql.end()
  const told = ({ direction, name, statement, tag, bytes }: Message) =>
    [direction, name, statement, tag, bytes.toString('hex')].join()
  fc.assert(
    fc.property(fc.infiniteStream(fc.integer({ min: 1, max: 9 })), (sizes) => {
      const { read } = conversation()
      const again: Message[] = []
      for (const { direction, bytes } of recorded)
        for (let at = 0; at < bytes.length; ) {
          const size = sizes.next().value
          again.push(...read(direction, bytes.subarray(at, at + size)))
          at += size
        }
      t.deepEqual(again.map(told), recorded.map(told))
    }),
    { numRuns: 20 },
  )
})

test('A client that asks for encryption first is told what the server says, and goes on', async (t) => {
  const { database, proxy, messages } = await between(t)
  const sql = connect(t, proxy.url(database.url), { ssl: 'prefer', fetch_types: false })
  t.is((await sql`select 1 as one`)[0]?.one, 1)
  t.deepEqual(saidBy(messages, 'client').slice(0, 2), ['SSLRequest', 'StartupMessage'])
  t.is(saidBy(messages, 'server')[0], 'EncryptionResponse')
})

test('kill: the message passes, and nothing after it', async (t) => {
  const { database, proxy, sql } = await between(t)
  const rule = proxy.inject({
    when: { direction: 'client', message: 'Execute', text: /^commit/ },
    action: 'kill',
  })
  await t.throwsAsync(sql.begin((inside) => insert(inside, 1)))
  await until('it is committed', async () => (await database.effects()).length === 1)
  t.is(rule.count, 1)
  t.like(rule.hits[0], { name: 'Execute', statement: 'commit', closed: true })
})

test('kill at an answer: the client has heard it', async (t) => {
  const { proxy, sql } = await between(t)
  const rule = proxy.inject({ when: { direction: 'server', message: 'ReadyForQuery' }, action: 'kill' })
  t.is((await insert(sql, 1)).count, 1)
  await rule.over()
  t.true(rule.hits[0]?.closed)
})

test('cut-before: the message does not pass', async (t) => {
  const { database, proxy, sql } = await between(t)
  const rule = proxy.inject({
    when: { direction: 'client', message: 'Execute', text: /^commit/ },
    action: 'cut-before',
  })
  await t.throwsAsync(sql.begin((inside) => insert(inside, 1)))
  t.is(rule.count, 1)
  const { pid = 0 } = rule.hits[0] ?? {}
  await until('its session is over', async () => {
    return (await database.sql`select from pg_stat_activity where pid = ${pid}`).length === 0
  })
  t.deepEqual(await database.effects(), [])
})

test('drop: what is said passes no more in one direction, and it all breaks later', async (t) => {
  const { database, proxy, sql } = await between(t)
  const rule = proxy.inject({
    when: { direction: 'server', message: 'CommandComplete', text: /^COMMIT/ },
    action: 'drop',
    milliseconds: 200,
  })
  let over = false
  const attempt = sql
    .begin((inside) => insert(inside, 1))
    .finally(() => {
      over = true
    })
  attempt.catch(() => {})
  await until('it is committed', async () => (await database.effects()).length === 1)
  t.false(over)
  await t.throwsAsync(attempt)
  await rule.over()
  t.true(rule.hits[0]?.closed)
})

test('delay and stall: what was held back arrives in its order', async (t) => {
  for (const action of ['delay', 'stall'] as const) {
    const { database, proxy, sql } = await between(t)
    const rule = proxy.inject({
      when: { direction: 'client', message: 'Execute', nth: 2 },
      action,
      milliseconds: 100,
    })
    const began = performance.now()
    await Promise.all([insert(sql, 1), insert(sql, 2), insert(sql, 3)])
    t.true(performance.now() - began > 90)
    t.is(rule.count, 1)
    t.deepEqual(await database.effects(), [1, 2, 3])
  }
})

test('A client that gives up while its messages are held back has said them all the same', async (t) => {
  const { database, proxy, sql } = await between(t)
  const rule = proxy.inject({
    when: { direction: 'client', message: 'Query', text: /^insert/ },
    action: 'stall',
    milliseconds: 200,
  })
  const attempt = sql.unsafe('insert into effect (id) values (1)').simple()
  attempt.catch(() => {})
  await until('it is on its way', () => rule.count === 1)
  await sql.end({ timeout: 0 })
  t.deepEqual(await database.effects(), [])
  await rule.over()
  await until('it has arrived', async () => (await database.effects()).length === 1)
  await until('both are gone', () => rule.hits[0]?.closed)
})

test('partition: one direction is held up for everybody, and heals', async (t) => {
  for (const action of ['partition-in', 'partition-out'] as const) {
    const { database, proxy, sql } = await between(t)
    const other = connect(t, proxy.url(database.url), { fetch_types: false })
    // The first time the driver asks what the parameters are, and would not hear it.
    await insert(other, 0)
    const rule = proxy.inject({
      when: { direction: 'client', message: 'Bind', nth: 1 },
      action,
      milliseconds: 8_000,
    })
    const first = insert(sql, 1).execute()
    await until('it has begun', () => rule.count === 1)
    let over = false
    const second = insert(other, 2)
      .execute()
      .finally(() => {
        over = true
      })
    const late = connect(t, proxy.url(database.url), { fetch_types: false })
    const third = insert(late, 3).execute()
    // What the clients said arrives in one case, and does not in the other; nobody hears of it.
    if (action === 'partition-out')
      await until('it has arrived', async () => (await database.effects()).length === 3)
    else t.deepEqual(await database.effects(), [0])
    t.false(over)
    await Promise.all([first, second, third])
    t.deepEqual(await database.effects(), [0, 1, 2, 3])
  }
})

test('cancel: the backend is asked to cancel what it runs', async (t) => {
  const { proxy, sql } = await between(t)
  const rule = proxy.inject({
    when: { direction: 'client', message: 'Query', text: /pg_sleep/ },
    action: 'cancel',
  })
  await t.throwsAsync(sql.unsafe('select pg_sleep(20)').simple(), { code: '57014' })
  await rule.over()
  t.is((await sql`select 1 as one`)[0]?.one, 1)
})

test('A rule acts as often as it says, and no more when it is removed', async (t) => {
  let chance = 0
  const { proxy, sql } = await between(t, { random: () => chance })
  const rule = proxy.inject({
    when: { direction: 'server', message: 'CommandComplete' },
    action: 'delay',
    milliseconds: 1,
    probability: 0.5,
  })
  await sql`select 1`
  await sql`select 1`
  t.is(rule.count, 2)
  chance = 0.5
  await sql`select 1`
  t.is(rule.count, 2)
  chance = 0
  rule.remove()
  await sql`select 1`
  t.is(rule.count, 2)
})

test('Who is refused is accepted again, and after the end nobody is', async (t) => {
  const { database, proxy, sql } = await between(t)
  proxy.refuse()
  await t.throwsAsync(sql`select 1`)
  const again = connect(t, proxy.url(database.url), { fetch_types: false, connect_timeout: 1 })
  proxy.accept()
  t.is((await again`select 1 as one`)[0]?.one, 1)
  proxy.drop('server')
  const unheard = again.unsafe('insert into effect (id) values (1)').simple().execute()
  unheard.catch(() => {})
  await until('it is done', async () => (await database.effects()).length === 1)
  proxy.cutAll()
  await t.throwsAsync(unheard)
  const last = connect(t, proxy.url(database.url), { fetch_types: false, connect_timeout: 1 })
  t.is((await last`select 1 as one`)[0]?.one, 1)
  await proxy.close()
  await t.throwsAsync(last`select 1`)
})
