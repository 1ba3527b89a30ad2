/** What lies between the databases in a recovery: how often they are asked, by whom, and what carriers may do wrong. */
import test from 'ava'
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import type { RecoveryReport } from '../../src/index.ts'
import { client, type Three, type Two } from '../support/client.ts'
import { connect, type TestContext } from '../support/database.ts'
import { type Effects, insertEffect, threeDatabases, twoDatabases } from '../support/effects.ts'
import { leaveBehind } from '../support/orphan.ts'
import { proxyTo } from '../support/proxy.ts'
import { until } from '../support/until.ts'

/** A Kysely instance that tells what it says. */
function listening(
  t: TestContext,
  url: string,
  said: string[],
  types?: pg.CustomTypesConfig,
): Kysely<Effects> {
  const pool = new pg.Pool({ connectionString: url, max: 2, ...(types ? { types } : {}) })
  pool.on('error', () => {})
  const db = new Kysely<Effects>({
    dialect: new PostgresDialect({ pool }),
    log: ({ query }) => void said.push(query.sql),
  })
  t.teardown(() => db.destroy())
  return db
}

const seconds = (n: number) => new Promise((resolve) => setTimeout(resolve, n * 1000))

test('An idle recovery says one thing a second to a database, and finds within the next what somebody left', async (t) => {
  const [a, b] = await twoDatabases(t)
  const said: string[] = []
  const once = client<Two>(t, { a: a.url, b: listening(t, b.url, said) })
  await using _ = once.recovery.start()
  await until('it looks', () => said.includes('select once.ask($1::pg_catalog.text)'))
  await seconds(1)
  said.length = 0
  await seconds(5)
  t.true(said.length >= 3 && said.length <= 5, String(said))
  t.deepEqual([...new Set(said)], ['select once.ask($1::pg_catalog.text)'])
  await leaveBehind(a, { b }, { effect: insertEffect(1) })
  said.length = 0
  await until('it is finished', async () => (await b.effects()).length === 1)
  t.true(said.filter((text) => text === 'select once.ask($1::pg_catalog.text)').length <= 3, String(said))
})

test('Of recoverers that race, one reports each branch as its own', async (t) => {
  const [a, b] = await twoDatabases(t)
  const count = 30
  for (let id = 0; id < count; id += 1)
    await leaveBehind(a, { b }, { outcome: id % 3 ? 'committed' : 'aborted', effect: insertEffect(id) })
  const recoverers = Array.from({ length: 4 }, () => client<Two>(t, { a: a.url, b: b.url }))
  const reports = await Promise.all(recoverers.map((once) => once.recovery.run({ purge: false })))
  const sum = (of: (report: RecoveryReport) => number) => reports.reduce((all, report) => all + of(report), 0)
  t.is(
    sum(({ committed }) => committed),
    (count * 2) / 3,
  )
  t.is(
    sum(({ rolledBack }) => rolledBack),
    count / 3,
  )
  t.deepEqual(
    reports.flatMap(({ unfinished }) => unfinished),
    [],
  )
})

test('A database that says nothing any more holds up no branch of the others', async (t) => {
  const [a, b, c] = await threeDatabases(t)
  const proxy = await proxyTo(t, c.url)
  const once = client<Three>(t, { a: a.url, b: b.url, c: proxy.url })
  t.teardown(() => proxy.cut())
  const running = once.recovery.start({ interval: 100 })
  await leaveBehind(a, { b, c }, { effect: insertEffect(1) })
  await until('all are finished', async () => (await b.effects()).length + (await c.effects()).length === 2)
  proxy.muteServer()
  const began = Date.now()
  for (let id = 2; id < 6; id += 1) {
    // One that concerns the silent database too, and one whose home it is.
    await leaveBehind(a, { b, c }, { effect: insertEffect(id) })
    await leaveBehind(c, { b }, { effect: insertEffect(10 * id) })
  }
  await until('b has its branches', async () => (await b.effects()).filter((id) => id < 10).length === 5)
  t.true(Date.now() - began < 8_000)
  t.deepEqual(
    (await b.effects()).filter((id) => id > 10),
    [],
    'what the silent one decides must wait',
  )
  proxy.cut()
  await running.stop()
})

for (const [what, onReport] of [
  ['rejects', () => Promise.reject(new Error('no'))],
  ['rejects with nothing', () => Promise.reject(undefined)],
  [
    'throws what cannot be looked at',
    () => {
      throw Object.defineProperty(new Error('no'), 'stack', {
        get() {
          throw new Error('not even this')
        },
      })
    },
  ],
  [
    'returns what cannot be awaited',
    () =>
      Object.defineProperty({}, 'then', {
        get() {
          throw new Error('no')
        },
      }),
  ],
] as const) {
  test(`A report that ${what} stops neither recovery nor the process`, async (t) => {
    const [a, b] = await twoDatabases(t)
    const once = client<Two>(t, { a: a.url, b: b.url })
    let reports = 0
    const running = once.recovery.start({
      interval: 10,
      onReport() {
        reports += 1
        return onReport()
      },
    })
    for (const id of [1, 2]) {
      await leaveBehind(a, { b }, { effect: insertEffect(id) })
      await until('it is committed', async () => (await b.effects()).includes(id))
    }
    await until('it was reported', () => reports > 1)
    await t.notThrowsAsync(running.stop())
  })
}

test('Answers that somebody has changed on their way are refused, and nothing comes of them', async (t) => {
  const [a, b] = await twoDatabases(t)
  await leaveBehind(a, { b }, { effect: insertEffect(1) })
  const text = 25
  const changed: pg.CustomTypesConfig = {
    getTypeParser: ((oid: number, format: 'text') =>
      oid === text
        ? (value: string) => (value.startsWith('{') ? value.toUpperCase() : value)
        : pg.types.getTypeParser(oid, format)) as never,
  }
  const once = client<Two>(t, { a: a.url, b: listening(t, b.url, [], changed) })
  const report = await once.recovery.run({ keep: 0 })
  t.is(report.committed + report.rolledBack + report.purged, 0)
  t.regex(report.unreachable[0]?.reason ?? '', /nobody knows/)
  t.is(await b.prepared(), 1)
})

test('A superuser who recovers runs nothing that others have put into the search_path', async (t) => {
  const [a, b] = await twoDatabases(t)
  for (const { sql, name } of [a, b]) {
    // A boolean, a number and a text are what most operators and functions make; these also leave a trace.
    await sql.unsafe(`
      create schema hijacked; create table hijacked.trace (what text);
      alter database ${name} set search_path = hijacked, pg_catalog, public`)
    for (const [operator, left, right, result] of [
      ['*', 'int4', 'interval', 'interval'],
      ['>=', 'interval', 'interval', 'bool'],
      ['=', 'text', 'text', 'bool'],
      ['=', 'uuid', 'uuid', 'bool'],
      ['||', 'text', 'text', 'text'],
      ['||', 'jsonb', 'jsonb', 'jsonb'],
      ['->>', 'jsonb', 'text', 'text'],
    ] as const) {
      const name = `op_${left}_${right}_${Buffer.from(operator).toString('hex')}`
      await sql.unsafe(`
        create function hijacked.${name}(a ${left}, b ${right}) returns ${result} language plpgsql as
          $$ begin insert into hijacked.trace values ('${operator}'); return null; end $$;
        create operator hijacked.${operator} (function = hijacked.${name}, leftarg = ${left}, rightarg = ${right})`)
    }
    for (const [signature, result] of [
      ['current_setting(t text)', 'text'],
      ['set_config(a text, b text, c bool)', 'text'],
      ['array_to_string(a text[], b text)', 'text'],
      ['format(t text)', 'text'],
      ['now()', 'timestamptz'],
      ['ask(request text)', 'text'],
    ] as const)
      await sql.unsafe(`
        create function hijacked.${signature} returns ${result} language plpgsql as
          $$ begin insert into hijacked.trace values ('${signature}'); return null; end $$`)
  }
  await leaveBehind(
    { sql: connect(t, a.url) },
    { b: { sql: connect(t, b.url) } },
    { effect: insertEffect(1) },
  )
  for (const { sql } of [a, b]) await sql.unsafe('truncate hijacked.trace')
  const once = client<Two>(t, { a: a.url, b: listening(t, b.url, []) })
  t.like(await once.recovery.run({ keep: 0, audit: true }), {
    committed: 1,
    proven: 1,
    purged: 1,
    unreachable: [],
  })
  for (const { sql } of [a, b]) t.deepEqual([...(await sql`select * from hijacked.trace`)], [])
})
