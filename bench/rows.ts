/** The work: rows of five columns. Every row ever made has an id of its own, ascending over both contenders. */
import type postgres from 'postgres'

interface Line {
  readonly sku: string
  readonly quantity: number
}

export interface Delivery {
  readonly id: string
  readonly shop: string
  readonly placed_at: string
  readonly amount: string
  readonly lines: readonly Line[]
}

/** The tables of a bench database. */
export interface Tables {
  readonly delivery: Delivery
  readonly inbox: { readonly source: string; readonly id: string }
}

/** For those who write SQL themselves. */
export const insert =
  'insert into "delivery" ("id", "shop", "placed_at", "amount", "lines") values ($1, $2, $3, $4, $5)'

/** Many rows from their ids alone, as an array in text: the less an effect costs, the more the claims show. */
export const insertMany = `
  insert into delivery (id, shop, placed_at, amount, lines)
  select id, 'shop-1', now(), 1, '[]' from unnest($1::text::bigint[]) id`

export const manyIds = (count: number) =>
  `{${deliveries(count)
    .map(({ id }) => id)
    .join()}}`

/** The parameters of `insert`. postgres.js takes any value, and wants to be told so. */
export function valuesOf(row: Delivery): postgres.ParameterOrJSON<never>[] {
  return Object.values(row)
}

/** Before all ids of this process, and after those of processes before it. */
const first = Date.now() * 1000
let last = 0

export function delivery(): Delivery {
  last += 1
  return {
    id: String(first + last),
    shop: `shop-${last % 97}`,
    placed_at: new Date(1_700_000_000_000 + last * 1000).toISOString(),
    amount: ((last % 9973) / 100).toFixed(2),
    lines: [{ sku: `sku-${last % 1009}`, quantity: 1 + (last % 3) }],
  }
}

export function deliveries(count: number): Delivery[] {
  return Array.from({ length: count }, delivery)
}
