/** Bytes on disk that the ledgers need for a message. */
import { randomBytes, randomUUID } from 'node:crypto'
import type postgres from 'postgres'
import { pgonce } from '../src/index.ts'
import type { Figure } from './harness.ts'
import { connect, type Servers } from './servers.ts'

export async function ledgerSizes(servers: Servers, quick: boolean): Promise<Figure[]> {
  const sql = connect(servers.a, 1)
  try {
    return [
      ...(await bySequence(sql, quick ? 100_000 : 1_000_000)),
      ...(await byKey(sql, quick ? 50_000 : 200_000)),
    ]
  } finally {
    await sql.end()
  }
}

/** One producer, all in order: the ledger is one row, whatever their number. */
async function bySequence(sql: postgres.Sql, messages: number): Promise<Figure[]> {
  await using once = pgonce<{ a: object }>({ databases: { a: sql } })
  const size = 1000
  const producer = 'in order'
  await sql`truncate once.producer`
  for (let next = 0; next < messages; next += size) {
    const sequences = Array.from({ length: size }, (_, index) => next + index)
    const { claimed } = await once.processBatch('a', { producer, sequences }, async () => {})
    if (claimed.length !== size) throw new Error(`Expected ${size} new messages, got ${claimed.length}`)
  }
  await sql`vacuum once.producer`
  // A row and its index entry have a pointer of 4 bytes each on their page; an entry a header of 8, and is aligned.
  const [row] = await sql<{ bytes: number; relation: number }[]>`
    select 4 + pg_column_size(p) + 4 + (8 + pg_column_size(p.producer) + 7) / 8 * 8 as bytes,
           pg_total_relation_size('once.producer')::int as relation
      from once.producer p where p.producer = ${producer}`
  return [
    {
      key: 'sequence_ledger_bytes',
      value: row?.bytes ?? Number.NaN,
      target: { atMost: 1000 },
      note: `row and index entry of a producer after ${messages} messages`,
    },
    {
      key: 'sequence_ledger_relation_bytes',
      value: row?.relation ?? Number.NaN,
      note: 'the files, with their whole pages and maps, for all producers',
    },
  ]
}

async function byKey(sql: postgres.Sql, keys: number): Promise<Figure[]> {
  const timeless = await bytesPerKey(sql, keys, 'random', () => randomUUID())
  const start = Date.now()
  let made = 0
  await sql`select once.set_key_times('timed', true)`
  const timed = await bytesPerKey(sql, keys, 'timed', () => uuidv7(start + made++))
  return [
    {
      key: 'key_ledger_bytes_per_key',
      value: timeless,
      target: { atMost: 96 },
      note: `${keys} random UUIDs: the table with its index and maps`,
    },
    { key: 'key_ledger_bytes_per_key_uuidv7', value: timed, note: `${keys} UUIDs with a time` },
  ]
}

async function bytesPerKey(
  sql: postgres.Sql,
  keys: number,
  scope: string,
  key: () => string,
): Promise<number> {
  await using once = pgonce<{ a: object }>({ databases: { a: sql } })
  const size = 500
  await sql`truncate once.message`
  const before = await ledgerBytes(sql)
  for (let left = keys; left > 0; left -= size) {
    await once.processBatch('a', { scope, messages: Array.from({ length: size }, key) }, async () => {})
  }
  await sql`vacuum once.message`
  const [row] = await sql<{ n: number }[]>`select count(*)::int as n from once.message`
  if (row?.n !== keys) throw new Error(`Expected ${keys} keys in the ledger, found ${row?.n}`)
  return ((await ledgerBytes(sql)) - before) / keys
}

async function ledgerBytes(sql: postgres.Sql): Promise<number> {
  const [row] = await sql<{ bytes: number }[]>`
    select pg_total_relation_size('once.message')::float8 as bytes`
  return row?.bytes ?? 0
}

/** @see RFC 9562, section 5.7 */
function uuidv7(milliseconds: number): string {
  const bytes = randomBytes(16)
  bytes.writeUIntBE(milliseconds, 0, 6)
  bytes.writeUInt8(0x70 | (bytes.readUInt8(6) & 0x0f), 6)
  bytes.writeUInt8(0x80 | (bytes.readUInt8(8) & 0x3f), 8)
  const hex = bytes.toString('hex')
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}
