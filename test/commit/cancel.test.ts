import test, { type ExecutionContext } from 'ava'
import type { Transaction } from 'kysely'
import { client } from '../support/client.ts'
import { connect, type TestDatabase } from '../support/database.ts'
import { type Effects, effectsDatabase } from '../support/effects.ts'

/** Asks the server again and again to cancel whatever the client's sessions run. */
function hammer(t: ExecutionContext, { url }: TestDatabase): () => Promise<void> {
  const sql = connect(t, url, { connection: { application_name: 'hammer' } })
  let running = true
  const hammering = (async () => {
    while (running) {
      await sql`
        select pg_cancel_backend(a.pid), pg_sleep(0.0003 * random())
          from generate_series(1, 20), lateral (
            select pid from pg_stat_activity
             where datname = current_database() and application_name = 'pgonce') a`
    }
  })()
  return async () => {
    running = false
    await hammering
  }
}

const times = 500

// BEGIN travels ahead of what follows it, and a request to cancel, of whatever was before, may hit BEGIN itself.
test('A statement behind a BEGIN that is cancelled does not take effect by itself', async (t) => {
  const database = await effectsDatabase(t)
  const once = client<{ a: Effects }>(t, { a: database.url }, { maxConnections: 1 })
  const write = (id: number) => once.transaction(({ a }) => a.insertInto('effect').values({ id }).execute())
  const told = [0]
  await write(0)
  const stop = hammer(t, database)
  for (let id = 1; id <= times; id += 1) {
    await write(id).then(
      () => told.push(id),
      () => {},
    )
  }
  await stop()
  t.true(told.length < times)
  t.deepEqual(await database.effects(), told)
})

for (const kind of ['sequence', 'key', 'sequences', 'keys'] as const) {
  test(`A claim behind a BEGIN that is cancelled leaves the message new (${kind})`, async (t) => {
    const database = await effectsDatabase(t)
    const once = client<{ a: Effects }>(t, { a: database.url }, { maxConnections: 1 })
    const attempt = async (id: number): Promise<boolean> => {
      const write = (trx: Transaction<Effects>) => trx.insertInto('effect').values({ id }).execute()
      if (kind === 'sequence')
        return (await once.process('a', { producer: 'p', sequence: id }, write)).status === 'processed'
      if (kind === 'key')
        return (await once.process('a', { scope: 's', key: String(id) }, write)).status === 'processed'
      const { claimed } =
        kind === 'sequences'
          ? await once.processBatch('a', { producer: 'p', sequences: [id] }, write)
          : await once.processBatch('a', { scope: 's', messages: [String(id)] }, write)
      return claimed.length === 1
    }
    await attempt(0)
    const stop = hammer(t, database)
    const told = [0]
    for (let id = 1; id <= times; id += 1) {
      await attempt(id).then(
        () => told.push(id),
        () => {},
      )
    }
    await stop()
    t.true(told.length < times)
    t.deepEqual(await database.effects(), told)
    for (let id = 1; id <= times; id += 1) if (await attempt(id)) told.push(id)
    t.is(told.length, times + 1)
  })
}
