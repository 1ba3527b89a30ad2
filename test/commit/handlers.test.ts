/** What handlers must not do, and what comes of it. */
import test, { type ExecutionContext } from 'ava'
import { sql } from 'kysely'
import { HandlerError } from '../../src/index.ts'
import { client, insert, shop, type Three } from '../support/client.ts'
import { testRole } from '../support/database.ts'
import type { Effects } from '../support/effects.ts'
import { fresh, type Handles, overDrivers, read, seen, sharedShop } from '../support/shop.ts'

const shared = sharedShop()

async function drain(rows: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of rows);
}

for (const [driver, over] of Object.entries(overDrivers)) {
  const refused = async (
    t: ExecutionContext,
    handler: (tx: Handles, id: number) => Promise<unknown>,
    code: string,
    detail?: RegExp,
  ) => {
    const once = over(t, shared())
    const id = fresh()
    const error = await t.throwsAsync(
      once.transaction((tx) => handler(tx, id)),
      {
        instanceOf: HandlerError,
        code,
      },
    )
    if (detail) t.regex(`${error?.message} ${(error as HandlerError).detail}`, detail)
    t.truthy((error as HandlerError).hint)
    t.is(await seen(shared(), id), '')
    // The pool is as good as before.
    const next = fresh()
    await once.transaction((tx) => insert(tx, next, 'a', 'b', 'c'))
    t.is(await seen(shared(), next), 'abc')
  }

  test(`A swallowed SQL error is noticed, in one phase and in two (${driver})`, async (t) => {
    const swallow = async (trx: Handles['a']) => {
      await t.throwsAsync(sql`select 1 / 0`.execute(trx), { code: '22012' })
    }
    for (const [names, failing] of [
      [['a'], 'a'],
      [['a', 'b'], 'a'],
      [['a', 'b'], 'b'],
      [['a'], 'b'],
    ] as const) {
      await refused(
        t,
        async (tx, id) => {
          await insert(tx, id, ...names)
          await swallow(tx[failing])
        },
        'SWALLOWED',
        new RegExp(`database ${failing}`),
      )
    }
  })

  test(`A statement after one whose failure was caught tells the first failure, until a savepoint heals it (${driver})`, async (t) => {
    const once = over(t, shared())
    const id = fresh()
    const goOn = async (trx: Handles['a']) => {
      await sql`select 1 / 0`.execute(trx).catch(() => {})
      await sql`select 2`.execute(trx)
    }
    const caused = async (attempt: Promise<unknown>) => {
      const error = await t.throwsAsync(attempt, { instanceOf: HandlerError, code: 'SWALLOWED' })
      t.like(error?.cause, { code: '22012' })
      t.truthy((error as HandlerError).hint)
    }
    await caused(once.transaction((tx) => goOn(tx.a)))
    await caused(
      once.transaction(async (tx) => {
        await insert(tx, id, 'a')
        await goOn(tx.b)
      }),
    )
    // Whatever the handler makes of that, and what it streams, is no different.
    await caused(
      once.transaction(async (tx) => {
        await insert(tx, id, 'a')
        await caused(goOn(tx.a))
        await caused(insert(tx, id, 'a'))
        await caused(drain(tx.a.selectFrom('effect').selectAll().stream()))
      }),
    )
    // Also what fails while it is streamed.
    await caused(
      once.transaction(async (tx) => {
        const broken = tx.a.selectFrom('effect').select(sql`1 / (id - id)`.as('x')).stream()
        await insert(tx, id, 'a')
        await drain(broken).catch(() => {})
        await insert(tx, fresh(), 'a')
      }),
    )
    t.is(await seen(shared(), id), '')

    await once.transaction(async (tx) => {
      await insert(tx, id, 'a', 'b')
      await sql`savepoint before`.execute(tx.a)
      await t.throwsAsync(sql`select 1 / 0`.execute(tx.a), { code: '22012' })
      await caused(sql`select 2`.execute(tx.a))
      await sql`rollback to savepoint before`.execute(tx.a)
      await sql`select 3`.execute(tx.a)
    })
    t.is(await seen(shared(), id), 'ab')
    // A failure that was healed is not what a later one is blamed on.
    await t
      .throwsAsync(
        once.transaction(async (tx) => {
          await sql`savepoint before`.execute(tx.a)
          await sql`select 1 / 0`.execute(tx.a).catch(() => {})
          await sql`rollback to savepoint before`.execute(tx.a)
          await sql`select 'x'::int`.execute(tx.a).catch(() => {})
          await sql`select 4`.execute(tx.a)
        }),
        { code: 'SWALLOWED' },
      )
      .then((error) => t.like(error?.cause, { code: '22P02' }))
  })

  test(`A handler that returns before its queries are answered is rolled back, and told which (${driver})`, async (t) => {
    const { a, b, c } = shared()
    const once = over(t, { a, b, c, once: client<Three>(t, { a: a.url, b: b.url, c: c.url }) })
    const ways: Record<string, (tx: Handles, id: number) => Promise<unknown>> = {
      'one, of a database that is not begun': async (tx, id) => {
        await insert(tx, id, 'b')
        void insert(tx, id, 'a')
      },
      'one, behind others': async (tx, id) => {
        await insert(tx, id, 'a', 'b')
        sql`select 1 / 0`.execute(tx.a).catch(() => {})
      },
      'forEach(async …)': async (tx, id) => {
        ;[1, 2, 3].forEach(async () => {
          await read(tx, 'a')
          await insert(tx, id, 'a')
        })
      },
      'a chain': async (tx, id) => {
        void (async () => {
          for (const _ of [1, 2, 3]) await read(tx, 'a')
          await insert(tx, id, 'a')
        })()
      },
      'the loser of Promise.race': (tx, id) =>
        Promise.race([
          insert(tx, id, 'a'),
          sql`select pg_sleep(0.2)`.execute(tx.b).then(() => insert(tx, id, 'b')),
        ]),
    }
    for (const [way, handler] of Object.entries(ways)) {
      const id = fresh()
      const error = await t.throwsAsync(
        once.transaction((tx) => handler(tx, id)),
        { code: 'NOT_AWAITED' },
        way,
      )
      t.regex(error?.message ?? '', /select|insert|a query in database/, way)
      t.is(await seen(shared(), id), '', way)
    }
  })

  test(`A query that comes between the handler's return and COMMIT makes the commit fail (${driver})`, async (t) => {
    const once = over(t, shared())
    const id = fresh()
    const error = await t.throwsAsync<HandlerError>(
      once.process('a', { scope: 's', key: `key ${id}` }, async (trx, tx) => {
        await trx.insertInto('effect').values({ id }).execute()
        queueMicrotask(() => insert(tx, id, 'b').catch(() => {}))
      }),
    )
    t.regex(error?.code ?? '', /NOT_AWAITED|ENDED/)
    t.is(await seen(shared(), id), '')
  })

  test(`A handler that commits or rolls back by itself is refused (${driver})`, async (t) => {
    for (const statement of ['rollback', 'rollback and chain', 'abort']) {
      await refused(
        t,
        async (tx, id) => {
          await insert(tx, id, 'a')
          await sql.raw(statement).execute(tx.a)
        },
        'ONEND',
      )
      await refused(
        t,
        async (tx, id) => {
          await insert(tx, id, 'a', 'b')
          await sql.raw(statement).execute(tx.b)
          await sql.raw('begin').execute(tx.b)
        },
        'ONEND',
      )
      await refused(
        t,
        async (tx, id) => {
          await insert(tx, id, 'a', 'b')
          await sql.raw(statement).execute(tx.a)
        },
        'ONEND',
      )
    }
    for (const names of [['a'], ['a', 'b']] as const) {
      const once = over(t, shared())
      const id = fresh()
      await t.throwsAsync(
        once.transaction(async (tx) => {
          await insert(tx, id, ...names)
          await sql`commit`.execute(tx.a)
        }),
        { code: 'ONEND', message: /COMMIT/ },
      )
      t.is(await seen(shared(), id), '', 'it was not sent')
    }
  })

  test(`A handler that ends the transaction of its claim moves no position and keeps no result (${driver})`, async (t) => {
    const once = over(t, shared())
    const partition = { group: `ended ${driver}`, topic: 't' }
    const { epoch } = await once.takePartition('a', partition)
    for (const message of [
      { producer: `ended ${driver}`, sequence: 0 },
      { scope: `ended ${driver}`, key: 'k', keepResult: true },
    ]) {
      const deliver = once.process('a', message, async (trx) => void (await sql`rollback`.execute(trx)), {
        position: { ...partition, epoch, expected: null, next: 1 },
      })
      await t.throwsAsync(deliver, { instanceOf: HandlerError, code: 'ONEND' })
      t.is((await once.readPosition('a', partition))?.position, null)
      t.is((await once.process('a', message, async () => 1)).status, 'processed')
    }
  })

  test(`A role that a handler leaves in force ends with its transaction, or is refused (${driver})`, async (t) => {
    const role = await testRole(t, [shared().a])
    if (driver === 'postgres.js') {
      // On connections of our own it is reset, before the commit.
      const once = client<{ a: Effects }>(t, { a: shared().a.url }, { maxConnections: 1 })
      const whoAmI = async () =>
        (await once.transaction(({ a }) => sql<{ who: string }>`select current_user as who`.execute(a)))
          .result.rows
      const before = await whoAmI()
      for (const change of [
        `set role ${role}`,
        `set session authorization ${role}`,
        `select set_config('role', '${role}', false)`,
      ]) {
        const id = fresh()
        await once.transaction(async ({ a }) => {
          await a.insertInto('effect').values({ id }).execute()
          await sql.raw(change).execute(a)
        })
        t.is(await seen(shared(), id), 'a', change)
        t.deepEqual(await whoAmI(), before, change)
      }
      return
    }
    await refused(
      t,
      async (tx, id) => {
        await insert(tx, id, 'a')
        await sql.raw(`set role ${role}`).execute(tx.a)
      },
      'ONROL',
    )
    await refused(
      t,
      async (tx, id) => {
        await insert(tx, id, 'b', 'a')
        await sql.raw(`set role ${role}`).execute(tx.a)
      },
      'ONROL',
    )
    const once = over(t, shared())
    const id = fresh()
    await once.transaction(async (tx) => {
      await sql.raw(`set role ${role}`).execute(tx.a)
      await sql`reset role`.execute(tx.a)
      await insert(tx, id, 'a')
    })
    t.is(await seen(shared(), id), 'a')
  })

  test(`What cannot be prepared is named; on the home, or alone, it is allowed (${driver})`, async (t) => {
    for (const statement of [
      'notify something',
      'listen something',
      'create temp table scratch (x int) on commit drop',
      'declare held cursor with hold for select 1',
      'select pg_export_snapshot()',
    ]) {
      await refused(
        t,
        async (tx, id) => {
          await insert(tx, id, 'a', 'b')
          await sql.raw(statement).execute(tx.b)
        },
        'CANNOT_PREPARE',
        /database b/,
      )
    }
    const once = over(t, shared())
    const id = fresh()
    await once.transaction(async (tx) => {
      await insert(tx, id, 'a', 'b')
      await sql`notify something`.execute(tx.a)
    })
    await once.transaction(async (tx) => {
      await sql`create temp table scratch (x int) on commit drop`.execute(tx.a)
    })
    t.is(await seen(shared(), id), 'ab')
  })

  test(`A constraint that is checked at the end undoes everything, wherever it fails (${driver})`, async (t) => {
    const own = await shop(t)
    for (const { sql } of [own.a, own.b]) {
      await sql`alter table effect add column other int references effect (id) deferrable initially deferred`
    }
    const once = over(t, own)
    for (const [id, bad] of [
      [1, 'a'],
      [2, 'b'],
    ] as const) {
      await t.throwsAsync(
        once.transaction(async (tx) => {
          await insert(tx, id, 'a', 'b')
          await sql`update effect set other = 99 where id = ${id}`.execute(tx[bad])
        }),
        { code: '23503' },
      )
      await t.throwsAsync(
        once.transaction(async (tx) => {
          await insert(tx, id, bad)
          await sql`update effect set other = 99 where id = ${id}`.execute(tx[bad])
        }),
        { code: '23503' },
      )
    }
    t.deepEqual([await own.a.effects(), await own.b.effects()], [[], []])
    t.is(await own.b.prepared(), 0)
  })

  test(`A handle that is used after the end is refused (${driver})`, async (t) => {
    const once = over(t, shared())
    const id = fresh()
    let leaked: Handles | undefined
    await once.transaction(async (tx) => {
      leaked = tx
      await insert(tx, id, 'a')
    })
    const handles = leaked as Handles
    await t.throwsAsync(insert(handles, fresh(), 'a'), { instanceOf: HandlerError, code: 'ENDED' })
    await t.throwsAsync(insert(handles, fresh(), 'b'), { instanceOf: HandlerError, code: 'ENDED' })
    await t.throwsAsync(
      (async () => {
        for await (const _ of handles.a.selectFrom('effect').selectAll().stream()) t.fail()
      })(),
      { code: 'ENDED' },
    )
  })
}

test('A parameter that cannot be sent harms nobody else on the connection', async (t) => {
  const once = client<{ a: Effects }>(t, { a: shared().a.url }, { maxConnections: 1 })
  const circular: { self?: unknown } = {}
  circular.self = circular
  for (let round = 0; round < 3; round += 1) {
    for (const [value, type] of [
      [undefined, 'int'],
      [new Date(Number.NaN), 'timestamptz'],
      ['no date', 'timestamptz'],
      [circular, 'jsonb'],
      [1n, 'jsonb'],
      [Symbol('x'), 'bytea'],
      [[1, undefined], 'int[]'],
      [Symbol('x'), 'text'],
    ] as const) {
      const note = `${round} ${String(type)}`
      await t.throwsAsync(
        once.transaction(async ({ a }) => {
          // Neither is waited for, so the second would be sent behind the first.
          await Promise.all([
            sql`select ${note}::text`.execute(a),
            sql`select ${value}::${sql.raw(type)}`.execute(a),
          ])
        }),
        undefined,
        note,
      )
      const { result } = await once.transaction(async ({ a }) => {
        const [one, two] = await Promise.all([
          sql<{ n: string }>`select ${note}::text as n`.execute(a),
          sql<{ n: number }>`select ${round}::int as n`.execute(a),
        ])
        return [one.rows[0]?.n, two.rows[0]?.n]
      })
      t.deepEqual(result, [note, round])
    }
  }
})

test('A transaction inside a transaction is refused; in what the handler left running it is not', async (t) => {
  const { once } = shared()
  const other = client<Three>(t, { a: shared().a.url, b: shared().b.url, c: shared().c.url })
  let later: Promise<unknown> | undefined
  let letGo = () => {}
  const ended = new Promise<void>((resolve) => {
    letGo = resolve
  })
  const { result } = await once.transaction(async () => {
    await t.throwsAsync(
      once.transaction(async () => 1),
      { instanceOf: HandlerError, code: 'NESTED' },
    )
    await t.throwsAsync(
      once.process('a', { producer: 'p', sequence: 0 }, async () => 1),
      { code: 'NESTED' },
    )
    later = ended.then(() => once.transaction(async (tx) => read(tx, 'a')))
    return (await other.transaction(async () => 'another client is none of its business')).result
  })
  t.truthy(result)
  letGo()
  await t.notThrowsAsync(async () => later)
})

test('What a handler leaves in its session meets no other message: in one phase, in two, and after a rollback', async (t) => {
  const { a, b, once } = await shop(t, { maxConnections: 1 })
  const leave = async (trx: Handles['a']) => {
    await sql`set application_name = 'somebody else'`.execute(trx)
    await sql`set synchronous_commit = off`.execute(trx)
    await sql`select from pg_advisory_lock(42)`.execute(trx)
  }
  const left = async (trx: Handles['a']) => {
    const { rows } = await sql`select current_setting('application_name') = 'somebody else' as name,
        current_setting('synchronous_commit') as durable,
        (select count(*)::int from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,
        current_setting('default_transaction_read_only') as net`.execute(trx)
    return rows
  }
  const nothing = [{ name: false, durable: 'on', locks: 0, net: 'on' }]
  for (const [both, gaveUp] of [
    [false, false],
    [true, false],
    [true, true],
  ]) {
    const done = once.transaction(async (tx) => {
      const id = fresh()
      for (const name of both ? (['a', 'b'] as const) : (['a'] as const)) {
        await insert(tx, id, name)
        await leave(tx[name])
      }
      if (gaveUp) throw new Error('enough')
    })
    await (gaveUp ? t.throwsAsync(done, { message: 'enough' }) : done)
    for (const name of ['a', 'b'] as const) {
      await once.transaction(async (tx) =>
        t.deepEqual(await left(tx[name]), nothing, `${name} ${both} ${gaveUp}`),
      )
    }
  }
  t.is((await a.effects()).length, (await b.effects()).length + 1)
})

test('A handler that takes away what COMMIT needs is rolled back, and harms no other', async (t) => {
  const { a, once } = await shop(t, { maxConnections: 1 })
  const id = fresh()
  await t.throwsAsync(
    once.transaction(
      async (tx) => {
        await insert(tx, id, 'a')
        await sql`deallocate all`.execute(tx.a)
      },
      { retries: 1 },
    ),
    { code: 'NO_STATEMENT' },
  )
  t.deepEqual(await a.effects(), [])
  const message = { producer: String(id), sequence: 0 }
  const query = once.builder('a').insertInto('effect').values({ id })
  t.is((await once.process('a', message, [query], { retries: 0 })).status, 'processed')
  t.deepEqual(await a.effects(), [id])
})
