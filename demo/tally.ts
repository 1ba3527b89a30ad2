/** The effects: how often each key, an airport, was departed from and arrived at. */
import type { ColumnType, Transaction } from 'kysely'
import { type DatabaseName, databaseNames, type Message } from './plan.ts'

export interface Tally {
  readonly key: string
  departures: number
  arrivals: number
  /** The sum of the messages' numbers: tells a lost message and a doubled one from two that are right. */
  checksum: number
}

export interface TallyDatabase {
  tally: {
    key: string
    departures: number
    arrivals: number
    checksum: ColumnType<string, number, number>
  }
}

export type DemoDatabases = Record<DatabaseName, TallyDatabase>

export const createTally = `
  create table tally (
    key text collate "C" primary key,
    departures integer not null,
    arrivals integer not null,
    checksum bigint not null
  )`

/** Counts messages by database and key. */
export function count(messages: Iterable<Message>): Map<DatabaseName, Map<string, Tally>> {
  const counts = new Map<DatabaseName, Map<string, Tally>>(databaseNames.map((name) => [name, new Map()]))
  const at = (database: DatabaseName, key: string): Tally => {
    const tallies = counts.get(database) as Map<string, Tally>
    const tally = tallies.get(key) ?? { key, departures: 0, arrivals: 0, checksum: 0 }
    tallies.set(key, tally)
    return tally
  }
  for (const { number, departure, arrival } of messages) {
    const from = at(departure.database, departure.key)
    from.departures += 1
    from.checksum += number
    const to = at(arrival.database, arrival.key)
    to.arrivals += 1
    to.checksum += number
  }
  return counts
}

/** Adds counts to one database. Sorted, so that two workers lock rows in the same order. */
export async function add(
  trx: Transaction<TallyDatabase>,
  counts: ReadonlyMap<string, Tally>,
): Promise<void> {
  if (counts.size === 0) return
  const rows = [...counts.values()].sort((one, other) => (one.key < other.key ? -1 : 1))
  await trx
    .insertInto('tally')
    .values(rows)
    .onConflict((conflict) =>
      conflict.column('key').doUpdateSet((eb) => ({
        departures: eb('tally.departures', '+', eb.ref('excluded.departures')),
        arrivals: eb('tally.arrivals', '+', eb.ref('excluded.arrivals')),
        checksum: eb('tally.checksum', '+', eb.ref('excluded.checksum')),
      })),
    )
    .execute()
}
