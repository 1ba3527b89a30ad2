/**
 * What people write by hand on postgres.js: the textbook's two-phase commit, and no commit protocol at all.
 */
import { randomUUID } from 'node:crypto'
import type postgres from 'postgres'
import { delivery, insert } from './rows.ts'

/** A pool for each database. */
export interface Pair {
  readonly a: postgres.Sql
  readonly b: postgres.Sql
}

/** BEGIN travels with the first statement, as in ours. */
async function work(session: postgres.ReservedSql): Promise<void> {
  const begun = session.unsafe('begin').execute()
  const done = session.unsafe(insert, Object.values(delivery()), { prepare: true })
  await Promise.all([begun, done])
}

async function withSessions<T>(
  { a, b }: Pair,
  task: (a: postgres.ReservedSql, b: postgres.ReservedSql) => Promise<T>,
): Promise<T> {
  const sessions = [await a.reserve(), await b.reserve()] as const
  try {
    return await task(...sessions)
  } finally {
    for (const session of sessions) session.release()
  }
}

/**
 * Presumed abort with a coordinator's log in database `a`: everybody prepares, the decision is logged durably,
 * everybody commits. Cleaning the log is left out.
 *
 * @returns milliseconds until the decision was durable
 */
export function textbook(pair: Pair): Promise<number> {
  return withSessions(pair, async (a, b) => {
    const start = performance.now()
    await work(a)
    await work(b)
    const id = randomUUID()
    await Promise.all([a.unsafe(`prepare transaction '${id}:a'`), b.unsafe(`prepare transaction '${id}:b'`)])
    await a.unsafe('insert into textbook_log (transaction_id) values ($1)', [id], { prepare: true })
    const decided = performance.now() - start
    await Promise.all([a.unsafe(`commit prepared '${id}:a'`), b.unsafe(`commit prepared '${id}:b'`)])
    return decided
  })
}

/** Two commits side by side: a crash between them leaves half of the work. */
export function unsafe(pair: Pair): Promise<void> {
  return withSessions(pair, async (a, b) => {
    await work(a)
    await work(b)
    await Promise.all([a.unsafe('commit'), b.unsafe('commit')])
  })
}
