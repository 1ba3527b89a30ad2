/** What the tests of the SQL share: sessions that wait for each other, and errors with a code. */
import type { ExecutionContext } from 'ava'
import type postgres from 'postgres'
import { connect, testDatabase } from './database.ts'
import { oneValue, rowsOf } from './rows.ts'
import { shared } from './shared.ts'
import { until } from './until.ts'

export { databaseIdOf, oneValue, rowsOf } from './rows.ts'

type Assertions = Pick<ExecutionContext<unknown>, 'teardown' | 'is' | 'truthy' | 'true' | 'fail' | 'log'>
type Query = PromiseLike<unknown>

/** One database for all tests of a file, for those that keep apart by the names they use. */
export const sharedDatabase = () => shared(testDatabase)

let names = 0

/** A name that no other test of this file uses: for producers, scopes, groups in a shared database. */
export const freshName = (prefix = 'name') => `${prefix}-${names++}`

/** One connection, so that its begin, commit and prepare are its own. */
export interface Link {
  readonly sql: postgres.Sql
  readonly pid: number
  /** Runs a statement; the rows as arrays of values. */
  rows(text: string): Promise<unknown[][]>
  /** Runs a statement; the only value of its only row. */
  value(text: string): Promise<unknown>
}

export async function openSession(t: Pick<Assertions, 'teardown'>, url: string): Promise<Link> {
  const sql = connect(t, url)
  const rows = (text: string) => rowsOf(sql, text)
  const value = (text: string) => oneValue(sql, text)
  return { sql, pid: Number(await value('select pg_backend_pid()')), rows, value }
}

export interface Refusal {
  readonly code: string
  readonly message: string
  readonly detail: string
  readonly hint: string
}

/**
 * Asserts that a statement fails with a code, and with each of these words in what it says. Our own errors
 * (class ON) must have a detail and a hint.
 */
export async function refused(
  t: Assertions,
  query: Query,
  code: string,
  ...words: string[]
): Promise<Refusal> {
  const error = await Promise.resolve(query).then(
    () => undefined,
    (reason) => reason as Partial<Refusal>,
  )
  const refusal = {
    code: error?.code ?? 'no error',
    message: error?.message ?? '',
    detail: error?.detail ?? '',
    hint: error?.hint ?? '',
  }
  const text = `${refusal.message}\n${refusal.detail}\n${refusal.hint}`
  t.is(refusal.code, code, text)
  if (code.startsWith('ON')) {
    t.truthy(refusal.detail, `No detail: ${text}`)
    t.truthy(refusal.hint, `No hint: ${text}`)
  }
  for (const word of words) t.true(text.includes(word), `Expected ${JSON.stringify(word)} in: ${text}`)
  return refusal
}

/** Waits until a session waits for a lock that somebody else holds. */
export async function untilBlocked(watcher: postgres.Sql, session: Link): Promise<void> {
  await until(`session ${session.pid} is blocked`, async () => {
    const [row] = await watcher<{ blocked: boolean }[]>`
      select wait_event_type = 'Lock' and cardinality(pg_blocking_pids(pid)) > 0 as blocked
        from pg_stat_activity where pid = ${session.pid}`
    return row?.blocked
  })
}

/** Whether a promise is still open, without waiting for it. */
export async function isPending(promise: PromiseLike<unknown>): Promise<boolean> {
  const open = Symbol()
  return (await Promise.race([promise, Promise.resolve(open)])) === open
}
