/**
 * One database's part in a transaction: a connection with an open transaction on it, and what the handler
 * did there.
 */
import type { DatabaseConnection, Transaction } from 'kysely'
import { type Database, transactionOver } from '../database/database.ts'
import { isFatal } from '../database/dialect.ts'
import { commandOf, type Session, type SessionResult } from '../database/session.ts'
import { AbortedError, codeOf, fromSql, HandlerError } from '../errors.ts'
import { traced } from './channels.ts'

export interface BranchSettings {
  readonly transactionId: string
  /** Milliseconds; 0: none. */
  readonly lockTimeout: number
  readonly idleTimeout: number
  readonly isolationLevel: string | undefined
}

export interface Branch {
  readonly database: Database
  readonly session: Session
  /** For the handler: a connection that watches what the handler does. */
  readonly connection: DatabaseConnection
  query<R>(text: string, parameters?: readonly unknown[]): Promise<SessionResult<R>>
  /** Sends a statement whose answer {@link settle} waits for: behind it may come another in the same round trip. */
  send(text: string, parameters?: readonly unknown[]): Promise<void>
  /** Waits for all that was sent. @throws the first error among them */
  settle(): Promise<void>
  /** Whether the handler may have ended the transaction or changed the role, so that we must look. */
  readonly suspect: boolean
  /** The first statement of the handler that failed, if one did. */
  readonly failure: unknown
}

/** Command tags after which the transaction is open and the role is what it was. */
const harmless =
  /^(SELECT|INSERT|UPDATE|DELETE|MERGE|COPY|FETCH|MOVE|DECLARE CURSOR|CLOSE CURSOR|SAVEPOINT|RELEASE|LOCK TABLE)\b/

/**
 * Opens a transaction on a connection of its own. Where the dialect lets us, neither BEGIN nor what follows is
 * waited for: whatever comes next travels with them.
 */
export async function openBranch(database: Database, settings: BranchSettings): Promise<Branch> {
  const { transactionId, lockTimeout, idleTimeout, isolationLevel } = settings
  return await traced('begin', { database: database.name, transactionId }, async () => {
    const branch = branchOver(database, await database.connect())
    try {
      await branch.send(isolationLevel === undefined ? 'begin' : `begin isolation level ${isolationLevel}`)
      await branch.send('select once.open($1::uuid, $2::int, $3::int)', [
        transactionId,
        lockTimeout,
        idleTimeout,
      ])
    } catch (error) {
      branch.session.abandon()
      throw fromSql(error)
    }
    return branch
  })
}

function branchOver(database: Database, session: Session): Branch {
  const sent: Promise<unknown>[] = []
  let suspect = false
  let failure: unknown

  const connection: DatabaseConnection = {
    async executeQuery(query) {
      try {
        const result = await session.connection.executeQuery<never>(query)
        if (!harmless.test(commandOf(result) ?? '')) suspect = true
        return result
      } catch (error) {
        failure ??= error
        // "The transaction is aborted": by something of ours that was sent ahead, if anything was.
        if (codeOf(error) === '25P02') await settle()
        if (!isFatal(error) || error instanceof AbortedError) throw error
        throw new AbortedError(
          'CONNECTION_LOST',
          `The connection to ${database.name} was lost inside the handler`,
          {
            detail: 'The transaction is rolled back in every database.',
            cause: error,
          },
        )
      }
    },
    streamQuery: (query, chunkSize) => session.connection.streamQuery(query, chunkSize),
  }
  const settle = async () => {
    const waiting = sent.splice(0)
    const outcomes = await Promise.allSettled(waiting)
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw fromSql(outcome.reason)
  }
  return {
    database,
    session,
    connection,
    settle,
    query: session.query,
    async send(text, parameters) {
      const answer = session.query(text, parameters)
      answer.catch(() => {})
      if (session.pipelines) sent.push(answer)
      else await answer
    },
    get suspect() {
      return suspect
    },
    get failure() {
      return failure
    },
  }
}

/** A handle for handlers: begins the branch at its first query, and refuses to work after the end. */
export function lazyTransaction<DB>(
  database: Database,
  begin: () => Promise<Branch>,
  isOpen: () => boolean,
): Transaction<DB> {
  const provide = async <T>(consumer: (connection: DatabaseConnection) => Promise<T>): Promise<T> => {
    if (!isOpen()) {
      throw new HandlerError('ENDED', `The transaction on ${database.name} is over`, {
        hint: 'Await every query inside the handler; for queries outside it use a Kysely instance of your own',
      })
    }
    const branch = await begin()
    return await consumer(branch.connection)
  }
  return transactionOver(database.db, { provideConnection: provide }) as unknown as Transaction<DB>
}
