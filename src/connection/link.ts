/**
 * One connection, taken out of a pool for as long as we need it, whatever driver it comes from. What drivers do
 * differently ends here: above, there are statements by name, and what the handler runs.
 */
import type { CompiledQuery, QueryResult } from 'kysely'
import { DatabaseError } from '../errors.ts'
import type { Session, Statement } from '../statements.ts'

/** What the server answered to a statement of ours: one column of text a row, or nothing. */
export interface Answer {
  readonly rows: readonly (string | null)[]
  /** The last command tag; undefined where the driver does not tell. */
  readonly command: string | undefined
}

/** What a statement returned that is none of the protocol's: for the command line and XA. */
export interface QueryAnswer<R> {
  readonly rows: R[]
  readonly command: string | undefined
}

/** What runs one statement at a time. */
export interface Executor {
  executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>>
}

export interface Link extends Executor, Session {
  /** Sends a statement of ours. Those that are not waited for are answered in order. */
  send<A>(statement: Statement<A>): Promise<A>
  /** Runs any text; parameters are strings, numbers, booleans and nulls. */
  query<R>(text: string, parameters?: readonly unknown[]): Promise<QueryAnswer<R>>
  /** Takes on another role. Until {@link leaveRole} the connection must not be released. */
  takeRole(role: string): Promise<void>
  /** Takes on the role from before again; a connection that cannot is given up. */
  leaveRole(): Promise<void>
  /** What this session, and others of its pool, know of the server is not so any more: they are not used again. */
  outdate(): void
  /** Gives the connection back to its pool; only outside of a transaction. */
  release(): void
  /**
   * Gives the connection up in whatever state it is: nothing that was not sent by now will be. A statement that
   * runs is cancelled, unless it commits: where it waits for a synchronous standby, ending it would end the wait, and
   * everybody would see, and believe, what no standby has.
   */
  abandon(): void
}

const unsent = new WeakSet<object>()

/** The error of a statement that was not even sent: it did nothing, for certain. */
export function neverSent<E extends object>(error: E): E {
  unsent.add(error)
  return error
}

export function wasNeverSent(error: unknown): boolean {
  return typeof error === 'object' && error !== null && unsent.has(error)
}

/** A driver, or somebody's parser, gave what Postgres did not say. @throws DatabaseError `DRIVER` */
export function refuseAnswer(found: unknown, expected: string): never {
  const what = `The driver answered ${describe(found)} where Postgres says ${expected}`
  const detail =
    'Type parsers and transforms of this connection change what the server answers, even plain text.'
  const hint = 'Give a URL, or an instance whose parsers leave type text (oid 25) alone'
  throw new DatabaseError('DRIVER', what, { detail, hint })
}

function describe(found: unknown): string {
  return typeof found === 'string' ? JSON.stringify(found.slice(0, 60)) : `a value of type ${typeof found}`
}
