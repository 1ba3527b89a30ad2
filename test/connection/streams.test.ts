import test from 'ava'
import { CompiledQuery, sql, type Transaction } from 'kysely'
import { AbortedError, HandlerError, InvalidInputError, type Pgonce } from '../../src/index.ts'
import { client, killSessions, kyselyOnPg } from '../support/client.ts'
import type { TestContext } from '../support/database.ts'
import { type Effects, twoDatabases } from '../support/effects.ts'

interface Two {
  a: Effects
  b: Effects
}

type Handles = { readonly [Name in keyof Two]: Transaction<Two[Name]> }

async function rig(t: TestContext, driver: 'postgres.js' | 'pg') {
  const [a, b] = await twoDatabases(t)
  const target = ({ url }: { url: string }) =>
    driver === 'pg' ? kyselyOnPg<Effects>(t, url, { max: 2 }) : url
  const once: Pgonce<Two> = client<Two>(t, { a: target(a), b: target(b) } as { a: string; b: string })
  return { a, b, once }
}

for (const driver of ['postgres.js', 'pg'] as const) {
  test(`What a handler streams and does not wait for is done with its transaction, or not at all (${driver})`, async (t) => {
    const { a, b, once } = await rig(t, driver)
    const told: number[] = []
    await once.transaction((tx) => tx.a.insertInto('effect').values({ id: 0 }).execute())
    for (let id = 1; id <= 60; id += 1) {
      await once
        .transaction(async (tx) => {
          await tx.b.selectFrom('effect').selectAll().limit(1).execute()
          await tx.a.insertInto('effect').values({ id }).execute()
          await Promise.all([
            // Every other time the transaction fails meanwhile.
            tx.a
              .insertInto('effect')
              .values({ id: id % 2 === 0 ? 0 : -id })
              .execute(),
            tx.b
              .insertInto('effect')
              .values({ id: 1000 + id })
              .execute(),
            drain(tx.b.insertInto('effect').values({ id }).returning('id').stream()),
          ])
        })
        .then(
          () => told.push(id),
          (error: { code: string }) => t.is(error.code, '23505'),
        )
      // Nobody waits here, so nothing commits.
      const forsaken = once.transaction(async (tx) => {
        await tx.b.selectFrom('effect').selectAll().limit(1).execute()
        tx.b
          .insertInto('effect')
          .values({ id: 2000 + id })
          .execute()
          .catch(() => {})
        drain(
          tx.b
            .insertInto('effect')
            .values({ id: 3000 + id })
            .returning('id')
            .stream(),
        ).catch((error) => t.is(error.code, 'ENDED'))
      })
      await t.throwsAsync(forsaken, { code: 'NOT_AWAITED' })
      // The next one has the connection for itself.
      await once.transaction((tx) => tx.b.selectFrom('effect').selectAll().limit(1).execute())
    }
    t.is(told.length, 30)
    t.deepEqual(
      (await a.effects()).filter((id) => id > 0),
      told,
    )
    t.deepEqual(await b.effects(), [...told, ...told.map((id) => id + 1000)])
    t.is(await b.prepared(), 0)
  })

  test(`An iterator that is left open ends with its transaction, and holds up neither it nor the caller (${driver})`, async (t) => {
    const { a, b, once } = await rig(t, driver)
    await a.sql`insert into effect select generate_series(1, 5000)`
    const left: AsyncIterator<{ id: number }>[] = []
    const leave = async (tx: Pick<Handles, 'a'>) => {
      const rows = tx.a.selectFrom('effect').select('id').orderBy('id').stream(10)[Symbol.asyncIterator]()
      left.push(rows)
      t.deepEqual(
        [await rows.next(), await rows.next()].map(({ value }) => value?.id),
        [1, 2],
      )
    }
    const timeout = 5_000
    const start = performance.now()
    // In one phase, in two where it is the home, and where it is the participant; and rolled back.
    await once.transaction(leave, { timeout })
    for (const [home, id] of [
      ['a', 6000],
      ['b', 7000],
    ] as const) {
      await once.transaction(
        async (tx) => {
          await tx.a.insertInto('effect').values({ id }).execute()
          await tx.b.insertInto('effect').values({ id }).execute()
          await leave(tx)
        },
        { timeout, home },
      )
    }
    const thrown = new Error('handler')
    const rolledBack = once.transaction(
      async (tx) => {
        await leave(tx)
        throw thrown
      },
      { timeout },
    )
    t.is(await t.throwsAsync(rolledBack), thrown)
    t.true(performance.now() - start < timeout)
    t.deepEqual(
      [(await a.effects()).slice(5000), await b.effects()],
      [
        [6000, 7000],
        [6000, 7000],
      ],
    )
    for (const rows of left) {
      // What had come already is still told.
      const rest = drain({ [Symbol.asyncIterator]: () => rows })
      await t.throwsAsync(rest, { instanceOf: HandlerError, code: 'ENDED' })
    }
    const { result } = await once.transaction((tx) => tx.a.selectFrom('effect').select('id').execute())
    t.is(result.length, 5002)
  })

  test(`Inside the loop over a stream the transaction goes on, with other streams too (${driver})`, async (t) => {
    const { a, once } = await rig(t, driver)
    await a.sql`insert into effect select generate_series(1, 25)`
    await once.transaction(async (tx) => {
      const outer: number[] = []
      for await (const { id } of tx.a.selectFrom('effect').select('id').where('id', '<=', 25).stream(10)) {
        outer.push(id)
        await tx.a
          .insertInto('effect')
          .values({ id: 100 + id })
          .execute()
        const inner = await drain(tx.a.selectFrom('effect').select('id').where('id', '<=', 25).stream(4))
        t.is(inner.length, 25)
      }
      t.deepEqual(
        outer.sort((x, y) => x - y),
        [...Array(25).keys()].map((n) => n + 1),
      )
      // Nothing is left open behind a loop, whether it came to its end or not.
      for await (const _ of tx.a.selectFrom('effect').select('id').stream(10)) break
      const open = await sql`select from pg_cursors where name like 'pgonce%'`.execute(tx.a)
      t.is(open.rows.length, 0)
    })
    t.is((await a.effects()).length, 50)
  })

  test(`A stream gives what the query would, whatever it is (${driver})`, async (t) => {
    const { a, once } = await rig(t, driver)
    await once.transaction(async ({ a: trx }) => {
      const some = [1, 2, 3, 4, 5].map((id) => ({ id, note: `no. ${id}` }))
      const written = trx.insertInto('effect').values(some).returningAll().stream(2)
      t.deepEqual(await drain(written), some)
      const effects = trx.selectFrom('effect').select(['id', 'note']).orderBy('id')
      for (const chunk of [1, 4, 5, 6]) t.deepEqual(await drain(effects.stream(chunk)), some)
      t.deepEqual(await drain(effects.where('id', '>', 5).stream()), [])
      const later = trx
        .with('late', (db) => db.selectFrom('effect').selectAll().where('id', '>', 3))
        .selectFrom('late')
        .select('id')
        .orderBy('id')
      t.deepEqual(await drain(later.stream()), [{ id: 4 }, { id: 5 }])
      const moved = trx
        .with('moved', (db) =>
          db.updateTable('effect').set({ note: 'x' }).where('id', '=', 5).returning('id'),
        )
        .selectFrom('moved')
        .selectAll()
      t.deepEqual(await drain(moved.stream()), [{ id: 5 }])
      const typed = () =>
        trx
          .selectFrom('effect')
          .select([
            sql<Date>`${new Date(0)}::timestamptz`.as('at'),
            sql<number[]>`array[1, 2]`.as('list'),
            sql<unknown>`${JSON.stringify({ x: 1 })}::jsonb`.as('json'),
            sql<null>`null::text`.as('nothing'),
          ])
          .limit(1)
      t.deepEqual(await drain(typed().stream()), await typed().execute())
      const raw = trx.getExecutor().stream(CompiledQuery.raw('select 1 as one'), 10)
      t.deepEqual(await drain(raw), [{ rows: [{ one: 1 }] }])
      for (const chunk of [0, -1, 1.5, Number.NaN])
        await t.throwsAsync(drain(effects.stream(chunk)), { instanceOf: InvalidInputError, code: 'ONARG' })
    })
    t.deepEqual(await a.effects(), [1, 2, 3, 4, 5])
  })

  for (const [how, chunk] of [
    ['after its last row was read', 100],
    ['and leaves it', 2],
  ] as const) {
    test(`A loop over a stream that goes back to a savepoint ${how} leaves a transaction that goes on (${driver})`, async (t) => {
      const { a, once } = await rig(t, driver)
      await a.sql`insert into effect select generate_series(1, 5)`
      await once.transaction(async (tx) => {
        await sql`savepoint s`.execute(tx.a)
        for await (const { id } of tx.a.selectFrom('effect').select('id').orderBy('id').stream(chunk)) {
          try {
            await tx.a
              .insertInto('effect')
              .values({ id: id + 4 })
              .execute()
          } catch {
            await sql`rollback to savepoint s`.execute(tx.a)
            if (chunk === 2) break
          }
        }
        await tx.a.insertInto('effect').values({ id: 100 }).execute()
      })
      t.is((await a.effects()).at(-1), 100)
    })
  }

  test(`A stream whose connection is lost fails, and does not look like its end (${driver})`, async (t) => {
    const { a, once } = await rig(t, driver)
    await a.sql`insert into effect select generate_series(1, 100)`
    const application = driver === 'pg' ? '' : 'pgonce'
    const lost = once.transaction(async (tx) => {
      for await (const { id } of tx.a.selectFrom('effect').select('id').orderBy('id').stream(10)) {
        if (id === 15)
          await killSessions(
            a.sql,
            `application_name = '${application}' and state like 'idle in transaction'`,
          )
      }
    })
    // Of pg's words for it we only know that they are no answer.
    if (driver === 'pg') await t.throwsAsync(lost, { message: /connection/i })
    else await t.throwsAsync(lost, { instanceOf: AbortedError, code: 'CONNECTION_LOST' })
  })
}

async function drain<T>(rows: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const row of rows) all.push(row)
  return all
}
