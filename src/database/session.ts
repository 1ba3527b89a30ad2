/**
 * One connection, taken out of a pool for as long as we need it, whatever dialect it comes from.
 */
import { CompiledQuery, type DatabaseConnection, type Kysely, type QueryResult } from 'kysely'
import { AbortedError } from '../errors.ts'
import { PostgresJsConnection } from './dialect.ts'

/** What a statement returned; the command tag only from dialects that tell it (ours does). */
export interface SessionResult<R> {
  readonly rows: R[]
  readonly command: string | undefined
}

export interface Session {
  readonly connection: DatabaseConnection
  /** Whether statements may be sent without waiting for the one before; they are answered in order. */
  readonly pipelines: boolean
  /** Runs a statement of ours: parameters are strings, numbers, booleans and nulls. */
  query<R>(text: string, parameters?: readonly unknown[]): Promise<SessionResult<R>>
  /** Gives the connection back to its pool; only in a clean state. */
  release(): void
  /**
   * Gives the connection up in whatever state it is. Where the dialect lets us hang up, we do; elsewhere it
   * goes back after the statement that runs, and a rollback behind it, have been answered.
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
  const inTurn = <T>(run: () => Promise<T>): Promise<T> => {
    if (ours) return run()
    const result = last.then(run)
    last = result.catch(() => {})
    return result
  }
  const watched: DatabaseConnection = ours ?? {
    executeQuery: (query) => inTurn(() => connection.executeQuery(query)),
    streamQuery: (query, chunkSize) => connection.streamQuery(query, chunkSize),
  }
  let held = true
  const query = async <R>(text: string, parameters: readonly unknown[] = []): Promise<SessionResult<R>> => {
    if (!held) throw new AbortedError('ENDED', 'This connection was given back')
    const result = await (ours
      ? ours.executeOwn<R>(text, parameters)
      : watched.executeQuery<R>(CompiledQuery.raw(text, [...parameters])))
    return { rows: result.rows, command: commandOf(result) }
  }
  return {
    connection: watched,
    pipelines: ours !== undefined,
    query,
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
        query('rollback').then(release, release)
      }
      held = false
    },
  }
}

/** The command tag of an answer, from dialects that tell it. */
export function commandOf(result: QueryResult<unknown>): string | undefined {
  return 'command' in result && typeof result.command === 'string' ? result.command : undefined
}
