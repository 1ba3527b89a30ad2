/**
 * Producers count up and deliver each number until they know that it took effect, the same one again after every
 * doubt, crash of their coordinator included. Each must take effect once, in the order of its stream.
 */
import { type Name, names } from '../servers.ts'
import type { Lane, Workload } from './workload.ts'

export const monotonic: Workload = {
  name: 'monotonic',
  lanes: 2,
  tables: 'create table increment (seq bigserial primary key, producer text not null, sequence int not null)',
  async step(lane) {
    const producer = `producer-${lane.slot}-${lane.number}`
    const sequence = (lane.memory.get('next') as number | undefined) ?? lane.resumed[producer] ?? 0
    lane.memory.set('next', sequence)
    if (await deliver(lane, producer, sequence)) lane.memory.set('next', sequence + 1)
  },
  async finalReads(connect) {
    const value: Record<string, number[]> = {}
    for (const name of names) {
      for (const { producer, sequence } of await connect(name)<{ producer: string; sequence: number }[]>`
        select producer, sequence from increment order by seq`) {
        value[producer] = [...(value[producer] ?? []), sequence]
      }
    }
    return [{ f: 'effects', value }]
  },
}

/** The effects of a producer are in one database, so that they have an order; most reach another one too. */
async function deliver(lane: Lane, producer: string, sequence: number): Promise<boolean> {
  const at = (lane.slot + lane.number) % names.length
  const home = names[at] as Name
  // By the number, so that a repetition does the same.
  const other = sequence % 3 === 0 ? undefined : names[(at + (sequence % 3)) % names.length]
  const databases = other === undefined ? [home] : [home, other]
  const delivered = await lane.attempt(
    [{ f: 'inc', value: { producer, sequence } }],
    databases,
    async (attempt) => {
      const done = await lane.once.process(
        home,
        { producer, sequence },
        async (trx, tx) => {
          await trx.insertInto('increment').values({ producer, sequence }).execute()
          for (const name of databases) await tx[name].insertInto('effect').values({ attempt }).execute()
        },
        { finish: lane.below(2) === 0 ? 'background' : 'await' },
      )
      return {
        done: done.status === 'processed' ? { id: done.id, finished: done.finished } : { effective: false },
        result: true,
      }
    },
  )
  return delivered ?? false
}
