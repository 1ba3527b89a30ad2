/**
 * Two servers of two databases, `a` and `b`, for all measurements: durable as in production (fsync on), and
 * without what would run in the background and disturb.
 */
import postgres from 'postgres'
import { migrate } from '../src/database/migrate.ts'
import { type EmbeddedServer, type ServerSettings, startServer } from '../src/embedded.ts'

const settings: ServerSettings = {
  fsync: 'on',
  synchronous_commit: 'on',
  // No vacuum, no checkpoint and no walwriter in the middle of a measurement; same for ours and theirs.
  autovacuum: 'off',
  checkpoint_timeout: '1h',
  max_wal_size: '8GB',
  wal_writer_delay: '10s',
  shared_buffers: '256MB',
}

/** Where both contenders do their work. */
const tables = `
  create table delivery (
    id bigint primary key,
    shop text not null,
    placed_at timestamptz not null,
    amount numeric(10, 2) not null,
    lines jsonb not null
  );
  create table textbook_log (transaction_id uuid primary key, decided_at timestamptz not null default now());`

export interface Servers extends AsyncDisposable {
  readonly a: string
  readonly b: string
  /** The version of Postgres, as `18.4`. */
  readonly version: string
}

export async function startServers(): Promise<Servers> {
  const servers: EmbeddedServer[] = []
  try {
    for (let started = 0; started < 2; started += 1) servers.push(await startServer({ settings }))
    const [a = '', b = ''] = servers.map((server) => server.url('bench'))
    for (const server of servers) {
      await withConnection(server.url(), (sql) => sql.unsafe('create database bench'))
      await migrate(server.url('bench'))
      await withConnection(server.url('bench'), (sql) => sql.unsafe(tables))
    }
    const version = await withConnection(
      a,
      async (sql) => (await sql`show server_version`)[0]?.server_version,
    )
    return {
      a,
      b,
      version: String(version),
      async [Symbol.asyncDispose]() {
        for (const server of servers) await server[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    for (const server of servers) await server[Symbol.asyncDispose]()
    throw error
  }
}

/** One connection for one task. */
export async function withConnection<T>(url: string, task: (sql: postgres.Sql) => Promise<T>): Promise<T> {
  const sql = connect(url, 1)
  try {
    return await task(sql)
  } finally {
    await sql.end()
  }
}

/** A pool as both contenders use it. @param connection settings of each session */
export function connect(url: string, max: number, connection: Record<string, string> = {}): postgres.Sql {
  return postgres(url, { max, onnotice: () => {}, connection })
}
