/** What must not compile. This file is only checked (`npm run check:types`), never run. */
import type { Kysely } from 'kysely'
import postgres from 'postgres'
import {
  type Jsonified,
  type Outcome,
  type Processed,
  pgonce,
  type TransactionOptions,
  type Transactions,
} from '../../src/index.ts'

interface OrdersDB {
  orders: { id: number; note: string }
}
interface BillingDB {
  invoices: { id: number; amount: number }
}
interface Databases {
  orders: OrdersDB
  billing: BillingDB
}

declare const kysely: Kysely<OrdersDB>
declare const otherKysely: Kysely<BillingDB>

const once = pgonce<Databases>({ databases: { orders: kysely, billing: postgres() } })

export async function databases(): Promise<void> {
  pgonce<Databases>({
    databases: { orders: 'postgres://h/orders', billing: new URL('postgres://h/billing') },
  })
  // @ts-expect-error: a database is missing
  pgonce<Databases>({ databases: { orders: 'postgres://h/orders' } })
  const both = { orders: kysely, billing: otherKysely } as const
  // @ts-expect-error: a database too many
  pgonce<Databases>({ databases: { ...both, other: 'postgres://h/x' } })
  // @ts-expect-error: the Kysely instance is of another database
  pgonce<Databases>({ databases: { orders: otherKysely, billing: 'postgres://h/billing' } })
  // @ts-expect-error: no database
  pgonce<Databases>({ databases: { orders: 5, billing: 'postgres://h/billing' } })
  const signal = AbortSignal.abort()
  // @ts-expect-error: a signal belongs to one transaction
  pgonce<Databases>({ databases: both, transaction: { signal } })
}

export async function handlers(): Promise<void> {
  const { result } = await once.transaction(async ({ orders, billing }) => {
    await orders.insertInto('orders').values({ id: 1, note: '' }).execute()
    // @ts-expect-error: that table is in the other database
    await billing.insertInto('orders').values({ id: 1, note: '' }).execute()
    // @ts-expect-error: a number
    await billing.insertInto('invoices').values({ id: 1, amount: '1' }).execute()
    return 'text' as const
  })
  result satisfies 'text'

  await once.process('orders', { producer: 'p', sequence: 1n }, async (trx, { billing }) => {
    await trx.selectFrom('orders').selectAll().execute()
    await billing.selectFrom('invoices').selectAll().execute()
    // @ts-expect-error: that table is in the other database
    await trx.selectFrom('invoices').selectAll().execute()
  })
  // @ts-expect-error: no database of this name
  await once.process('nowhere', { producer: 'p', sequence: 1n }, async () => 1)
  // @ts-expect-error: a handler is asynchronous
  await once.transaction(() => 1)
  // @ts-expect-error: the handles are what the client says
  await once.transaction(async (_: Transactions<{ other: OrdersDB }>) => 1)
}

export async function messages(): Promise<void> {
  const handler = async () => 1
  await once.process('orders', { producer: 'p', sequence: 1 }, handler)
  await once.process('orders', { scope: 's', key: 'k', occurredAt: new Date(), keepResult: true }, handler)
  // @ts-expect-error: neither sequence nor key
  await once.process('orders', { producer: 'p' }, handler)
  // @ts-expect-error: a key without its scope
  await once.process('orders', { key: 'k' }, handler)
  // @ts-expect-error: a string is no sequence
  await once.process('orders', { producer: 'p', sequence: '1' }, handler)
  // @ts-expect-error: results are kept by key
  await once.process('orders', { producer: 'p', sequence: 1, keepResult: true }, handler)
  // @ts-expect-error: of both kinds
  await once.process('orders', { producer: 'p', sequence: 1, scope: 's', key: 'k' }, handler)
  // @ts-expect-error: only sequences can be strict
  await once.process('orders', { scope: 's', key: 'k', strict: true }, handler)
  await once.process('orders', { scope: 's', key: 'k', payload: 'x' }, handler)
  await once.process('orders', { scope: 's', key: 'k', payloadHash: new Uint8Array(32) }, handler)
  const payloadHash = new Uint8Array(32)
  // @ts-expect-error: the payload or its hash
  await once.process('orders', { scope: 's', key: 'k', payload: 'x', payloadHash }, handler)
  // @ts-expect-error: a time is a Date
  await once.process('orders', { scope: 's', key: 'k', occurredAt: '2026-01-01' }, handler)
  // @ts-expect-error: the home of a process is the database of its claim
  await once.process('orders', { producer: 'p', sequence: 1 }, handler, { home: 'billing' })

  await once.processBatch('orders', { producer: 'p', sequences: [1, 2n] }, async (_, fresh) => {
    fresh satisfies readonly bigint[]
    // @ts-expect-error: what is new is for reading
    fresh.push(1n)
  })
  await once.processBatch('orders', { scope: 's', messages: ['k'] }, async (_, fresh) => {
    fresh satisfies readonly string[]
  })
  await once.processBatch('orders', { scope: 's', messages: ['k', { key: 'l', payload: 'x' }] }, handler)
  const keepResult = { key: 'k', keepResult: true }
  // @ts-expect-error: results of a batch are not kept
  await once.processBatch('orders', { scope: 's', messages: [keepResult] }, handler)
  // @ts-expect-error: a batch of one kind
  await once.processBatch('orders', { producer: 'p', messages: ['k'] }, async () => 1)
}

export async function answers(): Promise<void> {
  const answer: Processed<number> = await once.process(
    'orders',
    { producer: 'p', sequence: 1 },
    async () => 1,
  )
  // @ts-expect-error: an expired message has no result
  void answer.result
  if (answer.status === 'processed') answer.result satisfies number
  if (answer.status === 'duplicate') answer.result satisfies number | undefined
  // @ts-expect-error: a duplicate's result may not have been kept
  if (answer.status === 'duplicate') answer.result satisfies number

  const kept = await once.process('orders', { scope: 's', key: 'k', keepResult: true }, async () => ({
    at: new Date(),
    list: [new Date(), null],
    maybe: undefined as number | undefined,
    run: () => 1,
  }))
  if (kept.status === 'processed') kept.result.at satisfies Date
  if (kept.status === 'duplicate' && kept.result !== undefined) {
    kept.result.at satisfies string
    kept.result.list satisfies (string | null)[]
    kept.result.maybe satisfies number | undefined
    // @ts-expect-error: a Date is a string in JSON
    kept.result.at satisfies Date
    // @ts-expect-error: JSON has no functions
    void kept.result.run
  }
  const nothing: Jsonified<undefined> = null
  nothing satisfies Jsonified<void>

  const { id, finished } = await once.transaction(async () => 1)
  finished satisfies boolean
  // @ts-expect-error: one database alone leaves no id
  await once.outcome(id)
  if (id !== null) (await once.outcome(id)) satisfies Outcome

  // @ts-expect-error: await or background
  await once.transaction(async () => 1, { finish: 'later' })
  await once.transaction(async () => 1, { isolationLevel: 'repeatable read' })
  // @ts-expect-error: Postgres has no such level
  await once.transaction(async () => 1, { isolationLevel: 'snapshot' })
  const options: TransactionOptions = { retries: 1 }
  // @ts-expect-error: options are for reading
  options.retries = 2
}

export function kept(): void {
  const maybe: Jsonified<number | undefined> = null
  maybe satisfies number | null
  const list: Jsonified<(Date | undefined)[]> = ['2026-01-01', null]
  list satisfies (string | null)[]
  const whatever: Jsonified<unknown> = Symbol()
  void whatever
  // @ts-expect-error: JSON has no bigint
  const big: Jsonified<bigint> = 1n
  void big
}
