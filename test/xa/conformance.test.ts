/** What the XA specification and the faults of other drivers ask of a resource manager, one test each. */
import test, { type ExecutionContext } from 'ava'
import { sql } from 'kysely'
import type { DatabaseTarget } from '../../src/index.ts'
import {
  TMENDRSCAN,
  TMFAIL,
  TMJOIN,
  TMNOFLAGS,
  TMONEPHASE,
  TMRESUME,
  TMSTARTRSCAN,
  TMSUCCESS,
  TMSUSPEND,
  XA_OK,
  XA_RDONLY,
  type XaResource,
  type XidInput,
} from '../../src/xa/index.ts'
import { killSessions, kyselyOnPg } from '../support/client.ts'
import { connect, fileContext, ownServer, testRole } from '../support/database.ts'
import type { Effects } from '../support/effects.ts'
import { standbyOf } from '../support/standby.ts'
import { until } from '../support/until.ts'
import { freshXid, resource, throwsXa, unsteady, work, xaDatabase } from './support.ts'

const file = fileContext(test.after.always)
/** For tests that look at nothing but their own xids. */
let shared: XaResource<Effects>
test.before(async () => {
  shared = resource(file, (await xaDatabase(file)).url)
})
let last = 0
/** An id that no other test on the shared database uses. */
const fresh = () => ++last

/** A database and a resource over it. */
async function manager(t: ExecutionContext) {
  const database = await xaDatabase(t)
  return { database, xa: resource(t, database.url) }
}

/** A verb that takes an xid and nothing else. */
type Verb = (xid: XidInput) => Promise<unknown>

/** Whether an xid is among the prepared branches. */
async function lists(xa: XaResource<Effects>, xid: { gtrid: unknown }): Promise<boolean> {
  return (await xa.recover()).some(
    (found) => 'gtrid' in found && Buffer.from(found.gtrid).equals(xid.gtrid as Buffer),
  )
}

// ---------------------------------------------------------------------------------------------------
// The phases

test('A branch commits in one phase', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  t.deepEqual(await database.effects(), [])
  t.is(await xa.commit(xid, TMONEPHASE), XA_OK)
  t.deepEqual(await database.effects(), [1])
  t.is(await database.prepared(), 0)
})

test('A branch commits in two phases', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  t.is(await xa.prepare(xid), XA_OK)
  t.deepEqual(await database.effects(), [])
  t.is(await database.prepared(), 1)
  t.is(await xa.commit(xid), XA_OK)
  t.deepEqual(await database.effects(), [1])
  t.is(await database.prepared(), 0)
})

for (const [name, targetOf] of Object.entries({
  'a postgres.js instance': (t: ExecutionContext, url: string): DatabaseTarget<Effects> =>
    connect(t, url, { max: 2 }),
  'Kysely on pg': (t: ExecutionContext, url: string): DatabaseTarget<Effects> => kyselyOnPg<Effects>(t, url),
})) {
  test(`All phases work on ${name}`, async (t) => {
    const database = await xaDatabase(t)
    const xa = resource(t, targetOf(t, database.url))
    const [one, two, three, four, five] = [freshXid(), freshXid(), freshXid(), freshXid(), freshXid()]
    await work(xa, one, 1)
    t.is(await xa.commit(one, TMONEPHASE), XA_OK)
    await work(xa, two, 2)
    t.is(await xa.prepare(two), XA_OK)
    await throwsXa(t, xa.start(two), 'XAER_DUPID')
    t.is(await xa.commit(two), XA_OK)
    await work(xa, three)
    t.is(await xa.prepare(three), XA_RDONLY)
    await work(xa, four, 4)
    t.is(await xa.rollback(four), XA_OK)
    for (const complete of [() => xa.prepare(five), () => xa.commit(five, TMONEPHASE)]) {
      const trx = await xa.start(five)
      await trx.insertInto('effect').values({ id: 5 }).execute()
      await t.throwsAsync(trx.insertInto('effect').values({ id: 1 }).execute(), { code: '23505' })
      await xa.end(five)
      await throwsXa(t, complete(), 'XA_RBINTEGRITY')
    }
    t.deepEqual(await database.effects(), [1, 2])
    t.is(await database.prepared(), 0)
  })
}

test('Preparing a branch that only read says XA_RDONLY and leaves nothing prepared', async (t) => {
  const { database, xa } = await manager(t)
  await database.sql`insert into effect values (1)`
  const xid = freshXid()
  const trx = await xa.start(xid)
  t.is((await trx.selectFrom('effect').selectAll().execute()).length, 1)
  await xa.end(xid)
  t.is(await xa.prepare(xid), XA_RDONLY)
  t.is(await database.prepared(), 0)
  await throwsXa(t, xa.commit(xid), 'XAER_NOTA')
})

test('A branch rolls back without being prepared', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  t.is(await xa.rollback(xid), XA_OK)
  t.deepEqual(await database.effects(), [])
})

test('A prepared branch rolls back', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  await xa.prepare(xid)
  t.is(await xa.rollback(xid), XA_OK)
  t.deepEqual(await database.effects(), [])
  t.is(await database.prepared(), 0)
})

test('An ended branch can be joined, and both parts commit together', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  const first = await xa.start(xid, TMNOFLAGS)
  await first.insertInto('effect').values({ id: 1 }).execute()
  t.is(await xa.end(xid, TMSUCCESS), XA_OK)
  const second = await xa.start(xid, TMJOIN)
  await second.insertInto('effect').values({ id: 2 }).execute()
  await t.throwsAsync(first.selectFrom('effect').selectAll().execute(), { code: 'ENDED' })
  await xa.end(xid)
  await xa.prepare(xid)
  await xa.commit(xid)
  t.deepEqual(await database.effects(), [1, 2])
})

test('A stream that is left open when its part ends is refused from then on, and does not keep the branch from being prepared', async (t) => {
  const { database, xa } = await manager(t)
  await database.sql`insert into effect select generate_series(1, 20)`
  const xid = freshXid()
  for (const flags of [TMNOFLAGS, TMJOIN]) {
    const trx = await xa.start(xid, flags)
    const rows = trx.selectFrom('effect').select('id').orderBy('id').stream(1)[Symbol.asyncIterator]()
    t.is((await rows.next()).value?.id, 1)
    await trx
      .insertInto('effect')
      .values({ id: 100 + flags })
      .execute()
    t.is((await rows.next()).value?.id, 2)
    await xa.end(xid)
    await t.throwsAsync(async () => await rows.next(), { code: 'ENDED' })
  }
  await xa.prepare(xid)
  await xa.commit(xid)
  t.is((await database.effects()).length, 22)
})

test('Recover lists a prepared branch until it is finished, and not before it is prepared', async (t) => {
  const { xa } = await manager(t)
  const xid = freshXid()
  const began = Date.now()
  await work(xa, xid, 1)
  t.false(await lists(xa, xid))
  await xa.prepare(xid)
  const [found] = await xa.recover()
  t.is(found && 'formatId' in found ? found.formatId : undefined, 4711)
  t.is(found?.owner, 'postgres')
  t.true(Math.abs((found?.preparedAt.getTime() ?? 0) - began) < 60_000)
  await xa.rollback(xid)
  t.false(await lists(xa, xid))
})

test('What recover lists can be finished as it is', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  await xa.prepare(xid)
  for (const found of await resource(t, database.url).recover()) await xa.commit(found)
  t.deepEqual(await database.effects(), [1])
})

test('A recovery scan gives everything at its start and nothing after', async (t) => {
  const { xa } = await manager(t)
  const xid = freshXid()
  await throwsXa(t, xa.recover(TMNOFLAGS), 'XAER_INVAL')
  await throwsXa(t, xa.recover(TMJOIN), 'XAER_INVAL')
  await work(xa, xid, 1)
  await xa.prepare(xid)
  t.is((await xa.recover(TMSTARTRSCAN)).length, 1)
  t.deepEqual(await xa.recover(TMNOFLAGS), [])
  t.deepEqual(await xa.recover(TMENDRSCAN), [])
  await throwsXa(t, xa.recover(TMNOFLAGS), 'XAER_INVAL')
})

test('Closing before commit leaves the prepared branch for whoever comes, and rolls back the others', async (t) => {
  const { database, xa } = await manager(t)
  const [prepared, ended, active] = [freshXid(), freshXid(), freshXid()]
  await work(xa, prepared, 1)
  await xa.prepare(prepared)
  await work(xa, ended, 2)
  const trx = await xa.start(active)
  await trx.insertInto('effect').values({ id: 3 }).execute()
  await xa.close()
  await throwsXa(t, xa.commit(prepared), 'XAER_PROTO')
  await t.throwsAsync(trx.selectFrom('effect').selectAll().execute())

  const other = resource(t, database.url)
  t.is(await other.commit(prepared), XA_OK)
  await throwsXa(t, other.rollback(ended), 'XAER_NOTA')
  t.deepEqual(await database.effects(), [1])
})

test('A branch is finished on another connection, while the one that prepared it works on', async (t) => {
  const { database, xa } = await manager(t)
  const [one, two] = [freshXid(), freshXid()]
  const narrow = resource(t, database.url, { maxConnections: 1 })
  await work(narrow, one, 1)
  await narrow.prepare(one)
  const trx = await narrow.start(two)
  await trx.insertInto('effect').values({ id: 2 }).execute()
  // Its only pooled connection is in use; finishing does not wait for it.
  t.is(await narrow.commit(one), XA_OK)
  await narrow.end(two)
  await narrow.prepare(two)
  t.is(await xa.commit(two), XA_OK)
  t.deepEqual(await database.effects(), [1, 2])
})

test('Branches begin, prepare and finish beside each other', async (t) => {
  const { database, xa } = await manager(t)
  const ids = Array.from({ length: 24 }, (_, id) => id)
  await Promise.all(
    ids.map(async (id) => {
      const xid = freshXid()
      await work(xa, xid, id)
      await xa.prepare(xid)
      await (id % 3 === 0 ? xa.rollback(xid) : xa.commit(xid))
    }),
  )
  t.deepEqual(
    await database.effects(),
    ids.filter((id) => id % 3 !== 0),
  )
  t.is(await database.prepared(), 0)
})

// ---------------------------------------------------------------------------------------------------
// NOTA, PROTO, INVAL, DUPID

test('Rolling back again says XAER_NOTA', async (t) => {
  const xa = shared
  const [open, prepared] = [freshXid(), freshXid()]
  await work(xa, open, fresh())
  await xa.rollback(open)
  await throwsXa(t, xa.rollback(open), 'XAER_NOTA')
  await work(xa, prepared, fresh())
  await xa.prepare(prepared)
  await xa.rollback(prepared)
  await throwsXa(t, xa.rollback(prepared), 'XAER_NOTA')
})

test('Committing what is committed says XAER_NOTA', async (t) => {
  const xa = shared
  const [one, two] = [freshXid(), freshXid()]
  await work(xa, one, fresh())
  await xa.commit(one, TMONEPHASE)
  await throwsXa(t, xa.commit(one, TMONEPHASE), 'XAER_NOTA')
  await work(xa, two, fresh())
  await xa.prepare(two)
  await xa.commit(two)
  await throwsXa(t, xa.commit(two), 'XAER_NOTA')
})

test('Preparing an unknown xid says XAER_NOTA', async (t) => {
  const xa = shared
  await throwsXa(t, xa.prepare(freshXid()), 'XAER_NOTA')
})

test('Committing an unknown xid says XAER_NOTA', async (t) => {
  const xa = shared
  await throwsXa(t, xa.commit(freshXid()), 'XAER_NOTA')
})

test('Committing an unknown xid in one phase says XAER_NOTA', async (t) => {
  const xa = shared
  await throwsXa(t, xa.commit(freshXid(), TMONEPHASE), 'XAER_NOTA')
})

test('Rolling back an unknown xid says XAER_NOTA', async (t) => {
  const xa = shared
  await throwsXa(t, xa.rollback(freshXid()), 'XAER_NOTA')
})

test('Ending, joining and forgetting an unknown xid says XAER_NOTA', async (t) => {
  const xa = shared
  await throwsXa(t, xa.end(freshXid()), 'XAER_NOTA')
  await throwsXa(t, xa.start(freshXid(), TMJOIN), 'XAER_NOTA')
  await throwsXa(t, xa.forget(freshXid()), 'XAER_NOTA')
})

test('Preparing twice says XAER_PROTO, and the branch stays prepared', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  await xa.prepare(xid)
  await throwsXa(t, xa.prepare(xid), 'XAER_PROTO')
  await throwsXa(t, resource(t, database.url).prepare(xid), 'XAER_PROTO')
  t.is(await xa.commit(xid), XA_OK)
})

test('Of two calls of prepare at once, one is refused', async (t) => {
  const xa = shared
  const xid = freshXid()
  await work(xa, xid, fresh())
  const [first] = await Promise.all([xa.prepare(xid), throwsXa(t, xa.prepare(xid), 'XAER_PROTO')])
  t.is(first, XA_OK)
  t.is(await xa.commit(xid), XA_OK)
})

test('Committing a prepared branch in one phase says XAER_PROTO, and it stays prepared', async (t) => {
  const xa = shared
  const xid = freshXid()
  await work(xa, xid, fresh())
  await xa.prepare(xid)
  await throwsXa(t, xa.commit(xid, TMONEPHASE), 'XAER_PROTO')
  t.is(await xa.commit(xid), XA_OK)
})

test('Committing in two phases what is not prepared says XAER_PROTO, and it can still be', async (t) => {
  const xa = shared
  const xid = freshXid()
  await work(xa, xid, fresh())
  await throwsXa(t, xa.commit(xid), 'XAER_PROTO')
  t.is(await xa.prepare(xid), XA_OK)
  t.is(await xa.commit(xid), XA_OK)
})

test('Completing a branch that was not ended says XAER_PROTO, and its work goes on', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  const trx = await xa.start(xid)
  for (const verb of [
    () => xa.prepare(xid),
    () => xa.commit(xid),
    () => xa.commit(xid, TMONEPHASE),
    () => xa.rollback(xid),
    () => xa.forget(xid),
  ])
    await throwsXa(t, verb(), 'XAER_PROTO')
  await trx.insertInto('effect').values({ id: 1 }).execute()
  await xa.end(xid)
  await throwsXa(t, xa.end(xid), 'XAER_PROTO')
  await xa.commit(xid, TMONEPHASE)
  t.deepEqual(await database.effects(), [1])
})

test('Starting with no xid, with a bad one, or with bad flags says XAER_INVAL', async (t) => {
  const xa = shared
  const xid = freshXid()
  await throwsXa(t, xa.start(null as never), 'XAER_INVAL')
  await throwsXa(t, xa.start({ ...xid, formatId: -1 }), 'XAER_INVAL')
  await throwsXa(t, xa.start({ gid: 'raw' } as never), 'XAER_INVAL')
  for (const flags of [TMSUCCESS, TMFAIL, TMONEPHASE, TMJOIN | TMRESUME, 1, Number.NaN])
    await throwsXa(t, xa.start(xid, flags), 'XAER_INVAL')
  await throwsXa(t, xa.end(xid, TMSUCCESS | TMFAIL), 'XAER_INVAL')
  await throwsXa(t, xa.end(xid, TMNOFLAGS), 'XAER_INVAL')
  await throwsXa(t, xa.commit(xid, TMSUCCESS), 'XAER_INVAL')
  for (const verb of [xa.end, xa.prepare, xa.commit, xa.rollback, xa.forget])
    await throwsXa(t, verb(null as never), 'XAER_INVAL')
  // Nothing was begun.
  await throwsXa(t, xa.end(xid), 'XAER_NOTA')
})

test('Starting an xid that is taken says XAER_DUPID, here, elsewhere, and in another database of the server', async (t) => {
  const { database, xa } = await manager(t)
  const neighbour = await manager(t)
  const xid = freshXid()
  const starting = xa.start(xid)
  await throwsXa(t, xa.start(xid), 'XAER_DUPID')
  const trx = await starting
  await throwsXa(t, xa.start(xid), 'XAER_DUPID')
  await trx.insertInto('effect').values({ id: 1 }).execute()
  await xa.end(xid)
  await throwsXa(t, xa.start(xid), 'XAER_DUPID')
  await xa.prepare(xid)
  await throwsXa(t, xa.start(xid), 'XAER_DUPID')
  await throwsXa(t, resource(t, database.url).start(xid), 'XAER_DUPID')
  await throwsXa(t, neighbour.xa.start(xid), 'XAER_DUPID')
  await xa.rollback(xid)
  await work(xa, xid, 2)
  t.is(await xa.commit(xid, TMONEPHASE), XA_OK)
})

test('Starting an xid that is taken costs no connection', async (t) => {
  const { database, xa } = await manager(t)
  const one = resource(t, database.url, { maxConnections: 1 })
  const backend = async () => {
    const xid = freshXid()
    const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(await one.start(xid))
    await one.end(xid)
    await one.rollback(xid)
    return rows[0]?.pid
  }
  const taken = freshXid()
  await work(xa, taken, 1)
  await xa.prepare(taken)
  const before = await backend()
  await throwsXa(t, one.start(taken), 'XAER_DUPID')
  t.is(await backend(), before)
  await xa.rollback(taken)
})

test('Of two branches under one xid, the one that prepares second is rolled back with XA_RBPROTO', async (t) => {
  const { database, xa } = await manager(t)
  const other = resource(t, database.url)
  const xid = freshXid()
  await Promise.all([work(xa, xid, 1), work(other, xid, 2)])
  await xa.prepare(xid)
  await throwsXa(t, other.prepare(xid), 'XA_RBPROTO')
  await xa.commit(xid)
  t.deepEqual(await database.effects(), [1])
})

// ---------------------------------------------------------------------------------------------------
// What Postgres cannot do

test('Suspend and resume are refused, and the branch is as it was', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  const trx = await xa.start(xid)
  await throwsXa(t, xa.end(xid, TMSUSPEND), 'XAER_RMERR')
  await throwsXa(t, xa.start(xid, TMRESUME), 'XAER_RMERR')
  await trx.insertInto('effect').values({ id: 1 }).execute()
  await xa.end(xid)
  await throwsXa(t, xa.start(xid, TMRESUME), 'XAER_RMERR')
  await xa.commit(xid, TMONEPHASE)
  t.deepEqual(await database.effects(), [1])
})

test('Work is not interleaved: a branch is joined only after its end, and only where it was started', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  await xa.start(xid)
  await throwsXa(t, xa.start(xid, TMJOIN), 'XAER_PROTO')
  await xa.end(xid)
  await throwsXa(t, resource(t, database.url).start(xid, TMJOIN), 'XAER_NOTA')
  await xa.rollback(xid)
})

test('Forgetting a branch is refused, since Postgres completes none by itself', async (t) => {
  const xa = shared
  const xid = freshXid()
  await work(xa, xid, fresh())
  await throwsXa(t, xa.forget(xid), 'XAER_PROTO')
  await xa.prepare(xid)
  await throwsXa(t, xa.forget(xid), 'XAER_PROTO')
  t.is(await xa.commit(xid), XA_OK)
})

// ---------------------------------------------------------------------------------------------------
// Rolled back

test('A constraint that fails at prepare says XA_RBINTEGRITY, and nothing is prepared', async (t) => {
  const { database, xa } = await manager(t)
  await database.sql`alter table effect add unique (note) deferrable initially deferred`
  const xid = freshXid()
  await work(xa, xid, 1, 2)
  const error = await throwsXa(t, xa.prepare(xid), 'XA_RBINTEGRITY')
  t.true(error.isRollback)
  t.is(error.xaCode, 103)
  t.is(error.detail, 'SQLSTATE 23505')
  t.is(await database.prepared(), 0)
  await throwsXa(t, xa.rollback(xid), 'XAER_NOTA')
  await work(xa, xid, 1, 2)
  await throwsXa(t, xa.commit(xid, TMONEPHASE), 'XA_RBINTEGRITY')
  t.deepEqual(await database.effects(), [])
})

test('Preparing after a failed statement is an error, and says why', async (t) => {
  const { database, xa } = await manager(t)
  for (const complete of [xa.prepare, (xid) => xa.commit(xid, TMONEPHASE)] as Verb[]) {
    const xid = freshXid()
    const trx = await xa.start(xid)
    await trx.insertInto('effect').values({ id: 1 }).execute()
    await t.throwsAsync(sql`select 1 / 0`.execute(trx), { code: '22012' })
    await t.throwsAsync(sql`select 1`.execute(trx), { code: '25P02' })
    await xa.end(xid)
    const error = await throwsXa(t, complete(xid), 'XA_RBOTHER')
    t.regex(error.message, /division by zero/)
  }
  t.is(await database.prepared(), 0)
  t.deepEqual(await database.effects(), [])
})

test('A statement that failed behind a savepoint does not keep the branch from being prepared', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  const trx = await xa.start(xid)
  await trx.insertInto('effect').values({ id: 1 }).execute()
  await sql`savepoint s`.execute(trx)
  await t.throwsAsync(trx.insertInto('effect').values({ id: 1 }).execute(), { code: '23505' })
  await sql`rollback to savepoint s`.execute(trx)
  await xa.end(xid)
  t.is(await xa.prepare(xid), XA_OK)
  await xa.commit(xid)
  t.deepEqual(await database.effects(), [1])
})

test('A branch that was ended with TMFAIL can only be rolled back', async (t) => {
  const { database, xa } = await manager(t)
  for (const complete of [xa.prepare, (xid) => xa.commit(xid, TMONEPHASE)] as Verb[]) {
    const xid = freshXid()
    const trx = await xa.start(xid)
    await trx.insertInto('effect').values({ id: 1 }).execute()
    await xa.end(xid, TMFAIL)
    await throwsXa(t, xa.start(xid, TMJOIN), 'XA_RBROLLBACK')
    await throwsXa(t, complete(xid), 'XA_RBROLLBACK')
    await throwsXa(t, xa.rollback(xid), 'XAER_NOTA')
  }
  const xid = freshXid()
  await xa.start(xid)
  await xa.end(xid, TMFAIL)
  t.is(await xa.rollback(xid), XA_OK)
  t.deepEqual(await database.effects(), [])
})

test('Deadlock, timeout, serialization failure and what cannot be prepared have codes of their own', async (t) => {
  const { database, xa } = await manager(t)
  await database.sql`insert into effect values (1), (2)`

  const slow = freshXid()
  const waiting = await xa.start(slow)
  await sql`set local statement_timeout = 10`.execute(waiting)
  await t.throwsAsync(sql`select pg_sleep(10)`.execute(waiting), { code: '57014' })
  await xa.end(slow)
  await throwsXa(t, xa.prepare(slow), 'XA_RBTIMEOUT')

  const [one, two] = [freshXid(), freshXid()]
  const [first, second] = [await xa.start(one), await xa.start(two)]
  const touch = (trx: typeof first, id: number) =>
    trx.updateTable('effect').set({ note: 'x' }).where('id', '=', id).execute()
  await sql`set local deadlock_timeout = 10`.execute(first)
  await touch(first, 1)
  await touch(second, 2)
  const results = await Promise.allSettled([
    touch(first, 2)
      .finally(() => xa.end(one))
      .then(() => xa.commit(one, TMONEPHASE)),
    touch(second, 1)
      .finally(() => xa.end(two))
      .then(() => xa.commit(two, TMONEPHASE)),
  ])
  const loser = results[0]?.status === 'rejected' ? one : two
  await throwsXa(t, xa.prepare(loser), 'XA_RBDEADLOCK')

  const serial = freshXid()
  const reader = await xa.start(serial)
  // Nothing was asked before, so the branch may still choose its isolation level.
  await sql`set transaction isolation level repeatable read`.execute(reader)
  await reader.selectFrom('effect').selectAll().execute()
  await database.sql`update effect set note = 'y'`
  await t.throwsAsync(touch(reader, 1), { code: '40001' })
  await xa.end(serial)
  await throwsXa(t, xa.prepare(serial), 'XA_RBTRANSIENT')

  const temporary = freshXid()
  const maker = await xa.start(temporary)
  await sql`create temporary table scratch (id int)`.execute(maker)
  await xa.end(temporary)
  const error = await throwsXa(t, xa.prepare(temporary), 'XA_RBOTHER')
  t.regex(error.hint ?? '', /temporary tables/)
  t.is(await database.prepared(), 0)
})

test('A server without prepared transactions, or with none free, says so, and the branch is rolled back', async (t) => {
  for (const [slots, code] of [
    [0, 'XA_RBOTHER'],
    [1, 'XA_RBTRANSIENT'],
  ] as const) {
    const server = await ownServer(t, { max_prepared_transactions: slots })
    const admin = connect(t, server.url())
    await admin`create table effect (id int primary key, note text not null default '')`
    const xa = resource(t, server.url())
    for (let used = 0; used < slots; used++) {
      const xid = freshXid()
      await work(xa, xid, used)
      t.is(await xa.prepare(xid), XA_OK)
    }
    const xid = freshXid()
    await work(xa, xid, 100)
    const error = await throwsXa(t, xa.prepare(xid), code)
    t.regex(error.hint ?? '', /max_prepared_transactions/)
    await xa.close()
  }
})

test('SQL that ends the transaction of its branch is found out', async (t) => {
  const { database, xa } = await manager(t)
  for (const complete of [xa.prepare, (xid) => xa.commit(xid, TMONEPHASE)] as Verb[]) {
    for (const statements of [['commit'], ['rollback', 'begin']]) {
      const xid = freshXid()
      const trx = await xa.start(xid)
      for (const statement of statements) await sql.raw(statement).execute(trx)
      await xa.end(xid)
      await throwsXa(t, complete(xid), 'XAER_RMERR')
    }
  }
  t.is(await database.prepared(), 0)
})

test('A query that was not awaited before end does not run after prepare', async (t) => {
  const { database, xa } = await manager(t)
  const xid = freshXid()
  const trx = await xa.start(xid)
  await trx.insertInto('effect').values({ id: 1 }).execute()
  const late = trx.insertInto('effect').values({ id: 2 }).execute()
  const outcome = late.then(
    () => 'ran',
    (error) => error.code,
  )
  await xa.end(xid)
  await xa.prepare(xid)
  const ran = (await outcome) === 'ran'
  t.true(ran || (await outcome) === 'ENDED')
  await xa.rollback(xid)
  t.deepEqual(await database.effects(), [])
})

// ---------------------------------------------------------------------------------------------------
// Lost connections

for (const when of ['before', 'after'] as const) {
  const happened = when === 'after'
  const lost = happened ? 'after the server did it' : 'before it arrived'

  test(`Commit whose connection is lost ${lost} says XAER_RMFAIL, and asking again tells`, async (t) => {
    const database = await xaDatabase(t)
    const proxy = await unsteady(t, database.url)
    const xa = resource(t, proxy.url)
    const xid = freshXid()
    await work(xa, xid, 1)
    await xa.prepare(xid)
    proxy.cut(when, 'commit prepared')
    await throwsXa(t, xa.commit(xid), 'XAER_RMFAIL')
    if (happened) {
      await until('it is committed', async () => (await database.prepared()) === 0)
      await throwsXa(t, xa.commit(xid), 'XAER_NOTA')
    } else t.is(await xa.commit(xid), XA_OK)
    t.deepEqual(await database.effects(), [1])
  })

  test(`One-phase commit whose connection is lost ${lost} says XAER_RMFAIL`, async (t) => {
    const database = await xaDatabase(t)
    const proxy = await unsteady(t, database.url)
    const xa = resource(t, proxy.url)
    const xid = freshXid()
    await work(xa, xid, 1)
    proxy.cut(when, 'commit')
    await throwsXa(t, xa.commit(xid, TMONEPHASE), 'XAER_RMFAIL')
    await throwsXa(t, xa.commit(xid, TMONEPHASE), 'XAER_NOTA')
    if (happened) await until('it is committed', async () => (await database.effects()).length === 1)
    else t.deepEqual(await database.effects(), [])
  })

  test(`Rollback whose connection is lost ${lost} says XAER_RMFAIL`, async (t) => {
    const database = await xaDatabase(t)
    const proxy = await unsteady(t, database.url)
    const xa = resource(t, proxy.url)
    const [open, prepared] = [freshXid(), freshXid()]
    await work(xa, open, 1)
    proxy.cut(when, 'rollback')
    await throwsXa(t, xa.rollback(open), 'XAER_RMFAIL')
    await throwsXa(t, xa.rollback(open), 'XAER_NOTA')

    await work(xa, prepared, 2)
    await xa.prepare(prepared)
    proxy.cut(when, 'rollback prepared')
    await throwsXa(t, xa.rollback(prepared), 'XAER_RMFAIL')
    if (happened) {
      await until('it is rolled back', async () => (await database.prepared()) === 0)
      await throwsXa(t, xa.rollback(prepared), 'XAER_NOTA')
    } else t.is(await xa.rollback(prepared), XA_OK)
    t.deepEqual(await database.effects(), [])
  })

  test(`Prepare whose connection is lost ${lost} says XAER_RMFAIL, and recover tells`, async (t) => {
    const database = await xaDatabase(t)
    const proxy = await unsteady(t, database.url)
    const xa = resource(t, proxy.url)
    const xid = freshXid()
    await work(xa, xid, 1)
    proxy.cut(when, 'prepare transaction')
    await throwsXa(t, xa.prepare(xid), 'XAER_RMFAIL')
    if (happened) await until('it is prepared', () => lists(xa, xid))
    else t.false(await lists(xa, xid))
    if (happened) t.is(await xa.rollback(xid), XA_OK)
    else await throwsXa(t, xa.rollback(xid), 'XAER_NOTA')
  })

  test(`With Kysely on pg, commit whose connection is lost ${lost} says XAER_RMFAIL`, async (t) => {
    const database = await xaDatabase(t)
    const proxy = await unsteady(t, database.url)
    const xa = resource(t, kyselyOnPg<Effects>(t, proxy.url))
    const xid = freshXid()
    await work(xa, xid, 1)
    await xa.prepare(xid)
    proxy.cut(when, 'commit prepared')
    await throwsXa(t, xa.commit(xid), 'XAER_RMFAIL')
    if (happened) await throwsXa(t, xa.commit(xid), 'XAER_NOTA')
    else t.is(await xa.commit(xid), XA_OK)
    t.deepEqual(await database.effects(), [1])
  })
}

test('A branch whose backend was terminated says XAER_RMFAIL, in its handle and in every verb', async (t) => {
  const { database, xa } = await manager(t)
  for (const complete of [xa.prepare, (xid) => xa.commit(xid, TMONEPHASE), (xid) => xa.rollback(xid)] as ((
    xid: Parameters<typeof xa.prepare>[0],
  ) => Promise<unknown>)[]) {
    const xid = freshXid()
    const trx = await xa.start(xid)
    await trx.insertInto('effect').values({ id: 1 }).execute()
    await killSessions(database.sql)
    await throwsXa(t, trx.selectFrom('effect').selectAll().execute(), 'XAER_RMFAIL')
    await xa.end(xid)
    await throwsXa(t, complete(xid), 'XAER_RMFAIL')
    await throwsXa(t, xa.rollback(xid), 'XAER_NOTA')
  }
  t.deepEqual(await database.effects(), [])
})

test('A server that is gone says XAER_RMFAIL to every verb that asks it', async (t) => {
  const xa = resource(t, 'postgres://postgres@127.0.0.1:1/none', { connectTimeout: 500 })
  for (const ask of [
    xa.start,
    xa.prepare,
    xa.commit,
    (xid) => xa.commit(xid, TMONEPHASE),
    xa.rollback,
    xa.forget,
    () => xa.recover(),
  ] as Verb[])
    await throwsXa(t, ask(freshXid()), 'XAER_RMFAIL')
})

test('A verb whose answer does not come in time says XAER_RMFAIL', async (t) => {
  const database = await xaDatabase(t)
  await database.sql.unsafe(`
    create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$;
    create constraint trigger slow after insert on effect deferrable initially deferred
      for each row execute function slow()`)
  const xa = resource(t, database.url, { timeout: 4_000 })
  const xid = freshXid()
  await work(xa, xid, 1)
  await throwsXa(t, xa.prepare(xid), 'XAER_RMFAIL')
  t.is(await database.prepared(), 0)
})

test('When branches hold all connections, another does not begin, and says XAER_RMFAIL', async (t) => {
  const database = await xaDatabase(t)
  const xa = resource(t, database.url, { maxConnections: 1, connectTimeout: 4_000 })
  const xid = freshXid()
  await xa.start(xid)
  await throwsXa(t, xa.start(freshXid()), 'XAER_RMFAIL')
  await xa.end(xid)
  await xa.rollback(xid)
  await work(xa, xid, 1)
  t.is(await xa.commit(xid, TMONEPHASE), XA_OK)
})

test('A branch that somebody else is busy with says XA_RETRY to commit, and is finished once it is free', async (t) => {
  const server = await ownServer(t)
  const admin = connect(t, server.url())
  await admin`create table effect (id int primary key, note text not null default '')`
  const [xa, other] = [resource(t, server.url()), resource(t, server.url())]
  const xid = freshXid()
  await work(xa, xid, 1)
  // A PREPARE that waits for a standby keeps hold of what it has prepared.
  const standby = standbyOf(t, admin, server.url())
  await standby.lose()
  const preparing = xa.prepare(xid)
  await until('it is prepared', () => lists(other, xid))
  await throwsXa(t, other.commit(xid), 'XA_RETRY')
  await throwsXa(t, other.rollback(xid), 'XAER_RMFAIL')
  await standby.regain()
  t.is(await preparing, XA_OK)
  t.is(await other.commit(xid), XA_OK)
  t.is((await admin`select from effect`).length, 1)
})

// ---------------------------------------------------------------------------------------------------
// Local transactions, other owners, other databases

for (const [name, open] of Object.entries({
  pg: (t: ExecutionContext, url: string) => {
    const db = kyselyOnPg<Effects>(t, url, { max: 1 })
    return {
      target: db as DatabaseTarget<Effects>,
      run: (text: string) =>
        sql
          .raw<{ id: number }>(text)
          .execute(db)
          .then(({ rows }) => rows),
    }
  },
})) {
  test(`Finishing on a connection of ${name} with an open local transaction says XAER_RMFAIL and leaves that untouched`, async (t) => {
    const { database, xa } = await manager(t)
    const [one, two] = [freshXid(), freshXid()]
    await work(xa, one, 1)
    await xa.prepare(one)
    await work(xa, two, 2)
    await xa.prepare(two)

    const { target, run } = open(t, database.url)
    const local = resource(t, target)
    await run('begin')
    await run('insert into effect values (3)')
    await throwsXa(t, local.commit(one), 'XAER_RMFAIL')
    await throwsXa(t, local.rollback(two), 'XAER_RMFAIL')
    await throwsXa(t, local.start(freshXid()), 'XAER_OUTSIDE')
    t.is(await database.prepared(), 2)
    await run('insert into effect values (4)')
    t.deepEqual(await database.effects(), [])
    await run('commit')
    t.deepEqual(await database.effects(), [3, 4])

    await run('begin')
    await t.throwsAsync(async () => await run('select 1 / 0'))
    await throwsXa(t, local.commit(one), 'XAER_RMFAIL')
    await run('rollback')
    t.is(await local.commit(one), XA_OK)
    t.is(await local.rollback(two), XA_OK)
    t.deepEqual(await database.effects(), [1, 3, 4])
  })
}

test('A branch of another role stays prepared and is told apart from one that is gone', async (t) => {
  const { database, xa } = await manager(t)
  const role = await testRole(t, database)
  const xid = freshXid()
  await work(xa, xid, 1)
  await xa.prepare(xid)
  const other = resource(t, database.urlAs(role))
  t.true(await lists(other, xid))
  for (const verb of [other.commit, other.rollback]) {
    const error = await throwsXa(t, verb(xid), 'XAER_RMFAIL')
    t.regex(error.hint ?? '', /role that prepared it/)
  }
  t.is(await xa.commit(xid), XA_OK)
})

test('A branch of another database of the server is not listed, and stays prepared', async (t) => {
  const { xa } = await manager(t)
  const neighbour = await manager(t)
  const xid = freshXid()
  await work(xa, xid, 1)
  await xa.prepare(xid)
  t.false(await lists(neighbour.xa, xid))
  const error = await throwsXa(t, neighbour.xa.rollback(xid), 'XAER_RMFAIL')
  t.regex(error.hint ?? '', /database that it was prepared in/)
  t.is(await xa.commit(xid), XA_OK)
})

// ---------------------------------------------------------------------------------------------------
// Xids

test('An xid of 64 and 64 bytes, and one that is not ASCII, come back from the server as they were', async (t) => {
  const { xa } = await manager(t)
  const xids = [
    {
      formatId: 2147483647,
      gtrid: crypto.getRandomValues(new Uint8Array(64)),
      bqual: new Uint8Array(64).fill(0xfb),
    },
    { formatId: -2147483648, gtrid: crypto.getRandomValues(new Uint8Array(64)), bqual: new Uint8Array(64) },
    { formatId: 0, gtrid: Buffer.from(`Ünïcode 🐘 ${crypto.randomUUID()}`), bqual: new Uint8Array() },
  ]
  for (const [id, xid] of xids.entries()) {
    await work(xa, xid, id)
    await xa.prepare(xid)
  }
  const found = await xa.recover()
  t.deepEqual(
    found.map(({ gid, owner, preparedAt, ...xid }) => xid),
    xids.map((xid) => ({ ...xid, gtrid: new Uint8Array(xid.gtrid) })),
  )
  for (const xid of xids) t.is(await xa.commit(xid), XA_OK)
})

test('Foreign gids that are no xid are listed raw and can be finished', async (t) => {
  const { database, xa } = await manager(t)
  const suffix = crypto.randomUUID()
  const gids = [
    `citus_0_${suffix}`,
    `it's \\'odd' ${suffix}`,
    `ünïcode_🐘_${suffix}`,
    `01_Zw==_${Buffer.from(suffix).toString('base64')}`,
  ]
  const session = await database.sql.reserve()
  for (const [id, gid] of gids.entries()) {
    await session.unsafe('begin')
    await session.unsafe(`insert into effect values (${id})`)
    const [row] = await session`select quote_literal(${gid}) as literal`
    await session.unsafe(`prepare transaction ${row?.literal}`)
  }
  session.release()
  const found = await xa.recover()
  t.deepEqual(
    found.map(({ owner, preparedAt, ...raw }) => raw),
    gids.map((gid) => ({ gid })),
  )
  for (const [id, { gid }] of found.entries()) await (id === 0 ? xa.rollback({ gid }) : xa.commit({ gid }))
  t.deepEqual(await database.effects(), [1, 2, 3])
  for (const gid of gids) await throwsXa(t, xa.commit({ gid }), 'XAER_NOTA')
})

test('Branches of pgonce itself are neither listed nor finished', async (t) => {
  const { database, xa } = await manager(t)
  const gid = `once:1:${crypto.randomUUID()}:${crypto.randomUUID()}:1:billing`
  const session = await database.sql.reserve()
  await session.unsafe('begin')
  await session.unsafe('insert into effect values (1)')
  await session.unsafe(`prepare transaction '${gid}'`)
  session.release()
  t.deepEqual(await xa.recover(), [])
  for (const verb of [xa.commit, xa.rollback, xa.forget]) await throwsXa(t, verb({ gid }), 'XAER_INVAL')
  t.is(await database.prepared(), 1)
})
