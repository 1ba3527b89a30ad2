/**
 * Two servers for all measurements, durable as in production (fsync on), and without what would run in the
 * background and disturb. One has the databases `a` and `c`, the other `b`.
 */
import postgres from 'postgres'
import { makeDatabase as make } from '../proof/rig/servers.ts'
import { type EmbeddedServer, type ServerSettings, startServer } from '../src/embedded/server.ts'

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

/** Where both contenders do their work; what those by hand need for it. */
export const tables = `
  create table delivery (
    id bigint primary key,
    shop text not null,
    placed_at timestamptz not null,
    amount numeric(10, 2) not null,
    lines jsonb not null
  );
  create table inbox (
    source text,
    id text,
    received_at timestamptz not null default now(),
    primary key (source, id)
  );
  create table textbook_log (transaction_id uuid primary key, decided_at timestamptz not null default now());`

export interface Servers extends AsyncDisposable {
  readonly a: string
  readonly b: string
  readonly c: string
  /** The version of Postgres, as `18.4`. */
  readonly version: string
}

export async function startServers(): Promise<Servers> {
  await using starting = new AsyncDisposableStack()
  const [first, second] = [starting.use(await startDurable()), starting.use(await startDurable())]
  const a = await makeDatabase(first, 'bench')
  const b = await makeDatabase(second, 'bench')
  const c = await makeDatabase(first, 'bench_c')
  const [row] = await withConnection(a, (sql) => sql`show server_version`)
  const started = starting.move()
  return {
    ...{ a, b, c },
    version: String(row?.server_version),
    [Symbol.asyncDispose]: () => started.disposeAsync(),
  }
}

/** A server as all measurements have it. */
export function startDurable(more: ServerSettings = {}): Promise<EmbeddedServer> {
  return startServer({ settings: { ...settings, ...more } })
}

/** A database with schema once and the tables. @returns its URL */
export function makeDatabase(server: EmbeddedServer, name: string): Promise<string> {
  return make(server, name, tables)
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
