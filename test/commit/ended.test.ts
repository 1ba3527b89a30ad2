/** Handlers that try to end the transaction they were given. */
import test from 'ava'
import { sql, type Transaction } from 'kysely'
import postgres from 'postgres'
import { client, type Two } from '../support/client.ts'
import { type TestContext, testRole } from '../support/database.ts'
import { type Effects, effectsDatabase } from '../support/effects.ts'

/** What a handler runs, and whether it waits for the answer. */
const endings = [
  ['a text whose last statement is harmless', 'rollback; insert into effect values (99)', true],
  ['a text whose last statement fails', 'rollback; select 1/0', true],
  ['a rollback that it does not wait for', 'rollback', false],
] as const

async function end(trx: Transaction<Effects>, text: string, waits: boolean): Promise<void> {
  const ended = sql
    .raw(text)
    .execute(trx)
    .catch(() => {})
  if (waits) await ended
}

const ways = {
  'a URL, one database': { own: true, both: false },
  'a URL, two databases': { own: true, both: true },
  'an instance, one database': { own: false, both: false },
} as const

for (const [way, { own, both }] of Object.entries(ways)) {
  for (const [what, text, waits] of endings) {
    test(`A handler that ends its transaction with ${what} is told so, and its position stays (${way})`, async (t) => {
      const { a, once } = await rig(t, own)
      const taken = await once.takePartition('a', { group: 'g', topic: 't' })
      const message = { producer: 'p', sequence: 1 }
      await t.throwsAsync(
        once.process(
          'a',
          message,
          async (trx, transactions) => {
            await trx.insertInto('effect').values({ id: 1 }).execute()
            if (both) await transactions.b.insertInto('effect').values({ id: 1 }).execute()
            await end(trx, text, waits)
          },
          { position: { ...taken, expected: null, next: 1 } },
        ),
        { code: 'ONEND' },
      )
      t.is((await once.readPosition('a', taken))?.position, null)
      t.false((await a.effects()).includes(1))
      const again = await once.process('a', message, async () => {}, {
        position: { ...taken, expected: null, next: 1 },
      })
      t.is(again.status, 'processed', 'and the message is new')
    })
  }
}

test('A result is not kept behind the end of the transaction', async (t) => {
  const { a, once } = await rig(t, true)
  const message = { scope: 's', key: 'k', keepResult: true }
  await once.process('a', { scope: 's', key: 'k' }, async () => {})
  await t.throwsAsync(
    once.process('a', { ...message, key: 'other' }, async (trx) => {
      await end(trx, 'rollback; select 1', true)
      return 'result'
    }),
    { code: 'ONEND' },
  )
  t.is(await a.count('once.message'), 1)
})

test('A COMMIT of a handler’s own is not sent, nor is what stands behind it in the same text', async (t) => {
  const a = await effectsDatabase(t, 'a')
  const role = await testRole(t, a)
  await a.sql.unsafe(`grant insert on effect to ${role}`)
  const once = client<{ a: Effects }>(t, { a: a.url }, { maxConnections: 1 })
  const whoAmI = async () => {
    const { result } = await once.transaction(({ a: trx }) =>
      sql<{ who: string }>`select current_user as who`.execute(trx),
    )
    return result.rows[0]?.who
  }
  const before = await whoAmI()
  await t.throwsAsync(
    once.transaction(async ({ a: trx }) => {
      await sql.raw(`commit; set role ${role}; insert into effect values (1)`).execute(trx)
    }),
    { code: 'ONEND' },
  )
  t.is(await whoAmI(), before)
  t.deepEqual(await a.effects(), [])
})

test('A semicolon in a literal, and a statement that failed and was healed, do no harm', async (t) => {
  const { a, once } = await rig(t, true)
  await once.transaction(async ({ a: trx }) => {
    await sql`insert into effect values (1, 'one; two')`.execute(trx)
    await sql`savepoint s`.execute(trx)
    await t.throwsAsync(sql`select 1/0`.execute(trx))
    await sql`rollback to s`.execute(trx)
    await trx.insertInto('effect').values({ id: 2 }).execute()
  })
  t.deepEqual(await a.effects(), [1, 2])
})

async function rig(t: TestContext, own: boolean) {
  const [a, b] = await Promise.all([effectsDatabase(t, 'a'), effectsDatabase(t, 'b')])
  const instance = own ? undefined : postgres(a.url, { onnotice: () => {} })
  t.teardown(() => instance?.end({ timeout: 1 }))
  const once = client<Two>(t, { a: instance ?? a.url, b: b.url } as { a: string; b: string })
  return { a, b, once }
}
