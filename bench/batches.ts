/**
 * What the ledger costs: `processBatch` against the same inserts in a transaction without it. Both through
 * Kysely on the same driver, a connection each, one transaction after the other.
 */
import type { Kysely } from 'kysely'
import { open } from '../src/connection/target.ts'
import { pgonce } from '../src/index.ts'
import { compare, type Figure, figureOf } from './harness.ts'
import { deliveries, type Tables } from './rows.ts'
import { connect, type Servers } from './servers.ts'

const cases = [
  { size: 500, target: 0.95, operations: 3, rounds: 60 },
  { size: 50, target: 0.9, operations: 20, rounds: 60 },
  { size: 1, target: 0.85, operations: 100, rounds: 60 },
]

export async function batches(servers: Servers, quick: boolean): Promise<Figure[]> {
  const sql = connect(servers.a, 1)
  const once = pgonce<{ a: Tables }>({ databases: { a: sql } })
  const opened = open<Tables>(sql)
  const db: Kysely<Tables> = opened.db
  const figures: Figure[] = []
  try {
    for (const { size, target, operations, rounds } of cases) {
      const producer = `batches of ${size}`
      let next = 0
      const ours = async (times: number) => {
        for (; times > 0; times -= 1) {
          const sequences = Array.from({ length: size }, (_, index) => next + index)
          next += size
          await once.processBatch('a', { producer, sequences }, async (trx, fresh) => {
            await trx.insertInto('delivery').values(deliveries(fresh.length)).execute()
          })
        }
      }
      const theirs = async (times: number) => {
        for (; times > 0; times -= 1) {
          await db.transaction().execute(async (trx) => {
            await trx.insertInto('delivery').values(deliveries(size)).execute()
          })
        }
      }
      const found = await compare(ours, theirs, {
        operations,
        rounds: quick ? rounds / 4 : rounds,
      })
      const note = `${found.ours.toFixed(2)} ms a batch with the ledger, ${found.theirs.toFixed(2)} ms without`
      figures.push(figureOf(`process_batch_${size}`, found, { atLeast: target }, note))
    }
  } finally {
    await Promise.all([once.close(), opened.close()])
    await sql.end()
  }
  return figures
}
