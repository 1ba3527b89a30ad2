import test from 'ava'
import { connect, emptyDatabase, testDatabase, testRole } from './database.ts'
import { serverUrl } from './servers.ts'

/** Runs a piece as if it were a test of its own, teardown included: last registered, first run. */
async function asTest<T>(piece: (t: { teardown(fn: () => unknown): void }) => Promise<T>): Promise<T> {
  const teardowns: (() => unknown)[] = []
  try {
    return await piece({ teardown: (fn) => void teardowns.unshift(fn) })
  } finally {
    for (const teardown of teardowns) await teardown()
  }
}

test('Test databases are originals, each with an id of its own', async (t) => {
  const databases = await Promise.all((['a', 'a', 'b'] as const).map((server) => testDatabase(t, { server })))
  const ids = await Promise.all(
    databases.map(async ({ sql }) => (await sql`select once.database_id()`)[0]?.database_id),
  )
  t.is(new Set(ids).size, 3)
  for (const { sql } of databases) t.is((await sql`select from once.intervention`).length, 0)
})

test('A database without the schema has none', async (t) => {
  const { sql } = await emptyDatabase(t)
  const [row] = await sql`select to_regnamespace('once') as schema`
  t.is(row?.schema, null)
})

test('What a test leaves behind is removed: sessions, prepared transactions, roles, the database', async (t) => {
  const left = await asTest(async (inner) => {
    const database = await testDatabase(inner)
    const role = await testRole(inner, database)
    await database.sql.unsafe(`create table effect (id int); grant insert on effect to ${role}`)
    const session = connect(t, database.urlAs(role))
    await session`insert into effect values (1)`
    const other = await connect(inner, database.urlAs(role)).reserve()
    await other`begin`
    await other`insert into effect values (2)`
    await other.unsafe(`prepare transaction 'it''s left in ${database.name}'`)
    return { name: database.name, role }
  })
  const sql = connect(t, serverUrl())
  t.deepEqual([...(await sql`select from pg_database where datname = ${left.name}`)], [])
  t.deepEqual([...(await sql`select from pg_prepared_xacts where database = ${left.name}`)], [])
  t.deepEqual([...(await sql`select from pg_roles where rolname = ${left.role}`)], [])
})
