/**
 * Consumers of messages: ours, and what people write by hand on postgres.js. Each gives a message one row in
 * `delivery`, once.
 */
import { CompiledQuery, type Transaction } from 'kysely'
import { type Processed, pgonce } from '../src/index.ts'
import { type Delivery, delivery, insert, insertMany, manyIds, type Tables, valuesOf } from './rows.ts'
import { connect } from './servers.ts'

export interface Keyed {
  readonly key: string
  readonly occurredAt: Date
}

export type Message =
  | (Keyed & { readonly scope: string })
  | { readonly producer: string; readonly sequence: number }

export interface Consumer extends AsyncDisposable {
  /** Whether the message was new and took effect. */
  process(message: Message): Promise<boolean>
}

export interface BatchConsumer extends Consumer {
  /** Messages of a scope in one transaction: how many were new. */
  processBatch(scope: string, messages: readonly Keyed[]): Promise<number>
}

/** @param width how many messages at once */
export type OpenConsumer = (url: string, width: number) => Consumer

const client = (url: string, width: number) =>
  pgonce<{ a: Tables }>({ databases: { a: url }, maxConnections: width })

const isNew = ({ status }: Processed<unknown>) => status === 'processed'

const deliver = (trx: Transaction<Tables>) =>
  trx.executeQuery(CompiledQuery.raw(insert, valuesOf(delivery())))

/** In a text only the context tells a type, and a list would be an array. */
const textOf = ({ lines, ...others }: Delivery) => [...Object.values(others), JSON.stringify(lines)]

export function openOurs(url: string, width: number): BatchConsumer {
  const once = client(url, width)
  return {
    process: async (message) => isNew(await once.process('a', message, deliver)),
    async processBatch(scope, messages) {
      const { claimed } = await once.processBatch('a', { scope, messages }, (trx, fresh) =>
        trx.executeQuery(CompiledQuery.raw(insertMany, [manyIds(fresh.length)])),
      )
      return claimed.length
    },
    [Symbol.asyncDispose]: () => once.close(),
  }
}

/** Ours where the effect is known beforehand: queries instead of a handler. */
export function openOurOneTrip(url: string, width: number): Consumer {
  const once = client(url, width)
  return {
    process: async (message) =>
      isNew(await once.process('a', message, [CompiledQuery.raw(insert, textOf(delivery()))])),
    [Symbol.asyncDispose]: () => once.close(),
  }
}

/** The same in one statement of SQL, without our client. */
export function openOurSql(url: string, width: number): Consumer {
  return openStatement(url, width, (message) =>
    'key' in message
      ? [
          `with claim as (select status from once.claim_key($6, $7, $8)) ${insertFromClaim} where status = 'claimed'`,
          [message.scope, message.key, message.occurredAt],
        ]
      : [
          `with claim as (select status from once.claim($6, $7)) ${insertFromClaim} where status = 'claimed'`,
          [message.producer, message.sequence],
        ],
  )
}

/** By hand: an inbox, and a transaction around it and the effect. */
export function openInbox(url: string, width: number): BatchConsumer {
  const sql = connect(url, width)
  return {
    process: (message) =>
      sql.begin(async (trx) => {
        const [source, id] = identityOf(message)
        const { count } =
          await trx`insert into inbox (source, id) values (${source}, ${id}) on conflict do nothing`
        if (count === 1) await trx.unsafe(insert, valuesOf(delivery()), { prepare: true })
        return count === 1
      }),
    processBatch: (scope, messages) =>
      sql.begin(async (trx) => {
        const keys = messages.map(({ key }) => key)
        const { length } = await trx`
          insert into inbox (source, id) select ${scope}, unnest(${keys}::text[]) on conflict do nothing returning id`
        if (length > 0) await trx.unsafe(insertMany, [manyIds(length)], { prepare: true })
        return length
      }),
    [Symbol.asyncDispose]: () => sql.end(),
  }
}

/** By hand, in one statement. */
export function openInboxStatement(url: string, width: number): Consumer {
  return openStatement(url, width, (message) => [
    `with claim as (insert into inbox (source, id) values ($6, $7) on conflict do nothing returning id) ${insertFromClaim}`,
    identityOf(message),
  ])
}

const insertFromClaim = `
  insert into delivery (id, shop, placed_at, amount, lines) select $1, $2, $3, $4, $5 from claim`

/** @param claim a statement that makes the row its first five parameters say, if the message is new, and the others */
function openStatement(
  url: string,
  width: number,
  claim: (message: Message) => readonly [text: string, parameters: readonly (string | number | Date)[]],
): Consumer {
  const sql = connect(url, width)
  return {
    async process(message) {
      const [text, parameters] = claim(message)
      const { count } = await sql.unsafe(text, [...valuesOf(delivery()), ...parameters], { prepare: true })
      return count === 1
    },
    [Symbol.asyncDispose]: () => sql.end(),
  }
}

/** What a message is in the inbox. */
function identityOf(message: Message): readonly [source: string, id: string] {
  return 'key' in message ? [message.scope, message.key] : [message.producer, String(message.sequence)]
}
