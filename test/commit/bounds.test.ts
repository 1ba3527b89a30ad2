/** How long a caller can be held, and in what state connections go back to their pools. */
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { type Kysely, sql } from 'kysely'
import { takeKyselyLink } from '../../src/connection/kysely-link.ts'
import type { Link } from '../../src/connection/link.ts'
import { AbortedError, HandlerError, OutcomeUnknownError, type Pgonce } from '../../src/index.ts'
import { client, kyselyOnPg, type Two, write } from '../support/client.ts'
import { type TestContext, testRole } from '../support/database.ts'
import { type Effects, effectsDatabase, twoDatabases } from '../support/effects.ts'
import { type BehindProxies, behindProxies } from '../support/proxy.ts'
import { at } from '../support/steps.ts'
import { until } from '../support/until.ts'

/** With a client that has used both. */
async function used(t: TestContext, driver: string): Promise<BehindProxies> {
  const all = await behindProxies(t, driver)
  await write(all.once, 0, 'ab')
  return all
}

/** What came of it, and after how many milliseconds. */
async function timed<T>(running: Promise<T>): Promise<{ result?: T; error?: unknown; time: number }> {
  const start = performance.now()
  const told = await running.then(
    (result) => ({ result }),
    (error: unknown) => ({ error }),
  )
  return { ...told, time: performance.now() - start }
}

const codeOf = (error: unknown) => (error as { code?: string } | undefined)?.code

/** Far less than the ten seconds for which connections are waited for, and time enough for a busy machine. */
const soon = 5_000

for (const driver of ['postgres.js', 'pg']) {
  test.serial(
    `Nobody is held beyond the timeout by servers that fall silent before PREPARE (${driver})`,
    async (t) => {
      const { a, b, toA, toB, once } = await used(t, driver)
      const silent = write(once, 1, 'ab', { timeout: 500 }, () => {
        toA.muteServer()
        toB.muteServer()
      })
      const { error, time } = await timed(silent)
      t.is(codeOf(error), 'TIMEOUT')
      t.true(time < soon, `${time} ms`)
      toA.cut()
      toB.cut()
      await until('it is rolled back', async () => {
        await once.recovery.run({ purge: false })
        return (await b.prepared()) === 0
      })
      t.deepEqual([await a.effects(), await b.effects()], [[0], [0]])
      await write(once, 2, 'ab')
    },
  )

  test.serial(
    `Nobody is held beyond the timeout by a home that falls silent after PREPARE has failed (${driver})`,
    async (t) => {
      const { b, toA, once } = await used(t, driver)
      // Refused at PREPARE; by then the home does not answer to ROLLBACK.
      at(t, 'prepare', 'start', 'b', () => toA.muteServer())
      const refused = once.transaction(
        async (tx) => {
          await tx.a.insertInto('effect').values({ id: 1 }).execute()
          await sql`create temp table scratch (id int)`.execute(tx.b)
          await tx.b.insertInto('effect').values({ id: 1 }).execute()
        },
        { timeout: 500 },
      )
      const { error, time } = await timed(refused)
      t.is(codeOf(error), 'CANNOT_PREPARE')
      t.true(time < soon, `${time} ms`)
      t.is(await b.prepared(), 0)
    },
  )

  test.serial(
    `Nobody is held beyond the timeout by a silent server after the handler has thrown (${driver})`,
    async (t) => {
      const { a, toA, once } = await used(t, driver)
      const thrown = write(once, 1, 'a', { timeout: 500 }, () => {
        toA.muteServer()
        throw new Error('of the handler')
      })
      const { error, time } = await timed(thrown)
      t.is((error as Error).message, 'of the handler')
      t.true(time < soon, `${time} ms`)
      toA.cut()
      await until('it is rolled back', async () => (await a.effects()).length === 1)
      await write(once, 2, 'a')
    },
  )

  test.serial(
    `Nobody is held beyond the timeout to hear that a silent participant is finished (${driver})`,
    async (t) => {
      const { a, b, toB, once } = await used(t, driver)
      at(t, 'finish', 'start', 'b', () => toB.muteClient())
      const { result, time } = await timed(write(once, 1, 'ab', { timeout: 1_000 }))
      t.is(result?.finished, false)
      t.true(time < soon, `${time} ms`)
      t.deepEqual(await a.effects(), [0, 1])
      toB.cut()
      await until('recovery has finished it', async () => {
        await once.recovery.run({ purge: false })
        return (await b.effects()).length === 2
      })
    },
  )

  test.serial(
    `A COMMIT without an answer holds nobody for longer than three timeouts (${driver})`,
    async (t) => {
      const { toA, once } = await used(t, driver)
      at(t, 'decide', 'start', 'a', () => toA.muteServer())
      const { error, time } = await timed(write(once, 1, 'ab', { timeout: 500 }))
      t.true(error instanceof OutcomeUnknownError)
      t.true(time < 1_500 + soon / 2, `${time} ms`)
    },
  )
}

test('What a given-up connection of the caller’s had not sent is never sent', async (t) => {
  const a = await effectsDatabase(t)
  const db = kyselyOnPg<Effects>(t, a.url, { max: 1 })
  const session = await takeKyselyLink(db as Kysely<unknown>)
  await session.query('begin')
  const runs = session.query('select pg_sleep(0.3)')
  const waits = t.throwsAsync(session.query('commit'), { instanceOf: AbortedError })
  await sleep(0)
  session.abandon()
  await runs
  await waits
  await db.insertInto('effect').values({ id: 1 }).execute()
  t.deepEqual(await a.effects(), [1])
})

// ---------------------------------------------------------------------------------------------------
// What goes back to the pool

test('No connection goes back inside a failed transaction when the home refuses to commit', async (t) => {
  const [a, b] = await twoDatabases(t)
  const db = kyselyOnPg<Effects>(t, a.url, { max: 1 })
  const once = client<Two>(t, { a: db, b: b.url }, { transaction: { home: 'a', retries: 0 } })
  await write(once, 0, 'ab')
  const [{ definition } = { definition: '' }] = await a.sql<{ definition: string }[]>`
    select pg_get_functiondef('once.begin_global(uuid, text[], uuid[], uuid)'::regprocedure) as definition`
  // As a request to cancel does there.
  await a.sql.unsafe(`create or replace function once.begin_global(transaction_id uuid, participants text[],
    database_ids uuid[], home uuid default null) returns xid8 language plpgsql volatile set search_path = '' as $$ begin raise exception 'canceling' using errcode = '57014'; end $$`)
  await t.throwsAsync(write(once, 1, 'ab'), { code: '57014' })
  await a.sql.unsafe(definition)
  t.is(await b.prepared(), 0)
  await db.insertInto('effect').values({ id: 2 }).execute()
  t.deepEqual([await a.effects(), await b.effects()], [[0, 2], [0]])
})

/** Calls that leave a role in force, of which no command tag tells. */
const leavesRole: Readonly<Record<string, (role: string) => string>> = {
  'by set_config': (role) => `select set_config('role', '${role}', false)`,
  'by a function that hides it': (role) => `select become('${role}')`,
}

for (const [how, statement] of Object.entries(leavesRole)) {
  test(`A role left in force ${how} is gone from a pool of ours`, async (t) => {
    const { a, role, whoIs } = await withRole(t)
    const once = client<{ a: Effects }>(t, { a: a.url }, { maxConnections: 1 })
    const before = await whoIs(once)
    await once.transaction(async (tx) => {
      await tx.a.insertInto('effect').values({ id: 1 }).execute()
      await sql.raw(statement(role)).execute(tx.a)
    })
    t.deepEqual([await a.effects(), await whoIs(once)], [[1], before])
  })

  test(`A role left in force ${how} is refused on a connection of the caller’s`, async (t) => {
    const { a, role, whoIs } = await withRole(t)
    const target = kyselyOnPg<Effects>(t, a.url, { max: 1 })
    const once = client<{ a: Effects }>(t, { a: target }, { transaction: { retries: 0 } })
    const before = await whoIs(once)
    const refused = once.transaction(async (tx) => {
      await tx.a.insertInto('effect').values({ id: 1 }).execute()
      await sql.raw(statement(role)).execute(tx.a)
    })
    await t.throwsAsync(refused, { instanceOf: HandlerError, code: 'ONROL' })
    t.deepEqual([await a.effects(), await whoIs(once)], [[], before])
  })
}

test('A role left behind a COMMIT of the handler’s own is gone from a pool of ours', async (t) => {
  const { a, role, whoIs } = await withRole(t)
  const once = client<{ a: Effects }>(t, { a: a.url }, { maxConnections: 1, transaction: { retries: 0 } })
  const before = await whoIs(once)
  const refused = once.transaction(async (tx) => {
    await sql.raw(`set role ${role}`).execute(tx.a)
    await sql`commit`.execute(tx.a)
  })
  await t.throwsAsync(refused, { instanceOf: HandlerError, code: 'ONEND' })
  t.is(await whoIs(once), before)
})

async function withRole(t: TestContext) {
  const a = await effectsDatabase(t)
  const role = await testRole(t, [a])
  await a.sql`select once.grant_app(${role})`
  await a.sql.unsafe(`create function become(role text) returns void language plpgsql as $$
    begin perform set_config('role', role, false); end $$`)
  const whoIs = async (once: Pgonce<{ a: Effects }>) => {
    const { result } = await once.transaction(
      async (tx) => (await sql<{ name: string }>`select current_user::text as name`.execute(tx.a)).rows[0],
    )
    return result?.name
  }
  return { a, role, whoIs }
}

/** A connection of a caller who has given it a role, and what its role is in the end. */
async function ofCaller(t: TestContext) {
  const a = await effectsDatabase(t)
  const [callers, owner] = await Promise.all([testRole(t, [a]), testRole(t, [a])])
  const db = kyselyOnPg<Effects>(t, a.url, { max: 1 })
  const role = async () =>
    (await sql<{ role: string }>`select current_setting('role') as role`.execute(db)).rows[0]?.role
  await sql.raw(`set role ${callers}`).execute(db)
  const take = (): Promise<Link> => takeKyselyLink(db as Kysely<unknown>)
  return { callers, owner, role, take }
}

test('A caller’s connection that recovery gives up goes back with the role it came with', async (t) => {
  const { callers, owner, role, take } = await ofCaller(t)
  const session = await take()
  await session.takeRole(owner)
  const runs = session.query('select pg_sleep(0.3)')
  await sleep(0)
  session.abandon()
  await runs
  t.is(await role(), callers)
})

test('A caller’s connection whose role cannot be left goes back only when it could', async (t) => {
  const { callers, owner, role, take } = await ofCaller(t)
  const session = await take()
  await session.takeRole(owner)
  await session.query('begin')
  await t.throwsAsync(session.query('select 1/0'))
  // Refused, inside a failed transaction.
  await session.leaveRole()
  await t.throwsAsync(session.query('select 1'), { instanceOf: AbortedError, code: 'ENDED' })
  t.is(await role(), callers)
})

test('A caller’s connection keeps its role where none was taken', async (t) => {
  const { callers, role, take } = await ofCaller(t)
  const session = await take()
  await session.query('begin')
  session.abandon()
  t.is(await role(), callers)
})

// ---------------------------------------------------------------------------------------------------

test('A handler is not run anew after an outcome that is not known, whatever was its cause', async (t) => {
  const a = await effectsDatabase(t)
  const once = client<{ a: Effects }>(t, { a: a.url })
  let runs = 0
  const cause = Object.assign(new Error('could not serialize access'), { code: '40001' })
  const unknown = once.transaction(async () => {
    runs += 1
    throw new OutcomeUnknownError(null, 'lost at COMMIT', { cause })
  })
  await t.throwsAsync(unknown, { instanceOf: OutcomeUnknownError })
  t.is(runs, 1)
})

for (const what of ['takePartition', 'readPosition'] as const) {
  test.serial(`${what} ends at a server that falls silent, and lets close() end`, async (t) => {
    const { toA } = await behindProxies(t, 'postgres.js')
    const once = client<{ a: Effects }>(t, { a: toA.url }, { transaction: { timeout: 500 } })
    const partition = { group: 'g', topic: 't' }
    await once.takePartition('a', partition)
    toA.muteServer()
    const { error, time } = await timed<unknown>(once[what]('a', partition))
    t.is(codeOf(error), 'TIMEOUT')
    t.true(time < soon, `${time} ms`)
    const closed = await timed(once.close())
    t.is(closed.error, undefined)
    toA.cut()
  })
}
