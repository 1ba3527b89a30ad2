/** Connections that are given up while the server is at work on them: what becomes of their backends, and of us. */
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import test from 'ava'
import { sql } from 'kysely'
import type postgres from 'postgres'
import { startProxy } from '../../proof/rig/proxy/index.ts'
import { HandlerError } from '../../src/index.ts'
import { client, kyselyOnPg, type Two } from '../support/client.ts'
import { connect, type TestContext } from '../support/database.ts'
import { type Effects, type EffectsDatabase, effectsDatabase, twoDatabases } from '../support/effects.ts'
import { until } from '../support/until.ts'

interface One {
  a: Effects
}

/** A database by its URL, or by a postgres.js instance of the caller's. */
const drivers = ['URL', 'instance'] as const

function targetOf(t: TestContext, driver: (typeof drivers)[number], url: string, max = 2) {
  return driver === 'URL' ? url : connect(t, url, { max })
}

/** What sleeps at the server for others. */
const asleep = async ({ sql }: EffectsDatabase) =>
  (
    await sql`select from pg_stat_activity where datname = current_database() and state = 'active'
       and query like 'select pg_sleep%'`
  ).length

const sleepLong = sql`select pg_sleep(600)`

/** As a load balancer whose server may be away: then it accepts, and hangs up. */
async function balancer(t: TestContext, target: string) {
  const { hostname, port } = new URL(target)
  const url = new URL(target)
  const sockets = new Set<Socket>()
  const told: string[] = []
  let away = false
  let hungUp = 0
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    if (away) {
      hungUp += 1
      return void socket.destroy()
    }
    const there = dial(Number(port), hostname)
    there.on('error', () => socket.destroy())
    socket.on('data', (data) => told.push(String(data)))
    socket.pipe(there).pipe(socket)
    socket.on('close', () => there.destroy())
    there.on('close', () => socket.destroy())
  })
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  url.hostname = '127.0.0.1'
  url.port = String((server.address() as AddressInfo).port)
  return {
    url: url.href,
    /** What it was told by clients, in the order of its arrival. */
    told,
    hungUp: () => hungUp,
    setAway: (to: boolean) => {
      away = to
    },
  }
}

for (const driver of drivers) {
  test(`A statement that is given up ends, and its connection can be had again (${driver})`, async (t) => {
    const a = await effectsDatabase(t)
    const once = client<One>(t, { a: targetOf(t, driver, a.url) }, { maxConnections: 2 })
    const sleepy = () => once.transaction(({ a: tx }) => sleepLong.execute(tx), { timeout: 500 })
    // All connections there are, and on each its first statement.
    const [one, two] = await Promise.allSettled([sleepy(), sleepy()])
    t.like(one, { reason: { code: 'TIMEOUT' } })
    t.like(two, { reason: { code: 'TIMEOUT' } })
    await Promise.all(
      [1, 2].map((id) => once.transaction(({ a: tx }) => tx.insertInto('effect').values({ id }).execute())),
    )
    await until('they have ended', async () => (await asleep(a)) === 0)
    t.deepEqual(await a.effects(), [1, 2])
  })
}

test('A statement that is given up ends on a connection that the caller had opened', async (t) => {
  const a = await effectsDatabase(t)
  const instance = connect(t, a.url, { max: 2 })
  await Promise.all([instance`select pg_sleep(0.1)`, instance`select pg_sleep(0.1)`])
  const once = client<One>(t, { a: instance })
  const sleepy = () => once.transaction(({ a: tx }) => sleepLong.execute(tx), { timeout: 500 })
  await Promise.allSettled([sleepy(), sleepy()])
  await until('they have ended', async () => (await asleep(a)) === 0)
  await once.transaction(({ a: tx }) => sql`select 1`.execute(tx))
  t.pass()
})

/** Options of postgres.js with a `socket` of their own, as for a tunnel: host and port lead nowhere. */
function throughTunnel(url: string, dug: (socket: Socket) => Promise<void> | void = () => {}) {
  const { hostname, port, pathname, username } = new URL(url)
  const opened: Socket[] = []
  const socket = async () => {
    const one = dial(Number(port), hostname)
    opened.push(one)
    await once(one, 'connect')
    await dug(one)
    return Object.assign(one, { host: 'nowhere.invalid', port: 1 })
  }
  const options = { host: 'nowhere.invalid', port: 1, database: pathname.slice(1), username, socket }
  return { target: options as postgres.Options<Record<string, postgres.PostgresType>>, opened }
}

test('A statement that is given up ends by a request through the same tunnel as its connection', async (t) => {
  const a = await effectsDatabase(t)
  const { target, opened } = throughTunnel(a.url)
  const tunneled = client<One>(t, { a: target })
  await tunneled.transaction(({ a: tx }) => sql`select 1`.execute(tx))
  const before = opened.length
  await t.throwsAsync(
    tunneled.transaction(({ a: tx }) => sleepLong.execute(tx), { timeout: 500 }),
    { code: 'TIMEOUT' },
  )
  await until('it has ended', async () => (await asleep(a)) === 0)
  t.true(opened.length > before)
})

test('A connection that its tunnel opens when nobody wants it any more is closed', async (t) => {
  const a = await effectsDatabase(t)
  const { promise, resolve } = Promise.withResolvers<void>()
  const { target, opened } = throughTunnel(a.url, () => promise)
  const tunneled = client<One>(t, { a: target }, { connectTimeout: 200 })
  await t.throwsAsync(tunneled.transaction(({ a: tx }) => sql`select 1`.execute(tx)))
  await tunneled.close()
  resolve()
  await until('it is closed', async () => opened.length > 0 && opened.every(({ destroyed }) => destroyed))
  t.pass()
})

test('A server that is silent at the ROLLBACK of a duplicate keeps nobody waiting, and changes no answer', async (t) => {
  const a = await effectsDatabase(t)
  const proxy = await startProxy({ target: a.url })
  t.teardown(() => proxy.close())
  const behind = client<One>(t, { a: kyselyOnPg(t, proxy.url()) })
  const message = { producer: 'p', sequence: 0 }
  await behind.process('a', message, async () => 1)
  proxy.inject({ when: { direction: 'client', text: /^rollback/i }, action: 'drop', milliseconds: 60_000 })
  const options = { timeout: 3_000, retries: 0 }
  t.is((await behind.process('a', message, async () => 1, options)).status, 'duplicate')
})

test('A server that is silent at BEGIN keeps no connection for ever', async (t) => {
  const a = await effectsDatabase(t)
  await a.sql.unsafe(
    `alter database ${new URL(a.url).pathname.slice(1)} set default_transaction_read_only = on`,
  )
  const proxy = await startProxy({ target: a.url })
  t.teardown(() => proxy.close())
  const options = { maxConnections: 1, connectTimeout: 5_000, transaction: { timeout: 4_000, retries: 0 } }
  const fenced = client<One>(t, { a: proxy.url() }, options)
  const look = () => fenced.transaction(({ a: tx }) => sql`select 1`.execute(tx))
  await look()
  const rule = proxy.inject({
    when: { direction: 'server', text: /^begin/, nth: 1 },
    action: 'drop',
    milliseconds: 120_000,
  })
  await t.throwsAsync(look(), { code: 'TIMEOUT' })
  rule.remove()
  await t.notThrowsAsync(look())
})

for (const driver of drivers) {
  test(`Who ends a backend does not insist, and does so no more after close() (${driver})`, async (t) => {
    const a = await effectsDatabase(t)
    const { url, told, hungUp, setAway } = await balancer(t, a.url)
    const once = client<One>(t, { a: targetOf(t, driver, url) }, { connectTimeout: 1_500 })
    await once.transaction(({ a: tx }) => tx.insertInto('effect').values({ id: 0 }).execute())
    const given = once.transaction(
      async ({ a: tx }) => {
        setAway(true)
        await sleepLong.execute(tx)
      },
      { timeout: 300 },
    )
    await t.throwsAsync(given, { code: 'TIMEOUT' })
    await once.close()
    const before = hungUp()
    t.true(before >= 1 && before <= 10, `${before} connections`)
    setAway(false)
    told.length = 0
    // Longer than any pause between two attempts in that time.
    await new Promise((resolve) => setTimeout(resolve, 1_500))
    t.deepEqual(told, [])
    t.is(hungUp(), before)
  })
}

test('A client that is ended opens no connection any more', async (t) => {
  const a = await effectsDatabase(t)
  const { url, told, hungUp, setAway } = await balancer(t, a.url)
  setAway(true)
  // The pool gives up on the connection that it opens.
  const once = client<One>(t, { a: url }, { connectTimeout: 600 })
  await t.throwsAsync(once.transaction(({ a: tx }) => sql`select 1`.execute(tx)))
  await once.close()
  setAway(false)
  const before = hungUp()
  t.true(before <= 6, `${before} connections`)
  await new Promise((resolve) => setTimeout(resolve, 1_000))
  t.deepEqual(told, [])
})

test('Commits that are given up keep their places in the pool: no backends beyond its size pile up', async (t) => {
  const a = await effectsDatabase(t)
  await a.sql.unsafe(`
    create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(3); return null; end $$;
    create constraint trigger late after insert on effect deferrable initially deferred for each row execute function slow()`)
  const once = client<One>(
    t,
    { a: a.url },
    { maxConnections: 2, connectTimeout: 500, transaction: { retries: 0 } },
  )
  const backends = async () =>
    (
      await a.sql`select from pg_stat_activity where datname = current_database() and application_name = 'pgonce'`
    ).length
  const attempts = Array.from({ length: 12 }, (_, index) =>
    once.transaction(({ a: tx }) => tx.insertInto('effect').values({ id: index }).execute(), {
      timeout: 200 + 50 * index,
    }),
  )
  await Promise.allSettled(attempts)
  t.true((await backends()) <= 2, `${await backends()} backends`)
  // When they are answered, their places are free again.
  await until('it can be used again', () =>
    once
      .transaction(({ a: tx }) => sql`select 1`.execute(tx))
      .then(
        () => true,
        () => false,
      ),
  )
})

// ---------------------------------------------------------------------------------------------------
// COPY from or to the client

const copies = {
  'copy effect to stdout': /\.stream\(\)/,
  'copy (select * from generate_series(1, 1000000)) to stdout': /\.stream\(\)/,
  'copy effect from stdin': /\.values\(rows\)/,
}

for (const driver of drivers) {
  for (const [copy, hint] of Object.entries(copies)) {
    test(`A handler that runs \`${copy}\` ends nothing but its transaction (${driver})`, async (t) => {
      const [a, b] = await twoDatabases(t)
      await a.sql`insert into effect select generate_series(10, 5000)`
      const once = client<Two>(
        t,
        { a: targetOf(t, driver, a.url, 1), b: targetOf(t, driver, b.url, 1) } as { a: string; b: string },
        { maxConnections: 1 },
      )
      const error = await t.throwsAsync<HandlerError>(
        once.transaction(async (tx) => {
          await tx.b.insertInto('effect').values({ id: 1 }).execute()
          await tx.a.insertInto('effect').values({ id: 1 }).execute()
          await sql.raw(copy).execute(tx.a)
        }),
        { instanceOf: HandlerError, code: 'COPY' },
      )
      t.regex(error?.message ?? '', /COPY/)
      t.regex(error?.hint ?? '', hint)
      // Over the only connection of each.
      await once.transaction(async (tx) => {
        await tx.a.insertInto('effect').values({ id: 2 }).execute()
        await tx.b.insertInto('effect').values({ id: 2 }).execute()
      })
      t.deepEqual([(await a.effects()).filter((id) => id < 10), await b.effects()], [[2], [2]])
      await until(
        'nothing of it is left at the server',
        async () =>
          (await a.sql`select from pg_stat_activity where datname = current_database() and query = ${copy}`)
            .length === 0,
      )
    })
  }

  test(`A handler that swallows the refusal of COPY commits nothing (${driver})`, async (t) => {
    const [a, b] = await twoDatabases(t)
    const once = client<Two>(
      t,
      { a: targetOf(t, driver, a.url), b: targetOf(t, driver, b.url) } as { a: string; b: string },
      { transaction: { retries: 0 } },
    )
    for (const names of ['a', 'ab', 'ba'] as const) {
      const swallowing = once.transaction(async (tx) => {
        for (const name of names) await tx[name as 'a'].insertInto('effect').values({ id: 1 }).execute()
        await t.throwsAsync(sql`copy effect from stdin`.execute(tx.a), { code: 'COPY' })
        await tx.a.selectFrom('effect').selectAll().execute()
      })
      await t.throwsAsync(swallowing, { code: 'COPY' })
      await once.recovery.run({ purge: false })
      t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[], [], 0])
    }
  })

  test(`COPY at the server is a statement like others (${driver})`, async (t) => {
    const a = await effectsDatabase(t)
    const once = client<One>(t, { a: targetOf(t, driver, a.url) })
    await once.transaction(async ({ a: tx }) => {
      await tx.insertInto('effect').values({ id: 1 }).execute()
      await sql`copy effect to program 'cat > /dev/null'`.execute(tx)
      const { numAffectedRows } = await sql`copy effect (id) from program 'echo 2; echo 3'`.execute(tx)
      t.is(numAffectedRows, 2n)
    })
    t.deepEqual(await a.effects(), [1, 2, 3])
  })
}
