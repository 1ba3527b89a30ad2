/**
 * Transactions append numbers to lists and read lists, each list in one of three databases. What they read tells
 * in which order they took effect, and whether that order can be.
 */
import { sql } from 'kysely'
import type { MicroOperation } from '../history.ts'
import { type Name, names } from '../servers.ts'
import type { Workload } from './workload.ts'

/** Lists in use at a time, and for how long (ms): a list that is never left grows, and what reads it gets slow. */
const keys = 9
const period = 8_000

export const databaseOf = (key: number): Name => names[key % names.length] as Name

export const listAppend: Workload = {
  name: 'list-append',
  lanes: 2,
  tables: 'create table list (key int primary key, items int[] not null)',
  async step(lane) {
    const first = Math.floor(lane.elapsed() / period) * keys
    const operations: MicroOperation[] = Array.from({ length: 1 + lane.below(4) }, () => {
      const key = first + lane.below(keys)
      return lane.below(2) === 0 ? ['append', key, lane.unique()] : ['r', key, null]
    })
    const appended = operations.filter(([kind]) => kind === 'append')
    const databases = [...new Set(appended.map(([, key]) => databaseOf(key)))]
    await lane.attempt([{ f: 'txn', value: operations }], databases, async (attempt) => {
      const { result, id, finished } = await lane.once.transaction(
        async (tx) => {
          const found: MicroOperation[] = []
          for (const operation of operations) {
            const [kind, key, value] = operation
            const trx = tx[databaseOf(key)]
            if (kind === 'append') {
              await sql`insert into list values (${key}, array[${value}]::int[])
                        on conflict (key) do update set items = list.items || excluded.items`.execute(trx)
              found.push(operation)
            } else {
              const row = await trx
                .selectFrom('list')
                .select('items')
                .where('key', '=', key)
                .executeTakeFirst()
              found.push(['r', key, row?.items ?? null])
            }
          }
          for (const name of databases) await tx[name].insertInto('effect').values({ attempt }).execute()
          return found
        },
        {
          isolationLevel: 'repeatable read',
          finish: lane.below(3) === 0 ? 'background' : 'await',
          record: lane.below(2) === 0,
          retries: 2,
        },
      )
      return { done: { id, finished, parts: [{ value: result }] }, result: undefined }
    })
  },
  async finalReads(connect) {
    const value: Record<string, number[]> = {}
    for (const name of names) {
      for (const { key, items } of await connect(name)<{ key: number; items: string }[]>`
        select key, array_to_json(items)::text as items from list`) {
        value[key] = JSON.parse(items)
      }
    }
    return [{ f: 'final-read', value }]
  },
}
