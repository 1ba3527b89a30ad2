/** Servers, databases and connections for what proves, measures and shows: chaos, bench, demo and tests. */
import postgres from 'postgres'
import { migrate } from '../../src/database/migrate.ts'
import { type EmbeddedServer, type StartServerOptions, startServer } from '../../src/embedded/server.ts'

export interface Servers extends AsyncDisposable {
  readonly servers: readonly EmbeddedServer[]
}

/** Starts servers at the same time. If one does not start, the others are stopped. */
export async function startServers(options: readonly StartServerOptions[]): Promise<Servers> {
  await using started = new AsyncDisposableStack()
  const starting = options.map(async (one) => started.use(await startServer(one)))
  await Promise.allSettled(starting)
  const servers = await Promise.all(starting)
  const all = started.move()
  return { servers, [Symbol.asyncDispose]: () => all.disposeAsync() }
}

/** A new database with schema once, and what statements make in it before. @returns its URL */
export async function makeDatabase(server: EmbeddedServer, name: string, statements = ''): Promise<string> {
  const url = server.url(name)
  await using admin = connection(server.url())
  await admin.sql.unsafe(`create database ${name}`)
  await using first = connection(url)
  await first.sql.unsafe(statements)
  await migrate(url)
  return url
}

/** One connection for one purpose. */
export function connection(url: string, options: postgres.Options<Record<string, never>> = {}) {
  const sql = postgres(url, { max: 1, onnotice: () => {}, ...options })
  return { sql, [Symbol.asyncDispose]: () => sql.end({ timeout: 5 }) }
}
