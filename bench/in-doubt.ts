/**
 * What `once.in_doubt` costs when it matters: 1,000 prepared transactions with 10,000 locks. Against the bare
 * query that answers one of its questions, which prepared transaction locks what, and nothing else.
 */
import { randomUUID } from 'node:crypto'
import type postgres from 'postgres'
import { migrate } from '../src/database/migrate.ts'
import { startServer } from '../src/embedded/server.ts'
import { compare, type Figure } from './harness.ts'
import { connect, type Servers } from './servers.ts'

const transactions = 1000
const tables = 9

/** Every lock with its prepared transaction, which is found through the lock on its own transaction id. */
const join = `
  select count(l.mode)
    from pg_prepared_xacts p
    join pg_locks t on t.transactionid = p.transaction
    join pg_locks l on l.virtualtransaction = t.virtualtransaction`

/** What the documentation of Postgres gives. Before a restart of the server it pairs no lock with anything. */
const documentedJoin = `
  select count(l.mode), count(p.gid)
    from pg_locks l left join pg_prepared_xacts p on l.virtualtransaction = '-1/' || p.transaction`

/** The least that joins the two: a row a transaction, and none of the relations. */
const narrowJoin = `select count(l.mode) from pg_prepared_xacts p join pg_locks l on l.transactionid = p.transaction`

export async function inDoubt(_: Servers, quick: boolean): Promise<Figure[]> {
  await using server = await startServer({
    settings: {
      max_prepared_transactions: transactions,
      max_locks_per_transaction: 256,
      fsync: 'off',
      autovacuum: 'off',
    },
  })
  await migrate(server.url())
  const sql = connect(server.url(), 1)
  try {
    await leaveInDoubt(sql)
    const run = (query: string) => async (times: number) => {
      for (; times > 0; times -= 1) await sql.unsafe(query)
    }
    const view = run('select count(*) from once.in_doubt')
    const options = { rounds: quick ? 7 : 31, operations: 1 }
    const figures: Figure[] = []
    for (const [key, query, note] of [
      ['in_doubt_vs_bare_join', join, 'the join that gives each lock its transaction'],
      ['in_doubt_vs_documented_join', documentedJoin, "the documentation's join"],
      ['in_doubt_vs_narrow_join', narrowJoin, 'the join on transaction ids alone'],
    ] as const) {
      const { ratio, spread, ours, theirs } = await compare(view, run(query), options)
      figures.push({
        key,
        value: 1 / ratio,
        spread: [1 / spread[1], 1 / spread[0]],
        ...(key === 'in_doubt_vs_bare_join' ? { target: { atMost: 3 } } : {}),
        note: `${ours.toFixed(1)} ms, ${note} ${theirs.toFixed(1)} ms`,
      })
    }
    return figures
  } finally {
    await sql.end()
  }
}

/** Prepared transactions of ours whose home is this very database, so that each one's decision is looked up. */
async function leaveInDoubt(sql: postgres.Sql): Promise<void> {
  const names = Array.from({ length: tables }, (_, n) => `held_${n}`)
  for (const name of names) await sql.unsafe(`create table ${name} (id int)`)
  const [{ home, xid } = {}] = await sql`select once.database_id() as home, pg_current_xact_id()::text as xid`
  for (let made = 0; made < transactions; made += 1) {
    await sql.unsafe(
      `begin; lock table ${names.join(', ')} in row exclusive mode; select pg_current_xact_id()`,
    )
    await sql.unsafe(`prepare transaction 'once:1:${home}:${randomUUID()}:${xid}:bench'`)
  }
  const [{ locks } = {}] = await sql`select count(*)::int as locks from pg_locks where pid is null`
  if (locks !== transactions * (tables + 1)) throw new Error(`Expected 10 locks each, found ${locks} in all`)
}
