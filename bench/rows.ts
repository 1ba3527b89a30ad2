/** The work: rows of five columns. Every row ever made has an id of its own, ascending over both contenders. */

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
}

/** For those who write SQL themselves. */
export const insert =
  'insert into "delivery" ("id", "shop", "placed_at", "amount", "lines") values ($1, $2, $3, $4, $5)'

let last = 0

export function delivery(): Delivery {
  last += 1
  return {
    id: String(last),
    shop: `shop-${last % 97}`,
    placed_at: new Date(1_700_000_000_000 + last * 1000).toISOString(),
    amount: ((last % 9973) / 100).toFixed(2),
    lines: [{ sku: `sku-${last % 1009}`, quantity: 1 + (last % 3) }],
  }
}

export function deliveries(count: number): Delivery[] {
  return Array.from({ length: count }, delivery)
}
