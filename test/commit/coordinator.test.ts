import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { sql } from 'kysely'
import { AbortedError, DatabaseError, LimitError } from '../../src/index.ts'
import {
  client,
  insert,
  killSessions,
  kyselyOnPg,
  type Shop,
  shop,
  type Three,
  type Two,
} from '../support/client.ts'
import { connect, installSchema, ownServer, type TestContext } from '../support/database.ts'
import {
  createEffects,
  type Effects,
  effectsDatabase,
  twoDatabases,
  withEffects,
} from '../support/effects.ts'
import { fresh, overDrivers, read, seen, sharedShop } from '../support/shop.ts'
import { until } from '../support/until.ts'

const shared = sharedShop()

/** What the flow left: the decision's participants, and where evidence is. */
async function traces(shop: Shop, id: string | null) {
  const transactionId = id?.split(':')[3] ?? null
  const found = { home: '', participants: '', evidence: '' }
  for (const name of ['a', 'b', 'c'] as const) {
    const { sql } = shop[name]
    for (const row of await sql`select participants from once.global_transaction where transaction_id = ${transactionId}`) {
      found.home += name
      found.participants += row.participants.toSorted().join('')
    }
    if ((await sql`select from once.evidence where transaction_id = ${transactionId}`).length > 0)
      found.evidence += name
  }
  return found
}

// ---------------------------------------------------------------------------------------------------
// Which way it commits

test('What was written in several databases is there in all of them, or in none', async (t) => {
  const id = fresh()
  const { once } = shared()
  const oops = new Error('oops')
  t.is(
    await t.throwsAsync(
      once.transaction(async (tx) => {
        await insert(tx, id, 'a', 'b', 'c')
        throw oops
      }),
    ),
    oops,
  )
  t.is(await seen(shared(), id), '')
  const { id: global, ...rest } = await once.transaction(async (tx) => {
    await insert(tx, id, 'a', 'b', 'c')
    return 'result'
  })
  t.deepEqual(rest, { result: 'result', finished: true })
  t.is(await seen(shared(), id), 'abc')
  t.is(await once.outcome(global ?? ''), 'committed')
  t.deepEqual(await traces(shared(), global), { home: 'a', participants: 'bc', evidence: 'bc' })
})

test('A handler that uses nothing touches no database', async (t) => {
  const once = client<{ nowhere: Effects }>(t, { nowhere: 'postgres://nobody@127.0.0.1:1/none' })
  t.deepEqual(await once.transaction(async () => 7), { result: 7, id: null, finished: true })
})

test('One database is committed plainly: no gid, no decision row, no evidence', async (t) => {
  const own = await shop(t)
  await own.once.transaction((tx) => insert(tx, 1, 'b'))
  const { id } = await own.once.transaction(async (tx) => {
    await insert(tx, 2, 'b')
    await read(tx, 'a', 'c')
  })
  t.is(id, null)
  const { id: reader } = await own.once.transaction((tx) => read(tx, 'a', 'b', 'c'))
  t.is(reader, null)
  t.deepEqual(await own.b.effects(), [1, 2])
  for (const { count } of [own.a, own.b, own.c]) {
    t.is(await count('once.global_transaction'), 0)
    t.is(await count('once.evidence'), 0)
  }
})

test('The home is the preferred database if it wrote, else one that wrote; readers are no participants', async (t) => {
  const { once } = shared()
  for (const [writes, reads, home, expected] of [
    ['abc', '', undefined, { home: 'a', participants: 'bc', evidence: 'bc' }],
    ['bca', '', undefined, { home: 'b', participants: 'ac', evidence: 'ac' }],
    ['abc', '', 'c', { home: 'c', participants: 'ab', evidence: 'ab' }],
    ['ab', 'c', 'b', { home: 'b', participants: 'a', evidence: 'a' }],
    ['bc', 'a', 'a', { home: 'b', participants: 'c', evidence: 'c' }],
    ['bc', 'a', undefined, { home: 'b', participants: 'c', evidence: 'c' }],
    ['bc', '', 'a', { home: 'b', participants: 'c', evidence: 'c' }],
    ['c', 'ab', 'a', { home: '', participants: '', evidence: '' }],
  ] as const) {
    const id = fresh()
    const result = await once.transaction(
      async (tx) => {
        await read(tx, ...([...reads] as 'a'[]))
        await insert(tx, id, ...([...writes] as 'a'[]))
      },
      home === undefined ? {} : { home },
    )
    t.deepEqual(await traces(shared(), result.id), expected, `writes ${writes}, reads ${reads}, home ${home}`)
    t.is(await seen(shared(), id), [...writes].toSorted().join(''))
  }
})

test('A reader that locks rows takes part like a writer, so its locks last until the decision', async (t) => {
  const id = fresh()
  const { once } = shared()
  await once.transaction((tx) => insert(tx, id, 'b'))
  const { id: global } = await once.transaction(async (tx) => {
    await tx.b.selectFrom('effect').where('id', '=', id).forUpdate().selectAll().execute()
    await insert(tx, id, 'a', 'c')
  })
  t.deepEqual(await traces(shared(), global), { home: 'b', participants: 'ac', evidence: 'ac' })
})

test('With `record` the outcome of one database can be asked for, too', async (t) => {
  const { once } = shared()
  const id = fresh()
  const result = await once.transaction((tx) => insert(tx, id, 'b'), { record: true })
  t.truthy(result.id)
  t.is(await once.outcome(result.id ?? ''), 'committed')
  t.is((await once.transaction((tx) => read(tx, 'b'), { record: true })).id, null)
})

test('finish: background gives the answer at the decision; the branches follow, and close() waits for them', async (t) => {
  const [a, b] = await twoDatabases(t)
  const once = client<Two>(t, { a: a.url, b: b.url })
  const results = await Promise.all(
    Array.from({ length: 20 }, (_, id) =>
      once.transaction(
        async (tx) => {
          await tx.a.insertInto('effect').values({ id }).execute()
          await tx.b.insertInto('effect').values({ id }).execute()
        },
        { finish: 'background' },
      ),
    ),
  )
  t.true(results.every(({ id, finished }) => id !== null && !finished))
  t.is((await a.effects()).length, 20)
  await once.close()
  t.is((await b.effects()).length, 20)
  t.is(await b.prepared(), 0)
})

test('Handles are Kysely transactions that begin at their first query, several at once if they are asked at once', async (t) => {
  const id = fresh()
  await shared().once.transaction(async ({ a, b, c }) => {
    t.true(a.isTransaction && b.isTransaction && c.isTransaction)
    await Promise.all([a, b, c].map((trx) => trx.insertInto('effect').values({ id }).execute()))
  })
  t.is(await seen(shared(), id), 'abc')
})

test('A stream of rows can be read inside a handler', async (t) => {
  const [a] = await Promise.all([effectsDatabase(t, 'a')])
  await a.sql`insert into effect select generate_series(1, 250)`
  const once = client<{ a: Effects }>(t, { a: a.url })
  await once.transaction(async (tx) => {
    let sum = 0
    for await (const { id } of tx.a.selectFrom('effect').select('id').stream(100)) sum += id
    t.is(sum, (250 * 251) / 2)
    for await (const { id } of tx.a.selectFrom('effect').select('id').orderBy('id').stream(10)) {
      if (id === 15) break
    }
    await tx.a.insertInto('effect').values({ id: 1000 }).execute()
  })
  t.is((await a.effects()).at(-1), 1000)
})

// ---------------------------------------------------------------------------------------------------
// Giving up

test('A signal that is aborted before the start keeps the handler from running', async (t) => {
  await t.throwsAsync(
    shared().once.transaction(async () => t.fail(), { signal: AbortSignal.abort(new Error('enough')) }),
    { instanceOf: AbortedError, code: 'ABORTED' },
  )
})

test('A signal that is aborted inside the handler rolls back at once, though a statement still runs', async (t) => {
  const own = await shop(t)
  const controller = new AbortController()
  const reason = new Error('enough')
  const running = own.once.transaction(
    async (tx) => {
      await insert(tx, 1, 'a', 'b')
      await sql`select pg_sleep(600)`.execute(tx.b)
    },
    { signal: controller.signal },
  )
  await until('the statement runs', async () => {
    return (
      (
        await own.b
          .sql`select from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active' and pid <> pg_backend_pid() and datname = current_database()`
      ).length > 0
    )
  })
  controller.abort(reason)
  const error = await t.throwsAsync(running, { instanceOf: AbortedError, code: 'ABORTED' })
  t.is(error?.cause, reason)
  // Not only told so: the session is gone, and nobody waits for its locks.
  await until('the session is gone', async () => {
    return (
      (
        await own.b
          .sql`select from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid() and datname = current_database()`
      ).length === 0
    )
  })
  await own.once.transaction((tx) => insert(tx, 1, 'a', 'b'))
  t.is(await seen(own, 1), 'ab')
})

test('A signal that is aborted after the decision changes nothing', async (t) => {
  const controller = new AbortController()
  const id = fresh()
  const { finished } = await shared().once.transaction((tx) => insert(tx, id, 'a', 'b'), {
    signal: controller.signal,
    finish: 'background',
  })
  controller.abort()
  t.false(finished)
  await until('the branch is finished', async () => (await seen(shared(), id)) === 'ab')
})

test('A transaction that takes longer than its timeout is rolled back everywhere', async (t) => {
  const own = await shop(t)
  await t.throwsAsync(
    own.once.transaction(
      async (tx) => {
        await insert(tx, 1, 'a', 'b')
        await new Promise(() => {})
      },
      { timeout: 300 },
    ),
    { instanceOf: AbortedError, code: 'TIMEOUT' },
  )
  t.is(await seen(own, 1), '')
  await own.once.transaction((tx) => insert(tx, 1, 'a', 'b'))
})

test('A lock is waited for no longer than lockTimeout', async (t) => {
  const { once, a } = shared()
  const id = fresh()
  const holder = await a.sql.reserve()
  await holder`begin`
  await holder`insert into effect (id) values (${id})`
  await t.throwsAsync(
    once.transaction((tx) => insert(tx, id, 'b', 'a'), { lockTimeout: 50 }),
    { code: '55P03' },
  )
  await holder`rollback`
  holder.release()
  await once.transaction((tx) => insert(tx, id, 'b', 'a'), { lockTimeout: 50 })
  t.is(await seen(shared(), id), 'ab')
})

test('A branch that idles longer than idleTimeout is ended by its server, and the transaction with it', async (t) => {
  for (const [driver, over] of Object.entries(overDrivers)) {
    const own = await shop(t)
    const once = over(t, own)
    await t.throwsAsync(
      once.transaction(
        async (tx) => {
          await insert(tx, 1, 'a', 'b')
          await until('the server has ended it', async () => {
            return (
              (
                await own.b
                  .sql`select from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()`
              ).length === 0
            )
          })
          await insert(tx, 1, 'c')
        },
        { idleTimeout: 50 },
      ),
      undefined,
      driver,
    )
    t.is(await seen(own, 1), '', driver)
  }
})

// ---------------------------------------------------------------------------------------------------
// Connections

for (const max of [1, 2]) {
  for (const [driver, make] of Object.entries({
    'postgres.js': (t: TestContext, own: Shop) =>
      client<Three>(t, { a: own.a.url, b: own.b.url, c: own.c.url }, { maxConnections: max }),
    pg: (t: TestContext, own: Shop) =>
      client<Three>(
        t,
        {
          a: kyselyOnPg(t, own.a.url, { max }),
          b: kyselyOnPg(t, own.b.url, { max }),
          c: kyselyOnPg(t, own.c.url, { max }),
        },
        { maxConnections: max },
      ),
  })) {
    test(`Many callers that use databases in opposite orders never wait for each other for ever (${driver}, pools of ${max})`, async (t) => {
      const own = await shop(t)
      const once = make(t, own)
      const orders = ['abc', 'cba', 'bca', 'bac', 'ca', 'ac'] as const
      const ids = Array.from({ length: 48 }, (_, id) => id)
      const results = await Promise.all(
        ids.map((id) =>
          once.transaction(async (tx) => {
            const order = [...(orders[id % orders.length] as string)] as (keyof Three)[]
            if (id % 5 === 0) await Promise.all(order.map((name) => insert(tx, id, name)))
            else for (const name of order) await insert(tx, id, name)
          }),
        ),
      )
      t.true(results.every(({ finished }) => finished))
      for (const id of ids) {
        const expected = [...(orders[id % orders.length] as string)].toSorted().join('')
        if ((await seen(own, id)) !== expected) t.fail(`transaction ${id}`)
      }
      const busy = await own.a.sql`
        select count(*)::int as n from pg_stat_activity where datname = current_database() and application_name = 'pgonce'`
      t.true((busy[0]?.n ?? 0) <= max)
    })
  }
}

test('Whoever waits for a connection in vain is told so, with the timeout of the transaction', async (t) => {
  const own = await shop(t)
  const once = client<Three>(t, { a: own.a.url, b: own.b.url, c: own.c.url }, { maxConnections: 1 })
  let letGo = () => {}
  const held = new Promise<void>((resolve) => {
    letGo = resolve
  })
  let began = () => {}
  const running = new Promise<void>((resolve) => {
    began = resolve
  })
  const first = once.transaction(async (tx) => {
    await insert(tx, 1, 'a')
    began()
    await held
  })
  await running
  await t.throwsAsync(
    once.transaction((tx) => insert(tx, 2, 'a'), { timeout: 100 }),
    { instanceOf: AbortedError, code: 'TIMEOUT' },
  )
  letGo()
  await first
  await once.transaction((tx) => insert(tx, 2, 'a'))
  t.deepEqual(await own.a.effects(), [1, 2])
})

for (const [driver, over] of Object.entries(overDrivers)) {
  test(`A connection that is lost inside the handler, in a statement or between two, undoes everything (${driver})`, async (t) => {
    const own = await shop(t)
    const once = over(t, own)
    let id = 0
    for (const names of [['a', 'b'], ['b', 'a'], ['a']] as const) {
      for (const victim of names) {
        for (const when of ['between', 'during', 'last'] as const) {
          id += 1
          await t.throwsAsync(
            once.transaction(async (tx) => {
              await insert(tx, id, ...names)
              if (when === 'during') {
                const sleeping = sql`select pg_sleep(600)`.execute(tx[victim])
                await until(
                  'it sleeps',
                  async () =>
                    (await killSessions(
                      own[victim].sql,
                      `query like '%pg_sleep(600)%' and state = 'active'`,
                    )) > 0,
                )
                await sleeping
              } else {
                const killed = await killSessions(own[victim].sql, `state like 'idle in transaction%'`)
                t.is(killed, 1)
                if (when === 'between') await read(tx, victim)
              }
            }),
            undefined,
            `${names} ${victim} ${when}`,
          )
          t.is(await seen(own, id), '', `${names} ${victim} ${when}`)
        }
      }
    }
    // The pools are usable, each connection of them.
    await Promise.all(
      Array.from({ length: 12 }, (_, n) => once.transaction((tx) => insert(tx, 100 + n, 'a', 'b', 'c'))),
    )
    t.is((await own.c.effects()).length, 12)
    await once.close()
  })
}

test('A connection that is lost inside the handler is told as AbortedError CONNECTION_LOST', async (t) => {
  const own = await shop(t)
  for (const when of ['between', 'last']) {
    await t.throwsAsync(
      own.once.transaction(async (tx) => {
        await insert(tx, 1, 'a', 'b')
        await killSessions(own.b.sql, `state like 'idle in transaction%'`)
        if (when === 'between') await read(tx, 'b')
      }),
      { instanceOf: AbortedError, code: 'CONNECTION_LOST', message: /b/ },
    )
  }
  // Noticed, and swallowed: nothing was sent to commit, so nothing is unknown.
  await t.throwsAsync(
    own.once.process(
      'a',
      { producer: 'p', sequence: 0 },
      async (trx, tx) => {
        t.is(await killSessions(own.a.sql, `state like 'idle in transaction%'`), 1)
        await t.throwsAsync(read(tx, 'a'), { code: 'CONNECTION_LOST' })
        t.truthy(trx)
      },
      { position: { group: 'g', topic: 't', epoch: 1, expected: null, next: 1 } },
    ),
    { instanceOf: AbortedError, code: 'CONNECTION_LOST' },
  )
})

test('The death of one transaction’s connection leaves another that takes the pool’s place for it alone', async (t) => {
  const own = await shop(t)
  // One connection of the caller's own: whoever waits for it gets it as soon as the first one's is lost.
  const mine = connect(t, own.a.url)
  const once = client<{ a: Effects }>(t, { a: mine })
  let second: Promise<unknown> | undefined
  let hold = () => {}
  const held = new Promise<void>((resolve) => {
    hold = resolve
  })
  const first = once.transaction(async ({ a }) => {
    await a.insertInto('effect').values({ id: 1 }).execute()
    second = mine.begin(async (trx) => {
      await trx`insert into effect (id) values (2)`
      hold()
      await sleep(50)
      await trx`insert into effect (id) values (3)`
    })
    await killSessions(own.b.sql, 'false')
    await killSessions(own.a.sql, `state like 'idle in transaction%'`)
    await held
    await a.insertInto('effect').values({ id: 4 }).execute()
  })
  await t.throwsAsync(first, { instanceOf: AbortedError, code: 'CONNECTION_LOST' })
  await second
  t.deepEqual(await own.a.effects(), [2, 3])
})

test('Nothing leaks: after failures of every kind a client holds no more connections than its pool', async (t) => {
  const own = await shop(t)
  const once = client<Three>(t, { a: own.a.url, b: own.b.url, c: own.c.url }, { maxConnections: 3 })
  await Promise.all(
    Array.from({ length: 30 }, async (_, n) => {
      const controller = new AbortController()
      await once
        .transaction(
          async (tx) => {
            await insert(tx, n, 'a', 'b')
            if (n % 5 === 0) throw new Error('thrown')
            if (n % 5 === 1) await killSessions(own.b.sql, `state like 'idle in transaction%'`)
            if (n % 5 === 2) controller.abort()
            if (n % 5 === 3) await sql`select 1 / 0`.execute(tx.a)
          },
          { signal: controller.signal },
        )
        .catch(() => {})
    }),
  )
  for (const { sql } of [own.a, own.b]) {
    await until('no more than three are left, none of them in a transaction', async () => {
      const [row] = await sql`
        select count(*)::int as n, count(*) filter (where state like 'idle in%')::int as open
          from pg_stat_activity where datname = current_database() and application_name = 'pgonce'`
      return row?.n <= 3 && row?.open === 0
    })
  }
  await once.recovery.run()
  t.is(await own.b.prepared(), 0)
  t.deepEqual(await own.a.effects(), await own.b.effects())
  await once.close()
  for (const { sql } of [own.a, own.b]) {
    await until('all are gone', async () => {
      const rows =
        await sql`select from pg_stat_activity where datname = current_database() and application_name = 'pgonce'`
      return rows.length === 0
    })
  }
})

// ---------------------------------------------------------------------------------------------------
// Servers that cannot

test('Prepared transactions switched off: two phases are refused with what to type, one phase works', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 0 })
  await installSchema(server.url())
  const own = withEffects({ sql: connect(t, server.url()) })
  await own.sql.unsafe(createEffects)
  for (const b of [server.url(), kyselyOnPg<Effects>(t, server.url())]) {
    const once = client<Two>(t, { a: shared().a.url, b })
    const id = fresh()
    await t.throwsAsync(
      once.transaction(async (tx) => {
        await tx.a.insertInto('effect').values({ id }).execute()
        await tx.b.insertInto('effect').values({ id }).execute()
      }),
      { instanceOf: DatabaseError, code: 'PREPARE_DISABLED', message: /Database b/ },
    )
    t.deepEqual(await own.effects(), [])
    t.false((await shared().a.effects()).includes(id))
    // As the home it prepares nothing.
    await once.transaction(
      async (tx) => {
        await tx.a.insertInto('effect').values({ id }).execute()
        await tx.b.insertInto('effect').values({ id }).execute()
      },
      { home: 'b' },
    )
    t.true((await shared().a.effects()).includes(id))
    await own.sql`delete from effect`
  }
})

test('Slots full: the transaction is refused everywhere, and goes through when there is room again', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 1 })
  await installSchema(server.url())
  const own = withEffects({ sql: connect(t, server.url()) })
  await own.sql.unsafe(createEffects)
  const once = client<Two>(t, { a: shared().a.url, b: server.url() })
  const both = (id: number) =>
    once.transaction(async (tx) => {
      await tx.a.insertInto('effect').values({ id }).execute()
      await tx.b.insertInto('effect').values({ id }).execute()
    })
  await own.sql`begin`
  await own.sql`create table in_the_way ()`
  await own.sql`prepare transaction 'somebody else'`
  const id = fresh()
  await t.throwsAsync(both(id), { instanceOf: LimitError, code: 'NO_SLOTS', message: /database b/ })
  t.deepEqual(await own.effects(), [])
  t.false((await shared().a.effects()).includes(id))
  await own.sql`rollback prepared 'somebody else'`
  t.true((await both(id)).finished)
  t.deepEqual(await own.effects(), [id])
})

test('A participant that cannot be reached at its first query undoes what was done elsewhere', async (t) => {
  const once = client<Two>(t, {
    a: shared().a.url,
    b: 'postgres://postgres@127.0.0.1:1/none',
  })
  const id = fresh()
  const attempt = (swallow: boolean) =>
    once.transaction(async (tx) => {
      await tx.a.insertInto('effect').values({ id }).execute()
      const other = tx.b.insertInto('effect').values({ id }).execute()
      await (swallow ? other.catch(() => {}) : other)
    })
  for (const swallow of [false, true]) {
    await t.throwsAsync(attempt(swallow), {
      instanceOf: AbortedError,
      code: 'CONNECTION_LOST',
      message: /Database b/,
    })
    t.false((await shared().a.effects()).includes(id))
  }
})
