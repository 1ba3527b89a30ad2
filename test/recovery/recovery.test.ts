import { randomUUID } from 'node:crypto'
import test from 'ava'
import type postgres from 'postgres'
import { literal } from '../../src/connection/quote.ts'
import type { Pgonce, RecoveryReport } from '../../src/index.ts'
import { client, kyselyOnPg, type Two } from '../support/client.ts'
import { connect, type TestContext, testRole } from '../support/database.ts'
import {
  type Effects,
  type EffectsDatabase,
  effectsDatabase,
  insertEffect,
  twoDatabases,
} from '../support/effects.ts'
import { leaveBehind, type Outcome } from '../support/orphan.ts'
import { databaseIdOf } from '../support/sql.ts'
import { until } from '../support/until.ts'

interface Pair {
  readonly a: EffectsDatabase
  readonly b: EffectsDatabase
  readonly once: Pgonce<Two>
}

async function pair(t: TestContext): Promise<Pair> {
  const [a, b] = await twoDatabases(t)
  return { a, b, once: client<Two>(t, { a: a.url, b: b.url }) }
}

/** A branch of b in doubt, with a as home, and an effect in both. */
const leave = ({ a, b }: Pick<Pair, 'a' | 'b'>, id: number, outcome: Outcome = 'committed') =>
  leaveBehind(a, { b }, { outcome, effect: insertEffect(id), atHome: insertEffect(id) })

const nothing: RecoveryReport = {
  committed: 0,
  rolledBack: 0,
  pending: 0,
  unfinished: [],
  unreachable: [],
  proven: 0,
  purged: 0,
  losses: [],
}

const losses = async (sql: postgres.Sql) =>
  [...(await sql`select kind, participant from once.loss order by kind`)].map((row) => ({ ...row }))

test('A run with nothing to do says so', async (t) => {
  const { once } = await pair(t)
  t.like(await once.recovery.run(), nothing)
  t.deepEqual(await once.recovery.audit(), [])
})

test('What the home committed is committed, what it rolled back is rolled back, what still runs is left alone', async (t) => {
  const { a, b, once } = await pair(t)
  await leave({ a, b }, 1)
  await leave({ a, b }, 2, 'aborted')
  const running = await leave({ a, b }, 3, 'pending')
  t.like(await once.recovery.run(), { committed: 1, rolledBack: 1, pending: 1, unfinished: [], losses: [] })
  t.like(await once.recovery.run(), { committed: 0, rolledBack: 0, pending: 1 })
  t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[1], [1], 1])
  await running.endHome('commit')
  t.like(await once.recovery.run(), { committed: 1, pending: 0 })
  t.deepEqual([await a.effects(), await b.effects(), await b.prepared()], [[1, 3], [1, 3], 0])
})

test('A home that has died is over as soon as its server knows', async (t) => {
  const { a, b, once } = await pair(t)
  await leave({ a, b }, 1, 'pending')
  t.like(await once.recovery.run(), { pending: 1 })
  await a.sql`
    select pg_terminate_backend(pid, 10000) from pg_stat_activity
     where datname = current_database() and state = 'idle in transaction'`
  t.like(await once.recovery.run(), { rolledBack: 1, pending: 0 })
  t.deepEqual([await a.effects(), await b.effects()], [[], []])
})

test('Recovery over Kysely on pg does the same', async (t) => {
  const { a, b } = await pair(t)
  const once = client<Two>(t, {
    a: kyselyOnPg(t, a.url, { max: 1 }),
    b: kyselyOnPg(t, b.url, { max: 1 }),
  })
  await leave({ a, b }, 1)
  await leave({ a, b }, 2, 'aborted')
  t.like(await once.recovery.run({ keep: 0 }), { committed: 1, rolledBack: 1, proven: 1, purged: 1 })
  t.deepEqual([await a.effects(), await b.effects()], [[1], [1]])
  t.deepEqual(await once.recovery.audit(), [])
})

test('Recoverers that race finish each branch once, whatever they find in each other’s hands', async (t) => {
  const { a, b } = await pair(t)
  const many = await Promise.all(
    Array.from({ length: 24 }, (_, id) => leave({ a, b }, id, id % 3 === 0 ? 'aborted' : 'committed')),
  )
  t.is(many.length, await b.prepared())
  const recoverers = Array.from({ length: 4 }, () => client<Two>(t, { a: a.url, b: b.url }))
  const reports = await Promise.all(recoverers.map((once) => once.recovery.run({ keep: 0 })))
  for (const report of reports) t.like(report, { unfinished: [], unreachable: [], losses: [] })
  t.is(await b.prepared(), 0)
  const expected = many.map((_, id) => id).filter((id) => id % 3 !== 0)
  t.deepEqual([await a.effects(), await b.effects()], [expected, expected])
  await recoverers[0]?.recovery.run({ keep: 0 })
  for (const { count } of [a, b]) {
    t.is(await count('once.global_transaction'), 0)
    t.is(await count('once.evidence'), 0)
    t.is(await count('once.loss'), 0)
  }
})

test('Decisions are purged by a handshake, and only after they are kept for as long as asked', async (t) => {
  const { a, b, once } = await pair(t)
  const left = await leave({ a, b }, 1)
  t.like(await once.recovery.run({ keep: 3_600_000 }), { committed: 1, proven: 1, purged: 0 })
  const id = left.gid.slice(0, left.gid.lastIndexOf(':'))
  t.is(await once.outcome(id), 'committed')
  t.deepEqual([await a.count('once.global_transaction'), await b.count('once.evidence')], [1, 1])
  t.like(await once.recovery.run({ keep: 0 }), { proven: 0, purged: 1 })
  t.deepEqual([await a.count('once.global_transaction'), await b.count('once.evidence')], [0, 0])
  t.is(await once.outcome(id), 'purged')
})

test('An outcome can be asked for at any time: pending, aborted, committed', async (t) => {
  const { a, b, once } = await pair(t)
  const left = await leave({ a, b }, 1, 'pending')
  const id = left.gid.slice(0, left.gid.lastIndexOf(':'))
  t.is(await once.outcome(id), 'pending')
  await left.endHome('rollback')
  t.is(await once.outcome(id), 'aborted')
  t.is(await once.outcome(id.replace(/[0-9]+$/, '999999999999')), 'aborted')
})

test('A decision is kept while a participant cannot be reached, and purged when it is back', async (t) => {
  const { a, b, once } = await pair(t)
  await leave({ a, b }, 1)
  const alone = client<Two>(t, { a: a.url, b: 'postgres://postgres@127.0.0.1:1/none' })
  const report = await alone.recovery.run({ keep: 0 })
  t.deepEqual(
    report.unreachable.map(({ database }) => database),
    ['b'],
  )
  t.like(report, { committed: 0, proven: 0, purged: 0, losses: [] })
  const without = client<{ a: Effects }>(t, { a: a.url })
  t.like(await without.recovery.run({ keep: 0 }), { proven: 0, purged: 0, losses: [] })
  t.like(await once.recovery.run({ keep: 0 }), { committed: 1, proven: 1, purged: 1 })
})

test('A branch whose home is not among the databases, or does not answer, is left and reported', async (t) => {
  const { a, b } = await pair(t)
  const { gid } = await leave({ a, b }, 1)
  const without = client<{ b: Effects }>(t, { b: b.url })
  const [first] = (await without.recovery.run()).unfinished
  t.like(first, { database: 'b', gid })
  t.regex(first?.reason ?? '', /home .* none of the databases given/)
  const down = client<Two>(t, { a: 'postgres://postgres@127.0.0.1:1/none', b: b.url })
  const report = await down.recovery.run()
  t.is(report.unfinished.length, 1)
  t.is(report.unreachable.length, 1)
  t.is(await b.prepared(), 1)
})

test('A branch that somebody rolled back by hand although it was decided is recorded as lost, once', async (t) => {
  const { a, b, once } = await pair(t)
  const { gid, transactionId, home } = await leave({ a, b }, 1)
  const fine = await leave({ a, b }, 2)
  await b.sql.unsafe(`rollback prepared ${literal(gid)}`)
  const loss = {
    kind: 'lost branch',
    transactionId,
    participant: 'b',
    home,
  }
  const report = await once.recovery.run({ keep: 0 })
  t.deepEqual(report.losses, [loss] as never)
  t.like(report, { committed: 1, proven: 1, purged: 1 })
  t.like(await once.recovery.run({ keep: 0 }), { losses: [] })
  t.deepEqual(await losses(a.sql), [{ kind: 'lost branch', participant: 'b' }])
  // The decision stays until a person has looked.
  t.is(await a.count('once.global_transaction'), 1)
  await a.sql`select once.acknowledge(${transactionId}, 'looked into')`
  t.is(await a.count('once.global_transaction'), 0)
  t.deepEqual(await b.effects(), [2])
  t.truthy(fine)
})

test('A loss that somebody acknowledged keeps the decision for the branches of others that are in doubt still', async (t) => {
  const { a, b } = await pair(t)
  const c = await effectsDatabase(t, 'b')
  const inDoubt = await leaveBehind(a, { c }, { effect: insertEffect(1) })
  const done = await leaveBehind(a, { c }, { effect: insertEffect(2) })
  // As if b had been prepared in both, and had lost that.
  await a.sql`
    update once.global_transaction
       set participants = '{b,c}', database_ids = array[${await databaseIdOf(b.sql)}::uuid] || database_ids`
  await c.sql.unsafe(`commit prepared ${literal(done.gid)}`)
  const withoutC = client<Two>(t, { a: a.url, b: b.url })
  t.is((await withoutC.recovery.run({ keep: 0 })).losses.length, 2)
  for (const { transactionId } of [inDoubt, done])
    await a.sql`select once.acknowledge(${transactionId}, 'b was repaired by hand')`

  const all = client<{ a: Effects; b: Effects; c: Effects }>(t, { a: a.url, b: b.url, c: c.url })
  t.like(await all.recovery.run(), { committed: 1, rolledBack: 0, proven: 2, losses: [] })
  t.deepEqual(await all.recovery.audit(), [])
  t.deepEqual(await c.effects(), [1, 2])
  t.like(await all.recovery.run({ keep: 0 }), { purged: 2, losses: [] })
  t.is(await c.count('once.evidence'), 0)
})

test.serial('Recovery goes through its pages whatever the sessions’ format of times', async (t) => {
  const { a, b } = await pair(t)
  const known = await databaseIdOf(b.sql)
  await a.sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    select gen_random_uuid(), '{b}', array[${known}::uuid] from generate_series(1, 2500)`
  // Where summer time is called IST, which elsewhere is a zone of its own.
  await a.sql.unsafe(`alter database ${a.name} set datestyle = 'SQL, DMY'`)
  await a.sql.unsafe(`alter database ${a.name} set timezone = 'Europe/Dublin'`)
  const fresh = client<Two>(t, { a: a.url, b: b.url })
  const report = await fresh.recovery.run({ keep: 0 })
  t.is(report.losses.length, 2500)
  t.deepEqual(report.unreachable, [])
})

test('A decision that was lost although its branch committed is recorded, once', async (t) => {
  const { a, b, once } = await pair(t)
  const { transactionId, home } = await leave({ a, b }, 1)
  await leave({ a, b }, 2)
  t.like(await once.recovery.run(), { committed: 2 })
  await a.sql`delete from once.global_transaction where transaction_id = ${transactionId}`
  const loss = {
    kind: 'lost decision',
    transactionId,
    participant: 'b',
    home,
  }
  t.deepEqual(await once.recovery.audit(), [loss] as never)
  t.deepEqual(await once.recovery.audit(), [])
  t.deepEqual(await losses(b.sql), [{ kind: 'lost decision', participant: 'b' }])
  await b.sql`select once.acknowledge(${transactionId}, 'looked into')`
  t.deepEqual(await once.recovery.audit(), [])
})

test('Nothing is called lost while transactions run, finish in the background, are proven and purged', async (t) => {
  const { a, b, once } = await pair(t)
  const [one, two] = [0, 1].map(() => client<Two>(t, { a: a.url, b: b.url }))
  let over = false
  const found: unknown[] = []
  const watch = async (recoverer: typeof one) => {
    let rounds = 0
    for (; !over; rounds += 1) {
      const { losses, unfinished, unreachable } = (await recoverer?.recovery.run({ keep: 0 })) ?? nothing
      found.push(...losses, ...unfinished, ...unreachable, ...((await recoverer?.recovery.audit()) ?? []))
    }
    return rounds
  }
  const watching = [watch(one), watch(two)]
  let next = 0
  const lane = async () => {
    for (let id = next++; id < 300; id = next++) {
      await once
        .transaction(
          async (tx) => {
            const names = id % 2 === 0 ? (['a', 'b'] as const) : (['b', 'a'] as const)
            for (const name of names) await tx[name].insertInto('effect').values({ id }).execute()
            if (id % 10 === 9) throw new Error('no')
          },
          { finish: 'background' },
        )
        .catch(() => {})
    }
  }
  await Promise.all(Array.from({ length: 8 }, lane))
  over = true
  t.true((await Promise.all(watching)).every((rounds) => rounds > 0))
  t.deepEqual(found, [])
  await until('all is finished', async () => {
    const { pending } = await once.recovery.run({ keep: 0 })
    return pending + (await a.prepared()) + (await b.prepared()) === 0
  })
  t.is((await a.effects()).length, 270)
  t.deepEqual(await a.effects(), await b.effects())
  await once.recovery.run({ keep: 0 })
  for (const { count } of [a, b]) {
    t.is(await count('once.global_transaction'), 0)
    t.is(await count('once.evidence'), 0)
    t.is(await count('once.loss'), 0)
  }
})

test('Prepared transactions of others are left alone, also those that carry our prefix', async (t) => {
  const { a, b, once } = await pair(t)
  const [home] = await Promise.all([databaseIdOf(a.sql)])
  const stranger = await testRole(t, b)
  await b.sql.unsafe(
    `grant create on schema public to ${stranger}; create table theirs (id int); grant insert on theirs to ${stranger}`,
  )
  const session = connect(t, b.urlAs(stranger))
  const gids = [
    'somebody else',
    'once:',
    'once:2:future',
    `once:1:${home}`,
    // Word for word what ours look like, and its home would say "aborted".
    `once:1:${home}:${randomUUID()}:3:b`,
  ]
  for (const gid of gids) {
    await session.unsafe('begin')
    await session`insert into theirs values (1)`
    await session.unsafe(`prepare transaction '${gid}'`)
  }
  t.like(await once.recovery.run(), { ...nothing, unfinished: [], unreachable: [] })
  t.is(await b.prepared(), gids.length)
})

test('A recoverer needs the branch owner’s role, is told so, and finishes when it has it', async (t) => {
  const { a, b } = await pair(t)
  const owner = await testRole(t, b)
  const recoverer = await testRole(t, [a])
  // Roles belong to a cluster: one of this name in each.
  await b.sql.unsafe(`create role ${recoverer} login`)
  const sql = connect(t, b.url)
  t.teardown(async () => {
    await sql.unsafe(`drop owned by ${recoverer} cascade`)
    await sql.unsafe(`drop role ${recoverer}`)
  })
  await b.sql`select once.grant_app(${owner})`
  await b.sql.unsafe(`grant insert on effect to ${owner}`)
  for (const { sql } of [a, b]) await sql`select once.grant_recover(${recoverer})`
  const { gid } = await leave({ a, b: { ...b, sql: connect(t, b.urlAs(owner)) } }, 1)

  const once = client<Two>(t, { a: a.urlAs(recoverer), b: b.urlAs(recoverer) })
  const report = await once.recovery.run({ keep: 0 })
  t.like(report, { committed: 0, unreachable: [] })
  t.like(report.unfinished[0], { database: 'b', gid })
  t.regex(report.unfinished[0]?.reason ?? '', new RegExp(`grant ${owner}`))
  await b.sql.unsafe(`grant ${owner} to ${recoverer}`)
  t.like(await once.recovery.run({ keep: 0 }), {
    committed: 1,
    unfinished: [],
    unreachable: [],
    proven: 1,
    purged: 1,
    losses: [],
  })
  t.deepEqual(await once.recovery.audit(), [])
  t.deepEqual(await b.effects(), [1])
})

test('A role without any grant is told which, for each database', async (t) => {
  const { a, b } = await pair(t)
  await leave({ a, b }, 1)
  const role = await testRole(t, a)
  const once = client<Two>(t, { a: a.urlAs(role), b: b.url })
  const report = await once.recovery.run()
  t.is(report.unreachable[0]?.database, 'a')
  t.regex(report.unreachable[0]?.reason ?? '', /grant/)
  t.is(await b.prepared(), 1)
})

test('A running recovery finishes what comes, reports it, and stops when told', async (t) => {
  const { a, b, once } = await pair(t)
  const reports: RecoveryReport[] = []
  const running = once.recovery.start({ interval: 10, onReport: (report) => void reports.push(report) })
  await leave({ a, b }, 1)
  await until('it is committed', async () => (await b.effects()).includes(1))
  await leave({ a, b }, 2, 'aborted')
  await until('it is rolled back', async () => (await b.prepared()) === 0)
  await until('both are reported', () => {
    const sum = (key: 'committed' | 'rolledBack') => reports.reduce((total, report) => total + report[key], 0)
    return sum('committed') === 1 && sum('rolledBack') === 1
  })
  await running.stop()
  await leave({ a, b }, 3)
  t.is(await b.prepared(), 1)
  {
    await using again = once.recovery.start({ interval: 3_600_000 })
    // Again and again, since the first looks may find the branch too young.
    await until('it is committed', async () => {
      again.poke()
      return (await b.effects()).includes(3)
    })
  }
})

test('A report that throws stops neither recovery nor the process', async (t) => {
  const { a, b, once } = await pair(t)
  const running = once.recovery.start({
    interval: 10,
    onReport: () => {
      throw new Error('in the report')
    },
  })
  await leave({ a, b }, 1)
  await until('it is committed', async () => (await b.effects()).includes(1))
  await leave({ a, b }, 2)
  await until('it goes on', async () => (await b.effects()).includes(2))
  await t.notThrowsAsync(running.stop())
})
