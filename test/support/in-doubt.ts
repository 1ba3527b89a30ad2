/** A branch in doubt, made by hand. */
import { randomUUID } from 'node:crypto'
import { literal } from '../../src/database/quote.ts'
import { formatGid, type GlobalId } from '../../src/transaction/gid.ts'
import type { TestDatabase } from './database.ts'

/**
 * What a coordinator leaves that dies between the decision and its end: `a` is the home, a branch of `b` is
 * prepared, and both hold an effect of this id.
 */
export async function leaveInDoubt(
  { a, b }: { readonly a: TestDatabase; readonly b: TestDatabase },
  id: number,
  decision: 'committed' | 'aborted',
): Promise<GlobalId> {
  const transactionId = randomUUID()
  const identity = async ({ sql }: TestDatabase) =>
    (await sql<{ id: string }[]>`select once.home_id() as id`)[0]?.id ?? ''
  const [home, other] = await Promise.all([identity(a), identity(b)])
  const [atHome, there] = await Promise.all([a.sql.reserve(), b.sql.reserve()])
  try {
    await atHome`begin`.simple()
    await atHome`call once.open(${transactionId})`
    await atHome`insert into effect (id) values (${id})`
    const [row] = await atHome<{ xid: string }[]>`
      select once.begin_global(${transactionId}, ${['b']}, ${[other]})::text as xid`
    const global = { home, transactionId, homeXid: row?.xid ?? '' }
    await there`begin`.simple()
    await there`call once.open(${transactionId})`
    await there`insert into effect (id) values (${id})`
    await there`select once.vote(${transactionId}, ${home}, 'b')`
    await there.unsafe(`prepare transaction ${literal(formatGid(global, 'b'))}`)
    await atHome.unsafe(decision === 'committed' ? 'commit' : 'rollback')
    return global
  } finally {
    atHome.release()
    there.release()
  }
}
