/** Decisions and evidence that go when every branch is proven, in steps that survive crashes; and losses. */
import { randomUUID } from 'node:crypto'
import test from 'ava'
import fc from 'fast-check'
import { testDatabase } from '../support/database.ts'
import {
  databaseIdOf,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'
import { beginHome, decide, evidenceOf, outcome, rowOf, someHome } from '../support/two-phase.ts'

const shared = sharedDatabase()

test('Each step of purging is durable before the next may begin', async (t) => {
  const { url } = shared()
  const a = await openSession(t, url)
  await a.sql`set synchronous_commit = off`
  const calls = [
    `once.mark_proven('{}')`,
    `once.mark_confirmed('{}')`,
    `once.delete_evidence('${someHome}', '{}')`,
    `once.purge('{}')`,
    `once.expire()`,
  ]
  for (const call of calls) {
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
})

test('Unproven decisions come in pages, oldest first, none left out where times are equal', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids, decided_at)
    select gen_random_uuid(), '{b}', array[gen_random_uuid()], timestamptz '2024-01-01' + g / 4 * interval '1 second'
      from generate_series(1, 30) g`
  const seen: unknown[] = []
  for (let after = ''; ; ) {
    const page = await rowsOf(sql, `select transaction_id, decided_at::text from once.unproven(7${after})`)
    if (page.length === 0) break
    seen.push(...page.map(([id]) => id))
    const last = page.at(-1)
    after = `, '${last?.[1]}', '${last?.[0]}'`
  }
  t.is(new Set(seen).size, 30)
  t.is(seen.length, 30)
  t.deepEqual(
    seen,
    (
      await rowsOf(
        sql,
        'select transaction_id from once.global_transaction order by decided_at, transaction_id',
      )
    ).flat(),
  )
})

test('Evidence comes in pages, all of it', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`insert into once.evidence select gen_random_uuid(), ${someHome}, 'b' from generate_series(1, 25)`
  const seen: unknown[] = []
  for (let after = ''; ; ) {
    const page = await rowsOf(sql, `select * from once.evidence_page(10${after})`)
    if (page.length === 0) break
    t.true(page.every(([, home, participant]) => home === someHome && participant === 'b'))
    seen.push(...page.map(([id]) => id))
    after = `, '${seen.at(-1)}'`
  }
  t.is(seen.length, 25)
  t.is(new Set(seen).size, 25)
})

test('The pages of the clean-up and the question of a decision are index scans', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids, proven_at, confirmed_at)
    select gen_random_uuid(), '{b}', array[gen_random_uuid()], case when g > 20 then now() - interval '1 hour' end,
           case when g > 40 and g % 2 = 0 then now() - interval '1 hour' end
      from generate_series(1, 20000) g`
  await sql`insert into once.evidence select gen_random_uuid(), ${someHome}, 'b' from generate_series(1, 20000)`
  await sql`analyze once.global_transaction, once.evidence`
  const homeId = await databaseIdOf(sql)
  const calls = [
    `once.branch_outcome('${homeId}', '${randomUUID()}', '3')`,
    `once.unproven(10)`,
    `once.unproven(10, now() - interval '1 minute', '${randomUUID()}')`,
    `once.proven(10, '1 minute')`,
    `once.confirmed(10, '1 minute')`,
    `once.evidence_page(10)`,
    `once.find_evidence(array['${randomUUID()}', '${randomUUID()}']::uuid[])`,
    `once.find_decisions(array['${randomUUID()}', '${randomUUID()}']::uuid[])`,
    `once.mark_proven(array['${randomUUID()}']::uuid[])`,
    `once.mark_confirmed(array['${randomUUID()}']::uuid[])`,
    `once.delete_evidence('${homeId}', array['${randomUUID()}']::uuid[])`,
    `once.purge(array['${randomUUID()}']::uuid[])`,
  ]
  for (const call of calls) {
    await sql.begin(async (trx) => {
      await trx.unsafe(`select ${call}`)
      const [row] = await trx.unsafe(
        `select coalesce(sum(seq_scan), 0)::int as n from pg_stat_xact_user_tables
          where schemaname = 'once' and relname in ('global_transaction', 'evidence')`,
      )
      t.is(row?.n, 0, call)
    })
  }
})

test('Two recoverers that purge the same transactions at once do each step once', async (t) => {
  const { sql, url } = await testDatabase(t)
  const homeId = await databaseIdOf(sql)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  const ids = Array.from({ length: 300 }, () => randomUUID())
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    select id, '{b}', array[${someHome}::uuid] from unnest(${ids}::uuid[]) id`
  await sql`insert into once.evidence select id, ${homeId}, 'b' from unnest(${ids}::uuid[]) id`
  const list = (order: readonly string[]) => `array['${order.join(`','`)}']::uuid[]`
  for (const step of [
    (x: string) => `once.mark_proven(${x})`,
    (x: string) => `once.mark_confirmed(${x})`,
    (x: string) => `once.delete_evidence('${homeId}', ${x})`,
    (x: string) => `once.purge(${x})`,
  ]) {
    const counts = await Promise.all([
      a.value(`select ${step(list(ids))}`),
      b.value(`select ${step(list(ids.toReversed()))}`),
    ])
    t.is(Number(counts[0]) + Number(counts[1]), 300)
  }
})

test('A recoverer that deletes evidence waits for another that has not committed its deletion', async (t) => {
  const { sql, url } = shared()
  const homeId = await databaseIdOf(sql)
  const id = randomUUID()
  await sql`insert into once.evidence values (${id}, ${homeId}, 'b')`
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  const call = `select once.delete_evidence('${homeId}', array['${id}']::uuid[])`
  await a.sql`begin`
  t.is(await a.value(call), '1')
  const second = b.value(call)
  await untilBlocked(sql, b)
  await a.sql`rollback`
  t.is(await second, '1')
})

test('Evidence for another home is never deleted', async (t) => {
  const { sql } = shared()
  const id = randomUUID()
  await sql`insert into once.evidence values (${id}, ${someHome}, 'b')`
  t.is(await oneValue(sql, `select once.delete_evidence('${randomUUID()}', array['${id}']::uuid[])`), '0')
  t.deepEqual(await evidenceOf(sql, id), [someHome, 'b'])
})

/** The steps of purging one transaction, with its home and its branch in one database. */
const purging = {
  prove: (_home: string, ids: string) => `once.mark_proven(${ids})`,
  confirm: (_home: string, ids: string) => `once.mark_confirmed(${ids})`,
  'delete evidence': (home: string, ids: string) => `once.delete_evidence('${home}', ${ids})`,
  purge: (_home: string, ids: string) => `once.purge(${ids})`,
} as const

test('Purging may be done in any order and any number of times: no row goes before it is proven and confirmed', async (t) => {
  const { sql } = await testDatabase(t)
  const homeId = await databaseIdOf(sql)
  const steps = Object.keys(purging) as (keyof typeof purging)[]
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...steps), { maxLength: 8 }), async (list) => {
      const [id, bystander] = [randomUUID(), randomUUID()]
      const xids = new Map<string, string>()
      for (const one of [id, bystander]) {
        const [row] = await sql`
          insert into once.global_transaction (transaction_id, participants, database_ids)
          values (${one}, '{b}', ${[homeId]}) returning home_xid::text as xid`
        xids.set(one, row?.xid)
        await sql`insert into once.evidence values (${one}, ${homeId}, 'b')`
      }
      const model = { row: true, proven: false, confirmed: false, evidence: true }
      for (const step of list) {
        const count = await oneValue(sql, `select ${purging[step](homeId, `array['${id}']::uuid[]`)}`)
        const changes = {
          prove: model.row && !model.proven,
          confirm: model.row && model.proven && !model.confirmed,
          'delete evidence': model.evidence,
          purge: model.row && model.confirmed,
        }[step]
        t.is(count, changes ? '1' : '0')
        if (step === 'prove') model.proven ||= changes
        else if (step === 'confirm') model.confirmed ||= changes
        else if (step === 'purge') model.row &&= !changes
        else model.evidence = false
        t.is((await rowOf(sql, id)) !== undefined, model.row)
        t.is((await evidenceOf(sql, id)) !== undefined, model.evidence)
        t.is(await outcome(sql, homeId, id, xids.get(id) ?? ''), model.row ? 'committed' : 'purged')
      }
      t.truthy(await rowOf(sql, bystander))
      t.truthy(await evidenceOf(sql, bystander))
      t.is(await outcome(sql, homeId, bystander, xids.get(bystander) ?? ''), 'committed')
    }),
    { numRuns: 40 },
  )
})

test('An absent decision is called aborted only above everything that was ever purged', async (t) => {
  const { sql, url } = await testDatabase(t)
  const homeId = await databaseIdOf(sql)
  const a = await openSession(t, url)
  const finished = async (end: 'commit' | 'rollback') => {
    const id = randomUUID()
    const xid = await beginHome(a, id)
    await a.rows(end)
    return { id, xid }
  }
  const [early, kept, lost, late] = [
    await finished('rollback'),
    await finished('commit'),
    await finished('commit'),
    await finished('rollback'),
  ]
  const answers = async () =>
    Promise.all([early, kept, lost, late].map(({ id, xid }) => outcome(sql, homeId, id, xid)))
  t.deepEqual(await answers(), ['aborted', 'committed', 'committed', 'aborted'])
  await rowsOf(sql, `select once.mark_proven(array['${lost.id}']::uuid[])`)
  await rowsOf(sql, `select once.mark_confirmed(array['${lost.id}']::uuid[])`)
  await rowsOf(sql, `select once.purge(array['${lost.id}']::uuid[])`)
  t.deepEqual(await answers(), ['purged', 'committed', 'purged', 'aborted'])
  t.is(
    await decide(sql, homeId, early.id, early.xid),
    'aborted',
    'a branch in doubt gets its answer all the same',
  )
})

test('Decisions are found with whether they are proven, and confirmed', async (t) => {
  const { sql } = shared()
  const [unproven, proven, confirmed, absent] = [randomUUID(), randomUUID(), randomUUID(), randomUUID()]
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    select id, '{b}', array[${someHome}::uuid] from unnest(${[unproven, proven, confirmed]}::uuid[]) id`
  await sql`select once.mark_proven(${[proven, confirmed]}::uuid[])`
  await sql`select once.mark_confirmed(${[unproven, confirmed]}::uuid[])`
  const rows = await sql`select * from once.find_decisions(${[unproven, proven, confirmed, absent]}::uuid[])`
  t.deepEqual(
    new Map(rows.map((row) => [row.transaction_id, [row.proven, row.confirmed]])),
    new Map([
      [unproven, [false, false]],
      [proven, [true, false]],
      [confirmed, [true, true]],
    ]),
  )
})

test('A loss is recorded once, and only an operator with a reason puts it to rest', async (t) => {
  const { sql } = await testDatabase(t)
  const homeId = await databaseIdOf(sql)
  const id = randomUUID()
  const [row] = await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    values (${id}, '{b}', ${[someHome]}) returning home_xid::text as xid`
  await sql`insert into once.evidence values (${id}, ${homeId}, 'b')`
  const record = (kind: string) =>
    oneValue(sql, `select once.record_loss('${id}', 'b', '${homeId}', '${kind}')`)
  const acknowledge = (reason: string) => oneValue(sql, `select once.acknowledge('${id}', ${reason})`)
  await refused(t, acknowledge(`'too early'`), 'ONARG', id, 'no loss')
  t.true(await record('lost branch'))
  t.false(await record('lost branch'))
  t.true(await record('lost decision'))
  await refused(t, record('bad luck'), 'ONARG')
  await refused(t, acknowledge(`''`), 'ONARG', 'reason')
  await refused(t, acknowledge('null'), 'ONARG', 'reason')
  await refused(t, oneValue(sql, `select once.acknowledge(null, 'x')`), 'ONARG')
  t.truthy(await rowOf(sql, id), 'a refused acknowledgement removes nothing')
  t.is(await acknowledge(`'paid back by hand'`), '2')
  t.is(await rowOf(sql, id), undefined)
  t.is(await evidenceOf(sql, id), undefined)
  t.is(
    await outcome(sql, homeId, id, row?.xid),
    'purged',
    'a decision that was removed must not look aborted',
  )
  await refused(t, acknowledge(`'again'`), 'ONARG')
  t.false(await record('lost branch'), 'it stays known')
  t.is(await oneValue(sql, 'select count(*)::int from once.loss where acknowledged_at is not null'), 2)
  t.deepEqual(await rowsOf(sql, 'select action, subject, reason from once.intervention'), [
    ['acknowledge', { transaction_id: id }, 'paid back by hand'],
  ])
})
