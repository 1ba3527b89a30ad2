import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import {
  CamelCasePlugin,
  type CompiledQuery,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresDialect,
  PostgresIntrospector,
  PostgresQueryCompiler,
} from 'kysely'
import pg from 'pg'
import { migrate } from '../../src/database/migrate.ts'
import { type MigrationFile, migrationSql, readMigrations } from '../../src/database/migration.ts'
import { PgonceError } from '../../src/errors.ts'
import { catalog, schemaSource } from '../support/catalog.ts'
import {
  connect,
  emptyDatabase,
  makeStandby,
  ownServer,
  randomName,
  type TestDatabase,
  testRole,
} from '../support/database.ts'
import { serverUrl } from '../support/servers.ts'
import { until } from '../support/until.ts'

const shipped = await readMigrations()
const latest = shipped.length

// What is committed

test('the committed migrations build exactly what sql/ says', async (t) => {
  const [migrated, source] = [await emptyDatabase(t), await emptyDatabase(t)]
  await migrate(migrated.url)
  await source.sql.unsafe(`create schema once; ${await schemaSource()}`)
  const actual = await catalog(migrated.sql)
  t.true(actual.length > 100)
  t.deepEqual(
    actual,
    await catalog(source.sql),
    'type: npm run migrations:rebuild, or put the change into migrations/current.sql if the last one is released',
  )
})

test('every file of sql/ stands once in the manifest', async (t) => {
  const folder = new URL('../../sql/', import.meta.url)
  const files = (await readdir(folder, { recursive: true })).filter(
    (file) => file.endsWith('.sql') && file !== 'schema.sql',
  )
  const manifest = (await readFile(new URL('schema.sql', folder), 'utf8')).matchAll(/^--!include (\S+)$/gm)
  t.deepEqual([...manifest].map((match) => match[1] ?? '').sort(), files.sort())
})

test('the schema calls itself by the number of its newest migration', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const { schemaVersion } = await migrate(url)
  t.is(schemaVersion, latest)
  t.deepEqual([...(await sql`select once.schema_version() as version`)], [{ version: latest }])
  t.deepEqual(
    shipped.map(({ name }) => Number.parseInt(name, 10)),
    Array.from({ length: latest }, (_, index) => index + 1),
  )
})

test('a released migration is never edited', async (t) => {
  const folder = new URL('../../migrations/', import.meta.url)
  const lines = (await readFile(new URL('released', folder), 'utf8')).split('\n')
  for (const line of lines.filter((one) => one !== '' && !one.startsWith('#'))) {
    const [hash, file] = line.split(/\s+/) as [string, string]
    const content = await readFile(new URL(`committed/${file}`, folder))
    t.is(createHash('sha256').update(content).digest('hex'), hash, `${file} is released`)
  }
  t.true(lines[0]?.startsWith('#'))
})

test('no migration contains what graphile-migrate or psql would replace', async (t) => {
  const text = await migrationSql()
  t.notRegex(text, /(?<![:\w]):[A-Z][0-9A-Z_]+\b/, 'a graphile-migrate placeholder')
  t.notRegex(text, /^--!/m, 'a graphile-migrate comment')
  t.notRegex(text, /^\s*(begin|commit|rollback)\s*;/im, 'a transaction of its own')
})

test('no module asks where it lies when it is loaded: in a CommonJS bundle it would have no answer', async (t) => {
  const folder = new URL('../../src/', import.meta.url)
  const files = (await readdir(folder, { recursive: true })).filter((file) => file.endsWith('.ts'))
  const asking: string[] = []
  for (const file of files)
    for (const line of (await readFile(new URL(file, folder), 'utf8')).split('\n'))
      if (line.includes('import.meta')) asking.push(line)
  t.true(asking.length > 0)
  // Within a function, or as the body of one.
  t.deepEqual(
    asking.filter((line) => !/^\s|=>.*import\.meta/.test(line)),
    [],
  )
})

// Installing

test('of many installers at once one installs and the others find it done', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const results = await Promise.all(Array.from({ length: 6 }, () => migrate(url)))
  const installed = results.flatMap(({ migrations }) =>
    migrations.filter(({ status }) => status === 'installed'),
  )
  t.deepEqual(installed.map(({ name }) => name).sort(), shipped.map(({ name }) => name).sort())
  t.deepEqual(
    [...(await sql`select name from once.migration order by name`)].map(({ name }) => name),
    shipped.map(({ name }) => name),
  )
})

test('an installer that comes while another is at work waits for it, whatever the isolation level', async (t) => {
  const { url, sql, name } = await emptyDatabase(t)
  await sql.unsafe(`alter database ${name} set default_transaction_isolation = 'serializable'`)
  const gate = await sql.reserve()
  // Both have looked, found nothing, and queue for the installers' lock.
  await gate`select pg_advisory_lock(2087155398171459377)`
  const running = [migrate(url), migrate(url)]
  await until('both installers wait', async () => {
    const [row] = await sql<{ waiting: number }[]>`
      select count(*)::int as waiting from pg_locks
       where locktype = 'advisory' and not granted
         and database = (select oid from pg_database where datname = current_database())`
    return row?.waiting === 2
  })
  await gate`select pg_advisory_unlock(2087155398171459377)`
  gate.release()
  const statuses = (await Promise.all(running)).map(({ migrations }) => migrations.at(0)?.status)
  t.deepEqual(statuses.sort(), ['installed', 'present'])
})

test('a second install changes nothing', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const first = await migrate(url)
  const before = [await catalog(sql), [...(await sql`select * from once.migration`)]]
  const second = await migrate(url)
  t.true(first.migrations.every(({ status }) => status === 'installed'))
  t.true(second.migrations.every(({ status }) => status === 'present'))
  t.is(second.schemaVersion, first.schemaVersion)
  t.deepEqual([await catalog(sql), [...(await sql`select * from once.migration`)]], before)
})

test('a dry run names what would run and changes nothing', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const { migrations, schemaVersion, database } = await migrate(url, { dryRun: true })
  t.deepEqual(
    migrations,
    shipped.map(({ name }) => ({ name, status: 'pending' })),
  )
  t.is(schemaVersion, 0)
  t.is(database, (await sql`select current_database() as name`)[0]?.name)
  t.deepEqual([...(await sql`select from pg_namespace where nspname = 'once'`)], [])
})

test('the progress of each migration is told', async (t) => {
  const { url } = await emptyDatabase(t)
  const told: unknown[] = []
  const { migrations } = await migrate(url, { onProgress: (step) => told.push(step) })
  t.deepEqual(told, [...migrations])
})

test('a postgres.js instance and a Kysely instance over pg do as well, and keep their settings', async (t) => {
  const [one, two] = [await emptyDatabase(t), await emptyDatabase(t)]
  const sql = connect(t, one.url, { connection: { search_path: 'elsewhere' } })
  await migrate(sql)
  t.deepEqual([...(await sql`select current_setting('search_path') as path`)], [{ path: 'elsewhere' }])
  t.is((await migrate(sql)).migrations[0]?.status, 'present')

  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: two.url, max: 1 }) }),
    plugins: [new CamelCasePlugin()],
  })
  t.teardown(() => db.destroy())
  t.is((await migrate(db)).migrations[0]?.status, 'installed')
  t.is((await migrate(db)).migrations[0]?.status, 'present')
  t.deepEqual(await catalog(two.sql), await catalog(one.sql))
})

test('the defaults of role and database do not matter', async (t) => {
  const plain = await emptyDatabase(t)
  await migrate(plain.url)
  const odd = await emptyDatabase(t)
  // Functions that stand before Postgres's own, a read-only default, and a timeout that nothing keeps.
  await odd.sql.unsafe(`
    create schema trap;
    create function trap.now() returns timestamptz language sql as 'select null::timestamptz';
    create function trap.length(text) returns integer language sql as 'select 1 / 0';
    create function trap.to_regclass(text) returns regclass language sql as 'select 1 / 0; select null::regclass';
    alter database ${odd.name} set search_path = trap, pg_catalog;
    alter database ${odd.name} set default_transaction_read_only = on;
    alter database ${odd.name} set default_transaction_isolation = 'repeatable read';
    alter database ${odd.name} set statement_timeout = '1ms';
    alter database ${odd.name} set client_min_messages = 'debug1'`)
  const sql = connect(t, odd.url, { connection: { statement_timeout: 60_000 } })
  await migrate(sql)
  await sql`set default_transaction_read_only = off`
  t.deepEqual(await catalog(sql), await catalog(plain.sql))
})

// Privileges

test('the owner of a database installs without being a superuser', async (t) => {
  const database = await emptyDatabase(t)
  const { name, sql, urlAs } = database
  const role = await testRole(t, database)
  await sql.unsafe(`alter database ${name} owner to ${role}`)
  t.teardown(() => giveBack(database))
  await migrate(urlAs(role))
  const owner = connect(t, urlAs(role))
  const [row] =
    await owner`select once.schema_version() as version, once.database_id() = id as ours from once.database`
  t.deepEqual({ ...row }, { version: latest, ours: true })
  t.is((await migrate(urlAs(role))).migrations[0]?.status, 'present')
})

test('create on the database is enough', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  await database.sql.unsafe(`grant create on database ${database.name} to ${role}`)
  t.is((await migrate(database.urlAs(role))).migrations[0]?.status, 'installed')
})

test('so is an empty schema once that somebody made for the role', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  await database.sql.unsafe(`create schema once authorization ${role}`)
  t.is((await migrate(database.urlAs(role))).migrations[0]?.status, 'installed')
})

test('who may not create a schema is told what the owner must type', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  const error = await t.throwsAsync(migrate(database.urlAs(role)), { instanceOf: PgonceError })
  t.like(error, { code: 'NO_PRIVILEGE' })
  const statement = `grant create on database "${database.name}" to "${role}";`
  t.true(error.hint?.includes(statement), error.hint)
  await database.sql.unsafe(statement)
  await t.notThrowsAsync(migrate(database.urlAs(role)))
})

test('another role than the owner cannot update, and is told whom to ask', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  await migrate(database.url)
  await database.sql.unsafe(`grant create on database ${database.name} to ${role}`)
  await database.sql.unsafe(
    `grant usage on schema once to ${role}; grant select on once.migration to ${role}`,
  )
  const error = await t.throwsAsync(migrate(database.urlAs(role), { migrations: withNext('select 1') }))
  t.like(error, {
    code: 'NO_PRIVILEGE',
    hint: `Connect as "postgres", or let a superuser type: grant "postgres" to "${role}";`,
  })
})

test('where nothing is to be done, any of our grants is enough, and without one the hint says how to get it', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  await migrate(database.url)
  const error = await t.throwsAsync(migrate(database.urlAs(role)), { instanceOf: PgonceError })
  t.like(error, { code: 'NO_PRIVILEGE' })
  t.regex(error.message, /may not see which version/)
  const line = `select once.grant_app('${role}');`
  t.true(error.hint?.endsWith(line), error.hint)
  for (const kind of ['app', 'recover', 'monitor']) {
    await database.sql.unsafe(`drop owned by ${role}`)
    await database.sql.unsafe(line.replace('app', kind))
    const { schemaVersion, migrations } = await migrate(database.urlAs(role))
    t.is(schemaVersion, latest)
    t.true(migrations.every(({ status }) => status === 'present'))
  }
})

test('so is reading once.migration', async (t) => {
  const database = await emptyDatabase(t)
  const role = await testRole(t, database)
  await migrate(database.url)
  await database.sql.unsafe(
    `grant usage on schema once to ${role}; grant select on once.migration to ${role}`,
  )
  t.is((await migrate(database.urlAs(role))).migrations[0]?.status, 'present')
})

test('a schema once that is not ours is left alone', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  await sql`create schema once`
  await sql`create table once.upon_a_time (a int)`
  const error = await t.throwsAsync(migrate(url))
  t.like(error, { code: 'FOREIGN_SCHEMA' })
  t.regex(error.message, /schema once in .* that pgonce did not make/)
  t.is((await catalog(sql)).filter((line) => line.startsWith('relation')).length, 1)
  // Nor does the script that psql runs touch it.
  const text = await migrationSql()
  await t.throwsAsync(
    sql.begin((trx) => trx.unsafe(text)),
    { code: '42P06', message: /schema once in .* that pgonce did not make/ },
  )
  t.is((await catalog(sql)).filter((line) => line.startsWith('relation')).length, 1)
  t.regex(text.slice(0, 400), /^-- {3}psql -1 -v ON_ERROR_STOP=1 -f FILE/m)
})

// Updating

test('a schema newer than the package is refused, naming both', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  await migrate(url, { migrations: withNext('create table once.later (a int)') })
  const before = await catalog(sql)
  const error = await t.throwsAsync(migrate(url))
  t.like(error, { code: 'SCHEMA_VERSION', hint: 'Update the package: npm install pgonce@latest' })
  const { version } = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'))
  t.true(error.message.includes(`at version ${latest + 1} (${nextName})`))
  t.true(
    error.message.includes(`pgonce ${version} knows only up to version ${latest} (${shipped.at(-1)?.name})`),
  )
  t.like(await t.throwsAsync(migrate(url, { dryRun: true })), { code: 'SCHEMA_VERSION' })
  t.deepEqual(await catalog(sql), before)
})

test('each migration is a transaction of its own: a failure keeps those before it and nothing of itself', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const broken = withNext('create table once.half (a int); select 1 / 0;')
  const error = await t.throwsAsync(migrate(url, { migrations: broken }))
  t.like(error, { code: 'MIGRATION_FAILED', cause: { code: '22012' } })
  t.true(error.message.startsWith(`Migration ${nextName} of `))
  t.regex(error.message, /division by zero/)
  t.deepEqual([...(await sql`select to_regclass('once.half') as half`)], [{ half: null }])
  t.is((await migrate(url)).schemaVersion, latest)

  const mended = withNext('create table once.half (a int)')
  const { migrations } = await migrate(url, { migrations: mended })
  t.deepEqual(
    migrations.map(({ status }) => status),
    [...shipped.map(() => 'present'), 'installed'],
  )
})

test('a first install that fails leaves no schema and no lock', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const held = connect(t, url)
  const error = await t.throwsAsync(
    migrate(held, { migrations: [{ name: '000001-bad', sql: 'select oops' }] }),
  )
  t.like(error, { code: 'MIGRATION_FAILED', cause: { code: '42703' } })
  t.deepEqual([...(await sql`select from pg_namespace where nspname = 'once'`)], [])
  t.deepEqual(
    [
      ...(await sql`
        select from pg_locks where locktype = 'advisory'
           and database = (select oid from pg_database where datname = current_database())`),
    ],
    [],
  )
})

test('a migration gives up waiting for a lock in time and can be repeated', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  await migrate(url)
  const migrations = withNext('alter table once.database add column later integer')
  const reader = await sql.reserve()
  await reader`begin`
  await reader`select from once.database`
  t.like(await t.throwsAsync(migrate(url, { migrations, lockTimeout: 50 })), { code: 'LOCK_TIMEOUT' })
  await reader`commit`
  reader.release()
  t.is((await migrate(url, { migrations, lockTimeout: 50 })).schemaVersion, latest + 1)
})

// As SQL

test('the printed SQL, run in one transaction, is the same as an install, and is recognised as one', async (t) => {
  const [pasted, installed] = [await emptyDatabase(t), await emptyDatabase(t)]
  await migrate(installed.url)
  const text = await migrationSql()
  await pasted.sql.begin((trx) => trx.unsafe(text))
  t.deepEqual(await catalog(pasted.sql), await catalog(installed.sql))
  const { migrations } = await migrate(pasted.url)
  t.true(migrations.every(({ status }) => status === 'present'))
  t.deepEqual(await catalog(pasted.sql), await catalog(installed.sql))

  const again = await t.throwsAsync(pasted.sql.begin((trx) => trx.unsafe(text)))
  t.regex(again.message, /from schema version 0, but the database has/)
})

test('the printed SQL for an older schema has only what that one lacks', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const migrations = withNext('create table once.later (a int)')
  const update = await migrationSql({ from: latest, migrations })
  await t.throwsAsync(
    sql.begin((trx) => trx.unsafe(update)),
    { message: /once.migration|but the database has/ },
  )
  await migrate(url)
  // As if the first was installed by a machine whose clock is ahead: the order must hold all the same.
  await sql`update once.migration set installed_at = '2999-01-01'`
  await sql.begin((trx) => trx.unsafe(update))
  t.is((await migrate(url, { migrations })).migrations.at(-1)?.status, 'present')
  t.regex(await migrationSql({ from: latest }), /Nothing to do/)
  for (const from of [-1, latest + 1, 0.5, Number.NaN]) {
    const error = await t.throwsAsync(migrationSql({ from }))
    t.true(error.message.includes(`got ${from}`))
  }
})

test('the printed SQL can be a migration in a graphile-migrate chain', async (t) => {
  const database = await emptyDatabase(t)
  const chain = await graphileChain(t, database)
  await chain.write('fixtures/pgonce.sql', await migrationSql())
  await chain.write(
    'current.sql',
    'create schema app;\n--!include pgonce.sql\ncreate table app.thing (a int);\n',
  )
  await chain.run('commit')
  const installed = await emptyDatabase(t)
  await migrate(installed.url)
  t.deepEqual(await catalog(database.sql), await catalog(installed.sql))
  t.true((await migrate(database.url)).migrations.every(({ status }) => status === 'present'))
})

test("a database's own graphile-migrate chain goes on as if nothing had happened", async (t) => {
  const database = await emptyDatabase(t)
  const chain = await graphileChain(t, database)
  await chain.write('current.sql', 'create schema app;\ncreate table app.first (a int);\n')
  await chain.run('commit')
  const before = [...(await database.sql`select * from graphile_migrate.migrations`)]
  await migrate(database.url)
  t.deepEqual([...(await database.sql`select * from graphile_migrate.migrations`)], before)
  await chain.write('current.sql', 'create table app.second (a int);\n')
  await chain.run('commit')
  await chain.run('migrate')
  const [row] = await database.sql`
    select to_regclass('app.second') is not null as second, once.schema_version() as version`
  t.deepEqual({ ...row }, { second: true, version: latest })
  t.is((await migrate(database.url)).migrations[0]?.status, 'present')
})

// Bad input

test('what is no database is refused with the value, without its password', async (t) => {
  const bad: unknown[] = [
    'mysql://joe:secret@localhost/x',
    'orders',
    '',
    null,
    undefined,
    5,
    {},
    new URL('http://x/'),
  ]
  for (const target of bad) {
    const error = await t.throwsAsync(migrate(target as string), { instanceOf: PgonceError })
    t.like(error, { code: 'ONARG' })
    t.regex(error.message, /^Expected a URL/)
    t.notRegex(error.message, /secret/)
  }
  const { url } = await emptyDatabase(t)
  for (const lockTimeout of [-1, 1.5, Number.NaN, 2 ** 31]) {
    t.like(await t.throwsAsync(migrate(url, { lockTimeout })), { code: 'ONARG' })
  }
})

test('a transaction is refused, with what to do instead', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url }) }),
  })
  t.teardown(() => db.destroy())
  const error = await t.throwsAsync(db.transaction().execute((trx) => migrate(trx)))
  t.like(error, { code: 'ONARG' })
  t.regex(`${Reflect.get(error, 'hint')}`, /migrationSql\(\)/)
  t.deepEqual([...(await sql`select from pg_namespace where nspname = 'once'`)], [])
})

test('a database that cannot be reached is named, with the reason and without its password', async (t) => {
  const closed = await freePort()
  const refused = `postgres://joe:secret@127.0.0.1:${closed}/orders`
  const missing = serverUrl('a', randomName('missing'))
  for (const [url, code, reason, advice] of [
    [refused, 'CONNECTION_LOST', /ECONNREFUSED/, /Check host and port/],
    [missing, 'NO_DATABASE', /does not exist/, /create database/],
  ] as const) {
    const error = await t.throwsAsync(migrate(url), { instanceOf: PgonceError })
    t.like(error, { code })
    t.regex(error.message, reason)
    t.regex(error.hint ?? '', advice)
    t.true(error.message.includes(url.replace(':secret', ':…')))
    t.notRegex(error.message, /secret/)
  }
})

test('something else than Postgres is given up on', async (t) => {
  const web = createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
  })
  await new Promise<void>((resolve) => web.listen(0, '127.0.0.1', resolve))
  t.teardown(() => web.close())
  const { port } = web.address() as AddressInfo
  const error = await t.throwsAsync(
    migrate(`postgres://joe@127.0.0.1:${port}/orders`, { connectTimeout: 500 }),
  )
  t.like(error, { code: 'CONNECTION_LOST' })
  t.regex(error.message, /127\.0\.0\.1.*could not be reached/)
})

test('a server older than Postgres 15 is refused', async (t) => {
  const error = await t.throwsAsync(migrate(pretend({ server: 140_012, release: '14.12', standby: false })))
  t.like(error, { code: 'SERVER_VERSION' })
  t.regex(error.message, /is on Postgres 14\.12; pgonce needs 15 or later/)
})

test('a standby is refused', async (t) => {
  const server = await ownServer(t)
  await makeStandby(server)
  const error = await t.throwsAsync(migrate(server.url()))
  t.like(error, { code: 'ONSTB', hint: 'Give the URL of its primary' })
})

// ---------------------------------------------------------------------------------------------------

const nextName = `${String(latest + 1).padStart(6, '0')}-next`

/** The shipped migrations and one that a later version might bring. */
function withNext(sql: string): MigrationFile[] {
  return [...shipped, { name: nextName, sql }]
}

async function giveBack({ name, sql }: TestDatabase): Promise<void> {
  await sql.unsafe(`alter database ${name} owner to postgres`)
}

async function freePort(): Promise<number> {
  const probe = createServer()
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve))
  const { port } = probe.address() as AddressInfo
  await new Promise((resolve) => probe.close(resolve))
  return port
}

/** A database that says of itself what the test wants; no such server is to be had. */
function pretend(found: Record<string, unknown>): Kysely<unknown> {
  const row = {
    database: 'old',
    login: 'joe',
    owner: '',
    creator: true,
    exists: false,
    booked: false,
    used: false,
    ...found,
  }
  const driver = new DummyDriver()
  driver.acquireConnection = async () => ({
    executeQuery: async <R>(_query: CompiledQuery) => ({ rows: [row as R] }),
    streamQuery: () => {
      throw new Error('not needed')
    },
  })
  return new Kysely({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => driver,
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
}

/** A graphile-migrate project of somebody else's, for one database. */
async function graphileChain(t: ExecutionContext, database: TestDatabase) {
  const folder = await mkdtemp(join(tmpdir(), 'pgonce-chain-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  await mkdir(join(folder, 'migrations/fixtures'), { recursive: true })
  await writeFile(join(folder, '.gmrc'), '{}')
  const shadow = randomName('shadow')
  t.teardown(() => database.sql.unsafe(`drop database if exists ${shadow} with (force)`))
  const env = {
    ...process.env,
    DATABASE_URL: database.url,
    SHADOW_DATABASE_URL: serverUrl('a', shadow),
    ROOT_DATABASE_URL: serverUrl('a'),
  }
  const cli = createRequire(import.meta.url).resolve('graphile-migrate/dist/cli.js')
  return {
    write: (file: string, text: string) => writeFile(join(folder, 'migrations', file), text),
    run: (command: string) => promisify(execFile)(process.execPath, [cli, command], { cwd: folder, env }),
  }
}
