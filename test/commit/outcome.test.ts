import test from 'ava'
import type { Transaction } from 'kysely'
import { AbortedError, OutcomeUnknownError } from '../../src/index.ts'
import { client, type Two, write } from '../support/client.ts'
import type { TestContext } from '../support/database.ts'
import type { Effects } from '../support/effects.ts'
import { type BehindProxies, behindProxies } from '../support/proxy.ts'
import { at } from '../support/steps.ts'
import { until } from '../support/until.ts'

/** With a client that has used both; nothing is left of that. */
async function lossy(t: TestContext, driver: string): Promise<BehindProxies> {
  const all = await behindProxies(t, driver)
  // What is prepared on a connection needs no answer before it can be sent again.
  for (const [id, names] of ['a', 'ab', 'ab'].entries()) await write(all.once, id, names, { record: id < 2 })
  await all.once.recovery.run({ keep: 0 })
  for (const { sql } of [all.a, all.b]) await sql`delete from effect`
  return all
}

for (const driver of ['postgres.js', 'pg']) {
  test.serial(
    `A server that is silent when the handler has returned holds nobody beyond the timeout (${driver})`,
    async (t) => {
      const { a, toA, once } = await lossy(t, driver)
      const handler = async ({ a: trx }: { readonly a: Transaction<Effects> }) => {
        await trx.insertInto('effect').values({ id: 1 }).execute()
        toA.muteServer()
      }
      // Recorded, its xid is asked for first.
      await t.throwsAsync(once.transaction(handler, { record: true, timeout: 300 }), {
        instanceOf: AbortedError,
        code: 'TIMEOUT',
      })
      toA.cut()
      t.deepEqual(await a.effects(), [])
    },
  )

  test.serial(
    `The answer to the decision is lost: the home is asked, and the branches follow it (${driver})`,
    async (t) => {
      const { a, b, toA, once } = await lossy(t, driver)
      at(t, 'decide', 'start', 'a', async () => {
        toA.muteServer()
        await until('the home has committed', async () => (await a.effects()).includes(1))
        toA.cut()
      })
      t.like(await write(once, 1, 'ab'), { result: 'written', finished: true })
      t.deepEqual([await a.effects(), await b.effects()], [[1], [1]])
      t.is(await b.prepared(), 0)
    },
  )

  test.serial(
    `The decision does not reach the home: nothing took effect anywhere, and that is what is said (${driver})`,
    async (t) => {
      const { a, b, toA, once } = await lossy(t, driver)
      at(t, 'decide', 'start', 'a', () => {
        toA.muteClient()
        setTimeout(() => toA.cut(), 50)
      })
      await t.throwsAsync(write(once, 1, 'ab'), { instanceOf: AbortedError, code: 'CONNECTION_LOST' })
      await once.recovery.run()
      t.deepEqual([await a.effects(), await b.effects()], [[], []])
      t.is(await b.prepared(), 0)
      await write(once, 1, 'ab')
    },
  )

  test.serial(
    `A home that stays away leaves the outcome unknown, with the id to ask for it later (${driver})`,
    async (t) => {
      const { a, b, toA, once } = await lossy(t, driver)
      at(t, 'decide', 'start', 'a', async () => {
        toA.muteServer()
        await until('the home has committed', async () => (await a.effects()).includes(1))
        toA.refuse()
      })
      const error = await t.throwsAsync(write(once, 1, 'ab', { timeout: 1_000 }), {
        instanceOf: OutcomeUnknownError,
        code: 'OUTCOME_UNKNOWN',
      })
      const { id } = error as OutcomeUnknownError
      t.is(await b.prepared(), 1)
      const direct = client<Two>(t, { a: a.url, b: b.url })
      t.is(await direct.outcome(id ?? ''), 'committed')
      t.like(await direct.recovery.run(), { committed: 1, unfinished: [] })
      t.deepEqual([await a.effects(), await b.effects()], [[1], [1]])
    },
  )

  for (const record of [false, true]) {
    test.serial(
      `In one database a lost answer is ${record ? 'asked for again, as its outcome is recorded' : 'reported as unknown'} (${driver})`,
      async (t) => {
        const { a, toA, once } = await lossy(t, driver)
        at(t, 'decide', 'start', 'a', async () => {
          toA.muteServer()
          await until('it has committed', async () => (await a.effects()).includes(1))
          toA.cut()
        })
        const written = write(once, 1, 'a', { record })
        if (record) {
          const { id } = await written
          t.is(await once.outcome(id ?? ''), 'committed')
          return
        }
        const error = await t.throwsAsync(written, { instanceOf: OutcomeUnknownError })
        t.is((error as OutcomeUnknownError).id, null)
      },
    )

    test.serial(
      `In one database a COMMIT that does not arrive is never taken for a success${record ? ' (recorded)' : ''} (${driver})`,
      async (t) => {
        const { a, toA, once } = await lossy(t, driver)
        at(t, 'decide', 'start', 'a', () => {
          toA.muteClient()
          setTimeout(() => toA.cut(), 50)
        })
        const error = await t.throwsAsync(write(once, 1, 'a', { record }))
        t.deepEqual(await a.effects(), [])
        if (error instanceof OutcomeUnknownError && error.id !== null) {
          const { id } = error
          t.is(
            await until('the server has noticed', async () => {
              const outcome = await once.outcome(id)
              return outcome === 'pending' ? undefined : outcome
            }),
            'aborted',
          )
        }
      },
    )
  }

  for (const [step, when] of [
    ['begin', 'asyncEnd'],
    ['prepare', 'start'],
  ] as const) {
    test.serial(
      `A participant that is lost at ${step} (${when}) undoes everything (${driver})`,
      async (t) => {
        const { a, b, toB, once } = await lossy(t, driver)
        at(t, step, when, 'b', () => toB.cut())
        await t.throwsAsync(write(once, 1, 'ab'), { instanceOf: AbortedError, code: 'CONNECTION_LOST' })
        await until('recovery is through', async () => {
          const { pending, unfinished, unreachable } = await once.recovery.run()
          return pending + unfinished.length + unreachable.length + (await b.prepared()) === 0
        })
        t.deepEqual([await a.effects(), await b.effects()], [[], []])
        await write(once, 1, 'ab')
        t.deepEqual([await a.effects(), await b.effects()], [[1], [1]])
      },
    )
  }

  test.serial(
    `A participant whose answer to PREPARE is lost is rolled back by recovery (${driver})`,
    async (t) => {
      const { a, b, toB, once } = await lossy(t, driver)
      at(t, 'prepare', 'start', 'b', async () => {
        toB.muteServer()
        await until('it is prepared', async () => (await b.prepared()) === 1)
        toB.cut()
      })
      await t.throwsAsync(write(once, 1, 'ab'), { instanceOf: AbortedError, code: 'CONNECTION_LOST' })
      t.is(await b.prepared(), 1)
      t.like(await once.recovery.run(), { rolledBack: 1 })
      t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[], [], 0])
    },
  )

  test.serial(
    `A participant that is lost when it is to be finished is finished by recovery (${driver})`,
    async (t) => {
      const { a, b, toB, once } = await lossy(t, driver)
      const running = once.recovery.start({ interval: 20 })
      at(t, 'finish', 'start', 'b', () => toB.cut())
      const { finished, id } = await write(once, 1, 'ab')
      t.is(await once.outcome(id ?? ''), 'committed')
      if (finished) t.deepEqual(await b.effects(), [1])
      await until('recovery has finished it', async () => (await b.effects()).length === 1)
      t.deepEqual(await a.effects(), [1])
      await running.stop()
    },
  )

  test.serial(
    `A participant whose answer to COMMIT PREPARED is lost was committed, and nobody says otherwise (${driver})`,
    async (t) => {
      const { a, b, toB, once } = await lossy(t, driver)
      at(t, 'finish', 'start', 'b', async () => {
        toB.muteServer()
        await until('it is committed', async () => (await b.effects()).length === 1)
        toB.cut()
      })
      const { id } = await write(once, 1, 'ab')
      t.is(await once.outcome(id ?? ''), 'committed')
      t.like(await once.recovery.run({ keep: 0 }), { committed: 0, rolledBack: 0, losses: [], proven: 1 })
      t.deepEqual([await a.effects(), await b.effects()], [[1], [1]])
    },
  )
}

test('A connection that is lost outside of a transaction is told as lost', async (t) => {
  const { a, once, toA } = await lossy(t, 'postgres.js')
  const partition = { group: 'readers', topic: 'numbers' }
  const { id } = await write(once, 9, 'ab')
  const tries: Record<string, () => Promise<unknown>> = {
    'taking a partition': () => once.takePartition('a', partition),
    'reading a position': () => once.readPosition('a', partition),
    'asking for an outcome': () => once.outcome(id ?? ''),
  }
  for (const [what, attempt] of Object.entries(tries)) {
    // On a connection that is open already; one that is lost while it is being opened is opened again.
    await attempt()
    toA.muteServer()
    setTimeout(() => toA.cut(), 50)
    const error = await t.throwsAsync(attempt(), { instanceOf: AbortedError }, what)
    t.is(error?.code, 'CONNECTION_LOST', what)
  }
  t.deepEqual(await a.effects(), [9])
})
