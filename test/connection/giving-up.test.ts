/** Connections that are given up while the server is at work on them: what becomes of their backends, and of us. */
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import test from 'ava'
import { sql } from 'kysely'
import postgres from 'postgres'
import { type Backends, backendsOf } from '../../src/connection/backends.ts'
import { HandlerError } from '../../src/index.ts'
import { client, type Two } from '../support/client.ts'
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

// ---------------------------------------------------------------------------------------------------
// Which backend is ended

/** A session and what is known of its backend. */
async function session(t: TestContext, url: string, backends: Backends) {
  const instance = connect(t, url)
  const reserved = await instance.reserve()
  backends.ask(reserved)
  const [row] = await reserved<{ pid: number }[]>`select pg_backend_pid() as pid`
  return { reserved, pid: row?.pid ?? 0 }
}

/** Whose requests arrive as they are given, or with another start of the backend, and how many there were. */
function ending(t: TestContext, url: string, change: (start: string) => string = (start) => start) {
  const answers: unknown[] = []
  const backends = backendsOf(() => {
    const ours = postgres(url, { max: 1, fetch_types: false, onnotice: () => {} })
    t.teardown(() => ours.end({ timeout: 0 }))
    return Object.assign(Object.create(ours) as postgres.Sql, {
      options: ours.options,
      end: ours.end,
      unsafe: (text: string, [pid, start]: [number, string]) => {
        const asked = ours.unsafe(text, [pid, change(start)])
        asked.then(
          (rows) => answers.push(rows.length),
          (error: unknown) => answers.push(error),
        )
        return asked
      },
    }) as unknown as postgres.Sql
  }, 5_000)
  return { backends, answers }
}

test('A backend is ended by its process id and its start, to the microsecond', async (t) => {
  const { url, sql } = await effectsDatabase(t)
  await sql.unsafe(`alter database ${new URL(url).pathname.slice(1)} set timezone = 'Asia/Kathmandu'`)
  const { backends, answers } = ending(t, url)
  const { reserved, pid } = await session(t, url, backends)
  const sleeping = t.throwsAsync(reserved`select pg_sleep(600)`)
  await until('it is known', () => backends.isKnown(pid))
  backends.terminate(pid)
  await sleeping
  await until('it is answered', () => answers.length === 1)
  t.deepEqual(answers, [1])
})

test('A backend that began at another time has only the process id of the one that was meant', async (t) => {
  const { url } = await effectsDatabase(t)
  const { backends, answers } = ending(t, url, (start) => (Number(start) - 0.000001).toFixed(6))
  const { reserved, pid } = await session(t, url, backends)
  backends.terminate(pid)
  await until('it is answered', () => answers.length === 1)
  t.deepEqual(answers, [0])
  t.is((await reserved`select 1`).length, 1)
})

test('A backend that nobody asked for is not ended', async (t) => {
  const { url } = await effectsDatabase(t)
  const { backends, answers } = ending(t, url)
  const instance = connect(t, url)
  const [row] = await instance<{ pid: number }[]>`select pg_backend_pid() as pid`
  backends.terminate(row?.pid ?? 0)
  await backends.end()
  t.is((await instance`select 1`).length, 1)
  t.deepEqual(answers, [])
})

for (const statement of [
  'commit; select pg_sleep(2)',
  `prepare held as select 1; select pg_sleep(2)`,
  'end; select pg_sleep(2)',
]) {
  test(`Whoever runs what may commit is not ended: ${statement}`, async (t) => {
    const database = await effectsDatabase(t)
    const { backends, answers } = ending(t, database.url)
    const { reserved, pid } = await session(t, database.url, backends)
    const running = reserved.unsafe(statement).execute()
    await until(
      'it runs',
      async () =>
        (
          await database.sql`select from pg_stat_activity where pid = ${pid} and state = 'active'
           and query like '%pg_sleep%'`
        ).length === 1,
    )
    backends.terminate(pid)
    await until('it is answered', () => answers.length === 1)
    t.deepEqual(answers, [0])
    await t.notThrowsAsync(running)
  })
}

test('A session whose process id is not what the driver was told is a pooler’s, and never ended', async (t) => {
  const { url } = await effectsDatabase(t)
  const { backends, answers } = ending(t, url)
  const { reserved, pid } = await session(t, url, backends)
  const strange = Object.assign(Object.create(reserved) as postgres.ReservedSql, {
    unsafe: (text: string) => {
      const query = reserved.unsafe(text)
      Object.defineProperty(query, 'state', { get: () => ({ pid: 2147483646 }), set: () => {} })
      return query
    },
  }) as unknown as postgres.ReservedSql
  backends.ask(strange)
  await until('it is known', () => backends.isKnown(2147483646))
  backends.terminate(2147483646)
  backends.terminate(pid)
  await backends.end()
  t.deepEqual(answers, [])
  t.is((await reserved`select 1`).length, 1)
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
        await t.throwsAsync(tx.a.selectFrom('effect').selectAll().execute())
      })
      await t.throwsAsync(swallowing, { code: 'CONNECTION_LOST' })
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
