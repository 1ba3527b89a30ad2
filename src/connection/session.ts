/**
 * One connection, taken out of a pool for as long as we need it, whatever dialect it comes from.
 */
import { CompiledQuery, type DatabaseConnection, type Kysely, type QueryResult } from 'kysely'
import { AbortedError, isErrorAnswer } from '../errors.ts'
import { PostgresJsConnection } from './dialect.ts'
import { identifier } from './quote.ts'
import type { Executor } from './stream.ts'

/** What a statement returned; the command tag only from dialects that tell it (ours does). */
export interface SessionResult<R> {
  readonly rows: R[]
  readonly command: string | undefined
}

export interface Session {
  readonly connection: Executor
  /** Whether statements may be sent without waiting for the one before; they are answered in order. */
  readonly pipelines: boolean
  /** Whether its pool is ours, so that nobody but handlers can have set anything for the session. */
  readonly isOwn: boolean
  /** Runs a statement of ours: parameters are strings, numbers, booleans and nulls. */
  query<R>(text: string, parameters?: readonly unknown[]): Promise<SessionResult<R>>
  /** Takes on another role. Until {@link leaveRole} the session must not be released. */
  takeRole(role: string): Promise<void>
  /** Takes on the role from before again; a session that cannot is given up. */
  leaveRole(): Promise<void>
  /** Gives the connection back to its pool; only in a clean state. */
  release(): void
  /**
   * Gives the connection up in whatever state it is: nothing that was not sent by now will be. Where the dialect
   * lets us hang up, we do; elsewhere it goes back after the statement that runs, and behind it a rollback and the
   * role from before, have been answered.
   */
  abandon(): void
}

/** Takes a connection out of the pool behind a Kysely instance. */
export function acquire(db: Kysely<unknown>): Promise<Session> {
  return new Promise((resolve, reject) => {
    db.getExecutor()
      .provideConnection(
        (connection) => new Promise<void>((release) => resolve(sessionOver(connection, release))),
      )
      .catch(reject)
  })
}

function sessionOver(connection: DatabaseConnection, release: () => void): Session {
  const ours = connection instanceof PostgresJsConnection ? connection : undefined
  // Not every driver queues statements by itself.
  let last: Promise<unknown> = Promise.resolve()
  let givenUp = false
  /** The role to take on again, as setting `role` has it. */
  let before: string | undefined
  const inTurn = <T>(run: () => Promise<T>): Promise<T> => {
    if (ours) return run()
    const result = last.then(() => {
      if (givenUp) throw new AbortedError('ABORTED', 'The connection was given up')
      return run()
    })
    last = result.catch(() => {})
    return result
  }
  const watched: Executor = ours ?? {
    executeQuery: (query) => inTurn(() => connection.executeQuery(query)),
  }
  let held = true
  const query = async <R>(text: string, parameters: readonly unknown[] = []): Promise<SessionResult<R>> => {
    if (!held) throw new AbortedError('ENDED', 'This connection was given back')
    const result = await (ours
      ? ours.executeOwn<R>(text, parameters)
      : watched.executeQuery<R>(CompiledQuery.raw(text, [...parameters])))
    return { rows: result.rows, command: commandOf(result) }
  }
  const session: Session = {
    connection: watched,
    pipelines: ours !== undefined,
    isOwn: ours?.isOwn ?? false,
    query,
    async takeRole(role) {
      const { rows } = await query<{ role: string }>("select pg_catalog.current_setting('role') as role")
      before = rows[0]?.role ?? 'none'
      await query(`set role ${identifier(role)}`)
    },
    async leaveRole() {
      if (before === undefined) return
      try {
        await query(takeAgain, [before])
        before = undefined
      } catch {
        session.abandon()
      }
    },
    release() {
      if (held) release()
      held = false
    },
    abandon() {
      if (!held) return
      if (ours) {
        ours.destroy()
        release()
      } else {
        givenUp = true
        last.then(clean).then(release, () => {})
      }
      held = false
    },
  }
  return session

  /** @throws if the role from before cannot be had: better one connection less than one that acts as somebody else */
  async function clean(): Promise<void> {
    const run = (text: string, parameters: unknown[]) =>
      connection.executeQuery(CompiledQuery.raw(text, parameters))
    // A request to cancel what ran before may come late, and hit a statement of these.
    await again(() => run('rollback', [])).catch(() => {})
    if (before === undefined) return
    await again(() => run(takeAgain, [before])).catch((error: unknown) => {
      // What is no answer is the loss of the connection, which the driver sees as well.
      if (isErrorAnswer(error)) throw error
    })
  }
}

const takeAgain = "select pg_catalog.set_config('role', $1::text, false)"

/** Once more if the server refuses it. */
function again<T>(run: () => Promise<T>): Promise<T> {
  return run().catch((error: unknown) => {
    if (!isErrorAnswer(error)) throw error
    return run()
  })
}

/** The command tag of an answer, from dialects that tell it. */
export function commandOf(result: QueryResult<unknown>): string | undefined {
  return 'command' in result && typeof result.command === 'string' ? result.command : undefined
}
