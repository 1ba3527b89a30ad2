import test from 'ava'
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  Kysely,
  PostgresAdapter,
  PostgresDialect,
  PostgresIntrospector,
  PostgresQueryCompiler,
  CompiledQuery as Query,
  sql,
  type Transaction,
} from 'kysely'
import pg from 'pg'
import postgres from 'postgres'
import { DatabaseError, HandlerError } from '../../src/index.ts'
import { client, killSessions, type Two } from '../support/client.ts'
import { connect } from '../support/database.ts'
import { type Effects, twoDatabases } from '../support/effects.ts'
import { at } from '../support/steps.ts'
import { until } from '../support/until.ts'

/** A dialect as others have written it: no command tags, and no eye on the connection. */
function plainDialect<DB>(sql: postgres.Sql, several: boolean | 'first'): Kysely<DB> {
  type Connection = DatabaseConnection & { readonly reserved: postgres.ReservedSql }
  const connection = (reserved: postgres.ReservedSql): Connection => ({
    reserved,
    async executeQuery<R>({ sql: text, parameters }: CompiledQuery) {
      // One statement at a time is what drivers take that prepare everything.
      const options = several ? {} : { simple: false, prepare: true }
      const run = several === 'first' ? (text.split('; ')[0] as string) : text
      const rows = await reserved.unsafe(run, [...parameters] as never[], options as { prepare?: boolean })
      return { rows: Array.from(rows) as R[] }
    },
    // biome-ignore lint/correctness/useYield: not needed here
    async *streamQuery() {
      throw new Error('not implemented')
    },
  })
  const run = async (on: DatabaseConnection, text: string) => void (await on.executeQuery(Query.raw(text)))
  const driver: Driver = {
    init: async () => {},
    acquireConnection: async () => connection(await sql.reserve()),
    beginTransaction: (on) => run(on, 'begin'),
    commitTransaction: (on) => run(on, 'commit'),
    rollbackTransaction: (on) => run(on, 'rollback'),
    releaseConnection: async (on) => (on as Connection).reserved.release(),
    destroy: async () => {},
  }
  return new Kysely<DB>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => driver,
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
}

test('Any Kysely dialect will do, one that tells no command tags included', async (t) => {
  const [a, b] = await twoDatabases(t)
  const once = client<Two>(t, {
    a: plainDialect(connect(t, a.url, { max: 2 }), true),
    b: plainDialect(connect(t, b.url, { max: 2 }), true),
  })
  const deliver = (sequence: number, swallow: boolean) =>
    once.process('a', { producer: 'p', sequence }, async (trx, tx) => {
      await trx.insertInto('effect').values({ id: sequence }).execute()
      if (sequence > 0) await tx.b.insertInto('effect').values({ id: sequence }).execute()
      if (swallow)
        await t.throwsAsync(trx.insertInto('effect').values({ id: sequence }).execute(), { code: '23505' })
    })
  for (const sequence of [0, 1]) {
    await t.throwsAsync(deliver(sequence, true), { instanceOf: HandlerError, code: 'SWALLOWED' })
    t.is((await deliver(sequence, false)).status, 'processed')
    t.is((await deliver(sequence, false)).status, 'duplicate')
  }
  t.deepEqual([await a.effects(), await b.effects()], [[0, 1], [1]])
  t.like(await once.recovery.run({ keep: 0 }), { purged: 1, losses: [] })
})

test('A driver is refused of which nobody could see that COMMIT committed: one statement a text, only the first of several, or text that is not what Postgres said', async (t) => {
  const [a] = await twoDatabases(t)
  const handler = async ({ a: trx }: { readonly a: Transaction<Effects> }) => {
    await trx.insertInto('effect').values({ id: 1 }).execute()
  }
  for (const several of [false, 'first'] as const) {
    const single = client<Pick<Two, 'a'>>(t, { a: plainDialect(connect(t, a.url, { max: 2 }), several) })
    await t.throwsAsync(
      single.transaction(handler),
      { instanceOf: DatabaseError, code: 'DRIVER' },
      `${several}`,
    )
  }
  const parsers: Record<string, (text: string) => unknown> = {
    'upper case': (text) => text.toUpperCase(),
    numbers: (text) => Number(text),
    trimmed: (text) => text.replaceAll(' ', ''),
  }
  for (const [what, parse] of Object.entries(parsers)) {
    const types = { getTypeParser: (oid: number) => (oid === 25 ? parse : (text: string) => text) }
    const pool = new pg.Pool({ connectionString: a.url, max: 2, types: types as never })
    pool.on('error', () => {})
    const db = new Kysely<Two['a']>({ dialect: new PostgresDialect({ pool }) })
    t.teardown(() => db.destroy())
    const once = client<Pick<Two, 'a'>>(t, { a: db })
    await t.throwsAsync(once.transaction(handler), { instanceOf: DatabaseError, code: 'DRIVER' }, what)
  }
  t.deepEqual(await a.effects(), [])
})

test('Parsers of the caller’s for booleans and numbers have no say in who wrote (pg, postgres.js)', async (t) => {
  const [a, b] = await twoDatabases(t)
  await a.sql`alter table effect add unique (note) deferrable initially deferred`
  const odd = (text: string) => (text === 't' ? 1 : text === 'f' ? 0 : `<${text}>`)
  const types = { getTypeParser: (oid: number) => (oid === 25 ? (text: string) => text : odd) }
  const overPg = (url: string) => {
    const pool = new pg.Pool({ connectionString: url, max: 2, types: types as never })
    pool.on('error', () => {})
    const db = new Kysely<Effects>({ dialect: new PostgresDialect({ pool }) })
    t.teardown(() => db.destroy())
    return db
  }
  const overPostgresJs = (url: string) => {
    const parsers = {
      bool: { to: 16, from: [16], serialize: String, parse: odd },
      text: { to: 25, from: [25], serialize: String, parse: (text: string) => text.toUpperCase() },
    }
    return connect(t, url, { types: parsers, transform: postgres.pascal } as never)
  }
  let id = 0
  for (const over of [overPg, overPostgresJs]) {
    const once = client<Two>(
      t,
      { a: over(a.url) as Kysely<Effects>, b: over(b.url) as Kysely<Effects> },
      { transaction: { retries: 0 } },
    )
    const write = (note: string) => {
      id += 1
      return once.process('a', { scope: 's', key: `${id}` }, async (trx, tx) => {
        // Read first, so that everybody has to be asked who wrote.
        await trx.selectFrom('effect').selectAll().execute()
        await sql`select from effect`.execute(tx.b)
        await sql`do $$ begin insert into effect values (${sql.lit(id)}, ${sql.lit(note)}); end $$`.execute(
          trx,
        )
        await sql`do $$ begin insert into effect values (${sql.lit(id)}); end $$`.execute(tx.b)
      })
    }
    t.is((await write(`note ${id}`)).status, 'processed')
    // The home's COMMIT is refused: nothing may be committed at the participant.
    await t.throwsAsync(write(`note ${id - 1}`), { code: '23505' })
  }
  t.deepEqual(await b.effects(), await a.effects())
})

test.serial(
  'A driver that goes on with a reopened connection cannot make us commit branches without their home',
  async (t) => {
    const [a, b] = await twoDatabases(t)
    // PREPARE takes as long as somebody holds this row.
    await b.sql.unsafe(`
    create table gate (id int primary key); insert into gate values (1);
    create function wait_at_gate() returns trigger language plpgsql as $$ begin perform from gate for update; return null; end $$;
    create constraint trigger late after insert on effect deferrable initially deferred for each row execute function wait_at_gate()`)
    const mine = connect(t, a.url)
    const once = client<Two>(t, { a: plainDialect(mine, true), b: b.url })
    const gate = await b.sql.reserve()
    await gate`begin`
    await gate`select from gate for update`
    let prepares = false
    at(t, 'prepare', 'start', 'b', () => {
      prepares = true
    })
    const transaction = once.transaction(
      async (tx) => {
        await tx.a.insertInto('effect').values({ id: 1 }).execute()
        await tx.b.insertInto('effect').values({ id: 1 }).execute()
      },
      { home: 'a', retries: 0 },
    )
    await until('the branch prepares', () => prepares)
    // Whoever waits for the pool's only connection gets it reopened, while our transaction still believes in it.
    let began = () => {}
    const reopened = new Promise<void>((resolve) => {
      began = resolve
    })
    const bystander = mine.begin(async () => {
      began()
      await transaction.catch(() => {})
    })
    await killSessions(a.sql, `state like 'idle in transaction%'`)
    await reopened
    await gate`commit`
    gate.release()
    await t.throwsAsync(transaction)
    await bystander.catch(() => {})
    await until('nothing is in doubt', async () => {
      await once.recovery.run()
      return (await b.prepared()) === 0
    })
    t.deepEqual([await a.effects(), await b.effects()], [[], []])
  },
)

test('Errors of the server are told as they are, in whatever language it says ERROR (pg)', async (t) => {
  const [a] = await twoDatabases(t)
  await a.sql`alter table effect add unique (note) deferrable initially deferred`
  const pool = new pg.Pool({ connectionString: a.url, max: 2 })
  pool.on('error', () => {})
  pool.on('connect', (one) => {
    one.on('error', () => {})
    // As pg reads the answer of a German server: it takes field S, which is translated, and not V.
    const answer = one.query.bind(one) as (...all: unknown[]) => Promise<unknown>
    one.query = ((...all: unknown[]) =>
      answer(...all).catch((error: { severity: string }) => {
        if (error.severity === 'ERROR') error.severity = 'FEHLER'
        throw error
      })) as typeof one.query
  })
  const db = new Kysely<Two['a']>({ dialect: new PostgresDialect({ pool }) })
  t.teardown(() => db.destroy())
  const once = client<Pick<Two, 'a'>>(t, { a: db })
  const insert = (id: number) =>
    once.transaction(({ a: trx }) => trx.insertInto('effect').values({ id, note: 'x' }).execute())
  await insert(0)
  await t.throwsAsync(insert(0), { code: '23505' }, 'of the handler’s statement')
  await t.throwsAsync(insert(1), { code: '23505' }, 'of COMMIT')
  t.deepEqual(await a.effects(), [0])
})
