/**
 * Recovery of many branches in doubt, against a bare loop of COMMIT PREPARED over as many: a loop for each server, all
 * at the same time. The loop asks nobody what was decided.
 */
import type postgres from 'postgres'
import { pgonce } from '../src/index.ts'
import { leaveBehind } from '../test/support/orphan.ts'
import { compare, concurrently, type Figure, figureOf } from './harness.ts'
import { delivery, type Tables } from './rows.ts'
import { connect, makeDatabase, type Servers, startDurable } from './servers.ts'

const names = ['a', 'b', 'c'] as const
type Name = (typeof names)[number]

/** How many transactions are being left behind at once. Each holds one connection, and takes a second. */
const width = 8

export async function recovery(_: Servers, quick: boolean): Promise<Figure[]> {
  await using opened = new AsyncDisposableStack()
  const pools = {} as Record<Name, postgres.Sql>
  const databases = {} as Record<Name, string>
  for (const name of names) {
    const server = opened.use(await startDurable({ max_prepared_transactions: 2000 }))
    databases[name] = await makeDatabase(server, 'bench')
    pools[name] = opened.adopt(connect(databases[name], 2 * width), (sql) => sql.end())
  }
  const once = opened.use(pgonce<Record<Name, Tables>>({ databases }))

  const ours = async (branches: number) => {
    await leave(pools, branches)
    const start = performance.now()
    const { committed, unfinished } = await once.recovery.run({ purge: false })
    const time = performance.now() - start
    if (committed !== branches)
      throw new Error(`Expected ${branches} committed, got ${committed}: ${unfinished[0]?.reason}`)
    return time
  }
  const theirs = async (branches: number) => {
    const gids = await leave(pools, branches)
    const start = performance.now()
    await Promise.all(
      names.map(async (name) => {
        for (const gid of gids[name]) await pools[name].unsafe(`commit prepared '${gid}'`)
      }),
    )
    return performance.now() - start
  }
  const branches = quick ? 600 : 5000
  const found = await compare(ours, theirs, { operations: branches, rounds: quick ? 2 : 5, warmup: 1 })
  const note = `${branches} branches on 3 servers: ${found.ours.toFixed(3)} ms a branch, the loop ${found.theirs.toFixed(3)} ms`
  return [figureOf('recovery_vs_bare_loop', found, { atLeast: 0.8 }, note)]
}

/** Leaves so many branches prepared, two for each transaction, whose home has committed. @returns their gids */
async function leave(pools: Record<Name, postgres.Sql>, branches: number): Promise<Record<Name, string[]>> {
  const gids: Record<Name, string[]> = { a: [], b: [], c: [] }
  for (const sql of Object.values(pools)) await sql`truncate once.global_transaction, once.evidence`
  let made = 0
  await concurrently(width, branches / 2, async () => {
    const home = names[made++ % names.length] as Name
    const others = names.filter((name) => name !== home)
    const participants = Object.fromEntries(others.map((name) => [name, { sql: pools[name] }]))
    const effect = `insert into delivery
      select * from jsonb_populate_record(null::delivery, '${JSON.stringify(delivery())}')`
    const left = await leaveBehind({ sql: pools[home] }, participants, { effect })
    for (const name of others) gids[name].push(left.gids[name] ?? '')
  })
  return gids
}
