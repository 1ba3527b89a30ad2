/**
 * Money moves between accounts in three databases. Whatever happens, none is made or lost, and no account is
 * overdrawn.
 */
import { sql } from 'kysely'
import type { Balances, Transfer } from '../history.ts'
import { type Name, names } from '../servers.ts'
import type { Lane, Workload } from './workload.ts'

const accounts = Array.from({ length: 6 }, (_, index) => `account-${index}`)
const initialBalance = 100

/** What every account holds at first. */
export const initial: Balances = Object.fromEntries(
  names.map((name) => [name, Object.fromEntries(accounts.map((account) => [account, initialBalance]))]),
)

export const bank: Workload = {
  name: 'bank',
  lanes: 2,
  tables: `create table transfer (id int not null);
    create table account (id text primary key, balance int not null check (balance >= 0));
    insert into account select 'account-' || n, ${initialBalance} from generate_series(0, ${accounts.length - 1}) n`,
  async step(lane) {
    if (lane.below(8) === 0) await read(lane)
    else await transfer(lane)
  },
  async finalReads(connect) {
    const balances: Record<string, Record<string, number>> = {}
    const ledger: Record<string, number[]> = {}
    for (const name of names) {
      const rows = await connect(name)<{ id: string; balance: number }[]>`select id, balance from account`
      balances[name] = Object.fromEntries(rows.map(({ id, balance }) => [id, balance]))
      const transfers = await connect(name)<{ id: number }[]>`select id from transfer`
      ledger[name] = transfers.map(({ id }) => id)
    }
    return [
      { f: 'final-read', value: balances },
      { f: 'ledger', value: ledger },
    ]
  },
}

async function transfer(lane: Lane): Promise<void> {
  const place = () => ({ database: lane.pick(names), account: lane.pick(accounts) })
  const from = place()
  let to = place()
  while (to.database === from.database && to.account === from.account) to = place()
  const value = { from, to, amount: 1 + lane.below(5), id: lane.unique() } satisfies Transfer
  const databases = [...new Set([from.database, to.database])]
  const alone = databases.length === 1
  await lane.attempt([{ f: 'transfer', value }], databases, async (attempt) => {
    const { id, finished } = await lane.once.transaction(
      async (tx) => {
        // Now and then the other way round: the home is mostly the database that was used first.
        const moves = [
          { place: from, amount: -value.amount },
          { place: to, amount: value.amount },
        ]
        if (lane.below(2) === 0) moves.reverse()
        for (const { place, amount } of moves) {
          await tx[place.database]
            .updateTable('account')
            .set({ balance: sql<number>`balance + ${amount}` })
            .where('id', '=', place.account)
            .execute()
        }
        for (const name of databases) {
          await tx[name].insertInto('transfer').values({ id: value.id }).execute()
          await tx[name].insertInto('effect').values({ attempt }).execute()
        }
      },
      {
        home: lane.pick(names),
        finish: lane.below(3) === 0 ? 'background' : 'await',
        record: alone && lane.below(2) === 0,
      },
    )
    return { done: { id, finished }, result: undefined }
  })
}

async function read(lane: Lane): Promise<void> {
  await lane.attempt([{ f: 'read', value: null }], [], async () => {
    const { result } = await lane.once.transaction(async (tx) => {
      const found: Record<string, Record<string, number>> = {}
      for (const name of names as readonly Name[]) {
        const rows = await tx[name].selectFrom('account').selectAll().execute()
        found[name] = Object.fromEntries(rows.map(({ id, balance }) => [id, balance]))
      }
      return found as Balances
    })
    return { done: { parts: [{ value: result }] }, result: undefined }
  })
}
