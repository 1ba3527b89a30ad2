/** Commits that wait for a synchronous standby which is away: giving up on them must not end the wait. */
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { AbortedError, OutcomeUnknownError } from '../../src/index.ts'
import { client, reach, type Two, write } from '../support/client.ts'
import {
  connect,
  installSchema,
  ownServer,
  type TestContext,
  type TestDatabase,
} from '../support/database.ts'
import { createEffects, type Effects, effectsDatabase, withEffects } from '../support/effects.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { standbyOf } from '../support/standby.ts'
import { until } from '../support/until.ts'

/** A database on a server of its own, whose standby can be taken away. */
async function replicated(t: TestContext) {
  const server = await ownServer(t)
  const admin = connect(t, server.url('postgres'))
  await admin.unsafe('create database replicated')
  const url = server.url('replicated')
  await installSchema(url)
  const sql = connect(t, url, { max: 4 })
  await sql.unsafe(createEffects)
  const { waiting, lose, regain } = standbyOf(t, admin, url)
  const database = withEffects<TestDatabase>({
    name: 'replicated',
    url,
    urlAs: (role) => server.url('replicated', role),
    sql,
  })
  return {
    database,
    waiting,
    loseStandby: lose,
    regainStandby: regain,
    /** Whether all that waited still does, a while after everybody has given up. */
    async stillWait(pids: readonly number[]): Promise<boolean> {
      await sleep(500)
      const now = await waiting()
      return pids.every((pid) => now.includes(pid))
    },
  }
}

for (const driver of ['postgres.js', 'pg']) {
  test.serial(
    `A claim whose COMMIT waits for a standby is no duplicate until a standby has it (${driver})`,
    async (t) => {
      t.timeout(120_000)
      const { database, waiting, loseStandby, regainStandby, stillWait } = await replicated(t)
      const once = client<{ a: Effects }>(
        t,
        { a: reach(t, driver, database.url) },
        { transaction: { retries: 0, timeout: 1500 } },
      )
      const deliver = (key: string, id: number) =>
        once.process('a', { scope: 's', key }, (trx) => trx.insertInto('effect').values({ id }).execute())
      await deliver('first', 1)
      await loseStandby()
      const before = await waiting()
      await t.throwsAsync(deliver('second', 2), { instanceOf: OutcomeUnknownError })
      const pids = await waiting()
      t.is(pids.length, before.length + 1)
      t.true(await stillWait(pids))
      // Nobody sees it, and nobody is told that it is done.
      t.deepEqual(await database.effects(), [1])
      await t.throwsAsync(deliver('second', 2))
      t.true(await stillWait(pids))
      await regainStandby()
      await until('the commit is done', async () => (await database.effects()).includes(2))
      t.is((await deliver('second', 2)).status, 'duplicate')
    },
  )
}

test.serial(
  'A decision that waits for a standby is not taken for made, nor are its branches finished',
  async (t) => {
    t.timeout(120_000)
    const { database, waiting, loseStandby, regainStandby, stillWait } = await replicated(t)
    const b = await effectsDatabase(t, 'b')
    const once = client<Two>(
      t,
      { a: database.url, b: b.url },
      { transaction: { home: 'a', retries: 0, timeout: 1500 } },
    )
    await write(once, 1, 'ab')
    await loseStandby()
    const error = await t.throwsAsync(write(once, 2, 'ab'), { instanceOf: OutcomeUnknownError })
    const { id } = error as OutcomeUnknownError
    const pids = await waiting()
    t.true(await stillWait(pids))
    t.is(await once.outcome(id as string), 'pending')
    t.deepEqual([await database.effects(), await b.effects(), await b.prepared()], [[1], [1], 1])
    t.like(await once.recovery.run({ purge: false }), { pending: 1, committed: 0, rolledBack: 0 })
    t.true(await stillWait(pids))
    await regainStandby()
    t.is(await once.outcome(id as string), 'committed')
    t.like(await once.recovery.run({ purge: false }), { committed: 1 })
    t.deepEqual(
      [(await database.effects()).filter((one) => one > 0), await b.effects()],
      [
        [1, 2],
        [1, 2],
      ],
    )
  },
)

test.serial(
  'A branch whose PREPARE waits for a standby is left to wait, and rolled back afterwards',
  async (t) => {
    t.timeout(120_000)
    const { database, waiting, loseStandby, regainStandby, stillWait } = await replicated(t)
    const a = await effectsDatabase(t, 'a')
    const once = client<Two>(
      t,
      { a: a.url, b: database.url },
      { transaction: { home: 'a', retries: 0, timeout: 1500 } },
    )
    await write(once, 1, 'ab')
    await loseStandby()
    await t.throwsAsync(write(once, 2, 'ab'), { instanceOf: AbortedError, code: 'TIMEOUT' })
    const pids = await waiting()
    t.true(await stillWait(pids))
    await regainStandby()
    await until('the branch is rolled back', async () => {
      await once.recovery.run({ purge: false })
      return (await database.prepared()) === 0
    })
    t.deepEqual([await a.effects(), (await database.effects()).filter((one) => one > 0)], [[1], [1]])
  },
)

test.serial(
  'A branch whose COMMIT PREPARED waits for a standby is not counted as committed by a run',
  async (t) => {
    t.timeout(120_000)
    const { database, waiting, loseStandby, regainStandby, stillWait } = await replicated(t)
    const a = await effectsDatabase(t, 'a')
    const once = client<Two>(t, { a: a.url, b: database.url })
    await once.recovery.run({ purge: false })
    const { gid } = await leaveOrphan(a, database, 1)
    await loseStandby()
    const report = await once.recovery.run({ keep: 0 })
    t.like(report, { committed: 0, proven: 0, losses: [] })
    t.is(report.unfinished[0]?.gid, gid)
    t.true(await stillWait(await waiting()))
    t.deepEqual([await database.effects(), await database.count('once.evidence')], [[], 0])
    await regainStandby()
    await until('the commit is done', async () => (await database.effects()).includes(1))
    t.like(await once.recovery.run({ keep: 0 }), { proven: 1, losses: [] })
  },
)

test.serial(
  'once.recover() waits with COMMIT PREPARED for the standby, longer than for anything else',
  async (t) => {
    t.timeout(120_000)
    const { database, waiting, loseStandby, regainStandby } = await replicated(t)
    const a = await effectsDatabase(t, 'a')
    await database.sql.unsafe(`
    create extension dblink;
    create server other foreign data wrapper dblink_fdw options (host '${new URL(a.url).hostname}', port '${new URL(a.url).port}', dbname '${a.name}');
    create user mapping for current_user server other options (user 'postgres');
    alter database replicated set statement_timeout = '3s';
    select once.add_peer('other')`)
    await leaveOrphan(a, database, 1)
    await loseStandby()
    const recovering = connect(t, database.url, {
      connection: { statement_timeout: '0' as unknown as number },
    })
    const recovered = recovering<{ action: string; subject: string; detail: string | null }[]>`
    select action, subject, detail from once.recover()`
    recovered.catch(() => {})
    await until('it waits', async () => (await waiting()).length === 2)
    await sleep(12_000)
    t.is((await waiting()).length, 2)
    t.deepEqual(await database.effects(), [])
    await regainStandby()
    t.true((await recovered).some(({ action, detail }) => action === 'committed' && detail === null))
    t.true((await database.effects()).includes(1))
  },
)
