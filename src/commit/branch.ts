/**
 * One database's part in a transaction: a connection with an open transaction on it, and what the handler
 * did there.
 */
import type { DatabaseConnection, Transaction } from 'kysely'
import { type Database, transactionOver } from '../connection/database.ts'
import { isFatal } from '../connection/dialect.ts'
import { commandOf, type Session, type SessionResult } from '../connection/session.ts'
import { withStreams } from '../connection/stream.ts'
import { AbortedError, codeOf, fromOwn, HandlerError, isErrorAnswer, PgonceError } from '../errors.ts'
import { traced } from './channels.ts'
import { swallowed } from './explain.ts'

export interface BranchSettings {
  readonly transactionId: string
  /** As {@link Branch.databaseId}. */
  readonly databaseId: string
  /** Milliseconds; 0: none. */
  readonly lockTimeout: number
  readonly idleTimeout: number
  readonly isolationLevel: string | undefined
  readonly progress: Progress
}

export interface Branch {
  readonly database: Database
  /** Who the database said it is. Gids and the decision say it on, and the votes ask on this connection if it is so. */
  readonly databaseId: string
  readonly transactionId: string
  readonly session: Session
  /** Settles with the answer to BEGIN: until then what the handler did not wait for is not sent. */
  opened(): Promise<unknown>
  /** For the handler: a connection that watches what the handler does. */
  readonly connection: DatabaseConnection
  /**
   * For all but the decision: that the connection is lost is told as an AbortedError. It does not wait for BEGIN:
   * what changes anything has to ask for the transaction's mark (`once.assert_branch`, or what asks it).
   */
  query<R>(text: string, parameters?: readonly unknown[]): Promise<SessionResult<R>>
  /** Sends a statement whose answer {@link settle} waits for: behind it may come another in the same round trip. */
  send(text: string, parameters?: readonly unknown[]): Promise<void>
  /** Waits for all that was sent. @throws the first error among them */
  settle(): Promise<void>
  /** Asks for the transaction's xid, once, if that makes nobody wait. */
  noteXid(): void
  /** The xid as of {@link noteXid}: null if nothing had been written; undefined if nobody asked. */
  readonly xid: Promise<string | null> | undefined
  /** Whether a statement of the handler has inserted, updated or deleted rows. */
  readonly wrote: boolean
  /** Whether the handler may have ended the transaction or changed the role, so that we must look. */
  readonly suspect: boolean
  /** What failed first among the handler's statements, unless a savepoint before it was rolled back to. */
  readonly failure: unknown
}

/** Command tags after which the transaction is open and the role is what it was. */
const harmless =
  /^(SELECT|INSERT|UPDATE|DELETE|MERGE|COPY|FETCH|MOVE|DECLARE CURSOR|CLOSE CURSOR|SAVEPOINT|RELEASE|LOCK TABLE)\b/

/**
 * Opens a transaction on a connection of its own. Where the dialect lets us, neither BEGIN nor what follows is
 * waited for: a claim of ours, which asks whether it is inside, travels with them.
 */
export async function openBranch(database: Database, settings: BranchSettings): Promise<Branch> {
  const { transactionId, lockTimeout, idleTimeout, isolationLevel } = settings
  return await traced('begin', { database, transactionId }, async () => {
    const branch = branchOver(database, await database.connect(), settings)
    try {
      const begin = isolationLevel === undefined ? 'begin' : `begin isolation level ${isolationLevel}`
      if (branch.session.pipelines) {
        // One text for both is one message less, and no column one description less to read. Nothing in it
        // comes from outside.
        await branch.send(`${begin}; call once.open('${transactionId}', ${lockTimeout}, ${idleTimeout})`)
      } else {
        await branch.send(begin)
        await branch.send('call once.open($1::uuid, $2::int, $3::int)', [
          transactionId,
          lockTimeout,
          idleTimeout,
        ])
      }
    } catch (error) {
      branch.session.abandon()
      throw fromOwn(database.name, error)
    }
    return branch
  })
}

function branchOver(
  database: Database,
  session: Session,
  { transactionId, databaseId, progress }: BranchSettings,
): Branch {
  const sent: Promise<unknown>[] = []
  /** Statements of the handler of which nobody knows yet what they did. */
  let unanswered = 0
  /** One has been answered that may have ended the transaction or changed the role. */
  let tainted = false
  const judge = () => {
    branch.suspect = tainted || unanswered > 0
  }

  /**
   * The answer to BEGIN. A request to cancel, meant for what was before, may hit BEGIN itself; whatever is sent
   * before it is answered would then be a transaction of its own, and commit.
   */
  let opened: Promise<unknown> | undefined

  const connection = withStreams({
    async executeQuery(query) {
      unanswered += 1
      judge()
      try {
        await opened
        refuseIf(progress.committing, database)
        // Of several statements in one text a driver tells only the last one's tag.
        if (/;\s*\S/.test(query.sql)) tainted = true
        const result = await session.connection.executeQuery<never>(query)
        if (!harmless.test(commandOf(result) ?? '')) tainted = true
        if (result.numAffectedRows !== undefined && result.numAffectedRows > 0n) branch.wrote = true
        // After a failure nothing succeeds but ROLLBACK TO SAVEPOINT, which heals it.
        branch.failure = undefined
        return result
      } catch (error) {
        // What stood before it in its text was carried out.
        tainted = true
        throw await failed(error)
      } finally {
        unanswered -= 1
        judge()
      }
    },
  })
  /** A statement of the handler failed: what it gets to see. */
  const failed = async (error: unknown): Promise<unknown> => {
    const first = branch.failure
    branch.failure ??= error
    if (codeOf(error) !== '25P02') return isFatal(error) ? asAborted(database, error) : error
    // "The transaction is aborted": by something of ours that was sent ahead, if anything was; else by what the
    // handler had caught, and that would say more than this.
    await settle()
    return first === undefined || codeOf(first) === '25P02' ? error : swallowed({ database, failure: first })
  }
  const settle = async () => {
    const waiting = sent.splice(0)
    const outcomes = await Promise.allSettled(waiting)
    for (const outcome of outcomes)
      if (outcome.status === 'rejected') throw asAborted(database, fromOwn(database.name, outcome.reason))
  }
  const ours = (error: unknown): unknown =>
    codeOf(error) === '25P02' && branch.failure !== undefined
      ? swallowed(branch)
      : asAborted(database, fromOwn(database.name, error))
  const query = <R>(text: string, parameters?: readonly unknown[]) =>
    session.query<R>(text, parameters).catch((error: unknown) => {
      throw asAborted(database, error)
    })
  const branch: { -readonly [Key in keyof Branch]: Branch[Key] } = {
    database,
    databaseId,
    transactionId,
    session,
    xid: undefined,
    wrote: false,
    suspect: false,
    failure: undefined,
    opened: () => Promise.allSettled([opened]),
    connection,
    settle,
    query,
    async send(text, parameters) {
      const answer = session.query(text, parameters)
      answer.catch(() => {})
      opened ??= answer
      if (session.pipelines) sent.push(answer)
      else
        await answer.catch((error: unknown) => {
          throw ours(error)
        })
    },
    noteXid() {
      if (!session.pipelines) return
      branch.xid ??= query<{ xid: string | null }>(
        'select pg_catalog.pg_current_xact_id_if_assigned()::text as xid',
      ).then(
        ({ rows }) => rows[0]?.xid ?? null,
        () => null,
      )
    },
  }
  return branch
}

/** Before the decision a lost connection means that the transaction is rolled back. */
function asAborted({ name }: Database, error: unknown): unknown {
  // What is no answer of the server is the loss of it, in whatever words the driver says so.
  if (isErrorAnswer(error) || error instanceof PgonceError) return error
  return new AbortedError('CONNECTION_LOST', `The connection to ${name} was lost`, {
    detail: 'The transaction is rolled back in every database.',
    cause: error,
  })
}

/** How far a transaction has come. */
export interface Progress {
  /** The handler is over. */
  returned: boolean
  /** The commit, or the rollback, has begun. */
  committing: boolean
}

function refuseIf(over: boolean, { name }: Database): void {
  if (!over) return
  throw new HandlerError('ENDED', `The transaction on ${name} is over`, {
    hint: 'Await every query inside the handler; for queries outside it use a Kysely instance of your own',
  })
}

/** A handle for handlers: begins the branch at its first query, and refuses to work after the end. */
export function lazyTransaction<DB>(
  database: Database,
  begin: () => Promise<Branch>,
  progress: Progress,
): Transaction<DB> {
  const provide = async <T>(consumer: (connection: DatabaseConnection) => Promise<T>): Promise<T> => {
    refuseIf(progress.returned, database)
    const { connection } = await begin()
    // A query that the handler did not wait for still counts, but not behind the COMMIT.
    return await consumer({
      async executeQuery(query) {
        refuseIf(progress.committing, database)
        return await connection.executeQuery(query)
      },
      async *streamQuery(query, chunkSize) {
        refuseIf(progress.committing, database)
        yield* connection.streamQuery<never>(query, chunkSize)
      },
    })
  }
  return transactionOver(database.db, { provideConnection: provide }) as unknown as Transaction<DB>
}
