/** Throwaway databases, roles and servers for tests. All are removed when the test ends. */
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import postgres from 'postgres'
import { chosenVersion, packageOf } from '../../proof/rig/postgres-version.ts'
import { connection } from '../../proof/rig/servers.ts'
import { migrate } from '../../src/database/migrate.ts'
import { type EmbeddedServer, type ServerSettings, startServer } from '../../src/embedded/server.ts'
import { type ServerName, serverUrl } from './servers.ts'

export interface TestDatabase {
  readonly name: string
  /** Connection URL as the superuser. */
  readonly url: string
  /** Connection URL as another role. */
  urlAs(role: string): string
  /** Up to 4 connections as the superuser, opened when first used. */
  readonly sql: postgres.Sql
}

export interface TestDatabaseOptions {
  /**
   * Which of the two shared clusters.
   * @defaultValue 'a'
   */
  readonly server?: ServerName
}

/** What is needed of ava's `t`. */
export interface TestContext {
  teardown(fn: () => unknown): void
}

/** Teardowns of what all tests of a file share: ava has none in its hooks. */
export function fileContext(after: (fn: () => Promise<void>) => void): TestContext {
  const teardowns: (() => unknown)[] = []
  after(async () => {
    for (const teardown of teardowns.toReversed()) await teardown()
  })
  return { teardown: (fn) => void teardowns.push(fn) }
}

/** A database of its own for a test, with the pgonce schema installed. */
export async function testDatabase(t: TestContext, options: TestDatabaseOptions = {}): Promise<TestDatabase> {
  const server = options.server ?? 'a'
  await ensureTemplate(server)
  return createDatabase(t, server, templateName)
}

/** A database of its own for a test, without the pgonce schema. */
export function emptyDatabase(t: TestContext, options: TestDatabaseOptions = {}): Promise<TestDatabase> {
  return createDatabase(t, options.server ?? 'a', 'template1')
}

/** A role that may log in, by a name of its own. Privileges it got in the databases named here go with it. */
export async function testRole(
  t: TestContext,
  databases: TestDatabase | readonly TestDatabase[],
  attributes = '',
): Promise<string> {
  const all = [databases].flat()
  const [first] = all
  if (!first) throw new Error('testRole: expected at least one database')
  const name = randomName('role')
  await first.sql.unsafe(`create role ${name} login ${attributes}`)
  t.teardown(async () => {
    for (const { url } of all) {
      await using session = connection(url)
      await session.sql.unsafe(`drop owned by ${name} cascade`)
    }
    await using session = connection(first.url)
    await session.sql.unsafe(`drop role ${name}`)
  })
  return name
}

/** A postgres.js client that is closed when the test ends, by default with one connection. */
export function connect<T extends Record<string, postgres.PostgresType> = Record<string, never>>(
  t: TestContext,
  url: string,
  options: postgres.Options<T> = {},
) {
  const sql = postgres(url, { max: 1, onnotice: () => {}, ...options })
  t.teardown(() => sql.end({ timeout: 1 }))
  return sql
}

/** A server for tests that kill or reconfigure it; the shared ones must be left running. */
export async function ownServer(t: TestContext, settings: ServerSettings = {}): Promise<EmbeddedServer> {
  const server = await startServer({
    package: packageOf(chosenVersion()),
    settings: { fsync: 'off', max_prepared_transactions: 20, max_connections: 40, ...settings },
  })
  t.teardown(() => server[Symbol.asyncDispose]())
  return server
}

/** Restarts an own server as a standby: everything in it can be read, and it follows no primary. */
export async function makeStandby(server: EmbeddedServer): Promise<void> {
  await server.stop('fast')
  await writeFile(join(server.dataDirectory, 'standby.signal'), '')
  await server.start()
}

/** Installs the pgonce schema, for tests that make their database themselves. */
export async function installSchema(url: string): Promise<void> {
  await migrate(url)
}

/** A name that no other test uses and that needs no quotes. */
export function randomName(prefix: string): string {
  return `${prefix}_${randomBytes(8).toString('hex')}`
}

const templateName = 'pgonce_template'
const templates = new Map<ServerName, Promise<void>>()

/** Makes the database that the others are copied from, once a run and server, whichever process is first. */
function ensureTemplate(server: ServerName): Promise<void> {
  let ready = templates.get(server)
  if (!ready) {
    ready = makeTemplate(server)
    templates.set(server, ready)
    // Whoever waits for it hears of the error; the next test tries anew.
    ready.catch(() => templates.delete(server))
  }
  return ready
}

async function makeTemplate(server: ServerName): Promise<void> {
  await using session = connection(serverUrl(server))
  const { sql } = session
  // A session lock: create database cannot run in a transaction.
  await sql`select pg_advisory_lock(hashtext(${templateName}))`
  const found = await sql`select from pg_database where datname = ${templateName}`
  if (found.length > 0) return
  const draft = randomName('draft')
  await sql.unsafe(`create database ${draft}`)
  try {
    await installSchema(serverUrl(server, draft))
    await terminateSessions(sql, draft)
    await sql.unsafe(`alter database ${draft} rename to ${templateName}`)
    await sql.unsafe(`alter database ${templateName} allow_connections false`)
  } catch (error) {
    await sql.unsafe(`drop database if exists ${draft} with (force)`)
    throw error
  }
}

async function createDatabase(t: TestContext, server: ServerName, template: string): Promise<TestDatabase> {
  const name = randomName('test')
  await using session = connection(serverUrl(server))
  // Without fsync it is cheaper to copy the files than to write all of them into the log.
  await session.sql.unsafe(`create database ${name} template ${template} strategy file_copy`)
  const url = serverUrl(server, name)
  const sql = postgres(url, { max: 4, onnotice: () => {} })
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await dropDatabase(server, name)
  })
  if (template === templateName) {
    // The schema notices that it was copied. Each test database is an original of its own.
    await using first = connection(url)
    await first.sql`select once.renew_database_id('test database')`
    await first.sql`truncate once.intervention restart identity`
  }
  return { name, url, urlAs: (role) => serverUrl(server, name, role), sql }
}

/** Drops a database with everything that holds on to it: sessions and prepared transactions. */
async function dropDatabase(server: ServerName, name: string): Promise<void> {
  await using admin = connection(serverUrl(server))
  const present = await admin.sql`select from pg_database where datname = ${name}`
  if (present.length === 0) return
  await terminateSessions(admin.sql, name)
  const pending = await admin.sql<
    { gid: string }[]
  >`select gid from pg_prepared_xacts where database = ${name}`
  if (pending.length > 0) {
    // A prepared transaction can be finished only from its own database.
    await using inside = connection(serverUrl(server, name))
    for (const { gid } of pending) {
      await inside.sql.unsafe(`rollback prepared '${gid.replaceAll("'", "''")}'`).catch((error) => {
        // 42704: somebody else finished it just now.
        if (error.code !== '42704') throw error
      })
    }
  }
  await admin.sql.unsafe(`drop database if exists ${name} with (force)`)
}

async function terminateSessions(sql: postgres.Sql, database: string): Promise<void> {
  await sql`
    select pg_terminate_backend(pid, 10000) from pg_stat_activity
     where datname = ${database} and pid <> pg_backend_pid()`
}
