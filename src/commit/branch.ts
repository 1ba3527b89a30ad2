/**
 * One database's part in a transaction: a connection with an open transaction on it, and what the handler did there.
 */
import type { DatabaseConnection, Transaction } from 'kysely'
import { type Database, transactionOver } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { refuseControl } from '../connection/script.ts'
import { withStreams } from '../connection/stream.ts'
import { codeOf, fromOwn } from '../errors.ts'
import * as say from '../statements.ts'
import { traced } from './channels.ts'
import { asAborted, ended, madeReadOnly, notAwaited, swallowed } from './explain.ts'

export interface BranchSettings {
  readonly transactionId: string
  /** As {@link Branch.databaseId}. */
  readonly databaseId: string
  readonly progress: Progress
  readonly options: say.BranchOptions
  /** Ends waiting when the transaction is given up. */
  readonly race: <T>(answer: Promise<T>) => Promise<T>
}

/** How far a transaction has come, and what its handler does. */
export class Progress {
  /** The handler is over. */
  returned = false
  /** The commit, or the rollback, has begun. */
  committing = false
  /** What the handler has sent and not heard of. */
  readonly running = new Set<{ readonly text: string }>()
  /** What the handler did that it must not: the commit fails with it, even if the handler caught it. */
  violation: unknown
  /**
   * The handler left queries behind. What these do next is told nobody: nobody waits for it, and an error that nobody
   * catches would end the process.
   */
  isForsaken = false
}

/** Opens a transaction on a connection of its own; with the second net its answer is not waited for. */
export async function openBranch(database: Database, settings: BranchSettings): Promise<Branch> {
  const { transactionId, options, race } = settings
  return await traced('begin', { database, transactionId }, async () => {
    const link = await database.connect()
    const branch = new Branch(database, link, settings)
    try {
      if (link.isDirect) {
        if (database.isFenceDue()) branch.askFence()
        await branch.send(say.openDirect(options))
      } else {
        await race(branch.ask(say.begin(options.isolationLevel)))
        await race(branch.ask(say.open(transactionId, options)))
      }
    } catch (error) {
      link.abandon()
      throw error
    }
    return branch
  })
}

export class Branch {
  readonly database: Database
  /** Who the database said it is. Gids and the decision say it on, and PREPARE and COMMIT ask if it is so. */
  readonly databaseId: string
  readonly transactionId: string
  readonly link: Link
  /** For the handler: a connection that watches what the handler does. */
  readonly connection: DatabaseConnection
  /** Undefined: nobody asked; null: nothing had been written when somebody did. */
  xid: string | null | undefined
  /** Whether a statement has shown that rows were changed. */
  wrote = false
  /** Whether the server has answered anything: if not, nothing can have happened. */
  answered = false
  /** What failed first among the handler's statements, unless a savepoint before it was rolled back to. */
  failure: unknown
  readonly #progress: Progress
  /** All that was sent ahead. */
  #ahead: Promise<void> | undefined
  /** What failed first of it. */
  #refusal: unknown
  #noting: Promise<void> | undefined
  #fence: Promise<'on' | 'off'> | undefined

  constructor(database: Database, link: Link, { transactionId, databaseId, progress }: BranchSettings) {
    this.database = database
    this.databaseId = databaseId
    this.transactionId = transactionId
    this.link = link
    this.#progress = progress
    this.connection = withStreams({ executeQuery: (query) => this.#execute(query) as never })
  }

  /** A statement of ours whose answer is waited for. That the connection is lost is told as an AbortedError. */
  ask<A>(statement: say.Statement<A>): Promise<A> {
    return this.link.send(statement).then(
      (answer) => {
        this.answered = true
        return answer
      },
      (error) => this.#ours(error),
    )
  }

  /** As {@link ask}, for what changes something: it may only happen inside of our transaction. */
  change<A>(statement: say.Statement<A>): Promise<A> {
    return this.ask(this.link.isDirect ? statement : say.guarded(statement, this.transactionId))
  }

  /** As {@link change}, but {@link settle} waits for the answer: behind it may come another in the same round trip. */
  async send(statement: say.Statement<unknown>): Promise<void> {
    if (this.link.isDirect) this.#send(statement)
    else await this.change(statement)
  }

  /** As {@link send}, and gives the answer, for after the commit. */
  async sendAhead<A>(statement: say.Statement<A>): Promise<{ readonly answer: Promise<A> }> {
    if (!this.link.isDirect) return { answer: Promise.resolve(await this.change(statement)) }
    return { answer: this.#send(statement) }
  }

  /** Waits for all that was sent. @throws the first error among them */
  async settle(): Promise<void> {
    await this.#ahead
    const error = this.#refusal
    this.#refusal = undefined
    if (error !== undefined) throw error
  }

  /** Ahead of BEGIN, and so outside of the transaction: {@link obeyFence} waits for it. */
  askFence(): void {
    this.#fence = this.link.send(say.fence())
    this.#fence.catch(() => {})
  }

  /**
   * Undefined where nobody asked.
   * @throws DatabaseError `READ_ONLY` if an operator has made the database read-only since its session was opened
   */
  obeyFence(): Promise<void> | undefined {
    return this.#fence && this.#obey(this.#fence)
  }

  async #obey(asked: Promise<'on' | 'off'>): Promise<void> {
    const answer = await asked.catch((error: unknown) => {
      throw this.#told(error)
    })
    if (answer === 'off') return
    // Sessions opened from now on obey, and this one is not used again.
    this.link.outdate()
    throw madeReadOnly(this.database)
  }

  /** Asks for the transaction's xid, if that makes nobody wait. */
  noteXid(): void {
    if (!this.link.isDirect) return
    // That it failed is nobody's business: whoever needs it asks again.
    this.#noting ??= this.link.send(say.noteXid()).then(
      (xid) => this.#noted(xid),
      () => {},
    )
  }

  /** Whether it wrote: asks, unless a statement has shown it already; with the xid where that is wanted. */
  async learn(withXid: boolean): Promise<void> {
    await this.#noting
    // What a driver tells of changed rows may be those of another server; where it matters, Postgres is asked.
    if (this.xid != null || (this.wrote && !withXid && this.link.isDirect)) return
    this.#noted(await this.ask(say.noteXid()))
  }

  #noted(xid: string | null): void {
    this.xid = xid
    this.wrote = xid !== null
  }

  #send<A>(statement: say.Statement<A>): Promise<A> {
    const answer = this.link.send(statement)
    const before = this.#ahead
    this.#ahead = answer.then(
      () => {
        this.answered = true
        return before
      },
      (error) => {
        this.#refusal ??= this.#told(error)
        return before
      },
    )
    return answer
  }

  async #execute(query: Parameters<DatabaseConnection['executeQuery']>[0]) {
    const entry = { text: query.sql }
    this.#progress.running.add(entry)
    try {
      if (this.#progress.committing) await refuse(this.database, this.#progress)
      try {
        refuseControl(query.sql)
      } catch (error) {
        this.#progress.violation ??= error
        throw error
      }
      const result = await this.link.executeQuery(query)
      this.answered = true
      if (result.numAffectedRows !== undefined && result.numAffectedRows > 0n) this.wrote = true
      // After a failure nothing succeeds but ROLLBACK TO SAVEPOINT, which heals it.
      this.failure = undefined
      return result
    } catch (error) {
      if (this.#progress.isForsaken) return await new Promise<never>(() => {})
      throw await this.#failed(error)
    } finally {
      this.#progress.running.delete(entry)
    }
  }

  /** A statement of the handler failed: what it gets to see. */
  async #failed(error: unknown): Promise<unknown> {
    const first = this.failure
    this.failure ??= error
    // Read-only or aborted: by something of ours that was sent ahead, if anything was.
    if (codeOf(error) === '25P02' || codeOf(error) === '25006') await this.settle()
    if (codeOf(error) !== '25P02') return asAborted(this.database, error)
    return first === undefined || codeOf(first) === '25P02'
      ? error
      : swallowed({ database: this.database, failure: first })
  }

  /** A statement of ours failed: what was sent ahead (BEGIN) and failed is the better explanation. */
  async #ours(error: unknown): Promise<never> {
    await this.settle()
    if (codeOf(error) === '25P02' && this.failure !== undefined) throw swallowed(this)
    throw this.#told(error)
  }

  #told(error: unknown): unknown {
    return asAborted(this.database, fromOwn(this.database.name, error))
  }
}

/** Once a transaction is over, its handles are of no use. */
async function refuse(database: Database, progress: Progress): Promise<never> {
  if (progress.isForsaken) return await new Promise<never>(() => {})
  const error = ended(database)
  progress.violation ??= error
  throw error
}

/** @throws HandlerError `NOT_AWAITED` if the handler has returned while a query of it is unanswered */
export function refuseUnawaited(progress: Progress): void {
  if (progress.violation !== undefined) throw progress.violation
  const [first] = progress.running
  if (first === undefined) return
  progress.isForsaken = true
  throw notAwaited(first.text)
}

/** A handle for handlers: begins the branch at its first query, and refuses to work after the end. */
export function lazyTransaction<DB>(
  database: Database,
  begin: () => Promise<Branch>,
  progress: Progress,
): Transaction<DB> {
  const provide = async <T>(consumer: (connection: DatabaseConnection) => Promise<T>): Promise<T> => {
    if (progress.returned) await refuse(database, progress)
    const entry = { text: `a query in database ${database.name}` }
    progress.running.add(entry)
    let branch: Branch
    try {
      branch = await begin()
    } finally {
      progress.running.delete(entry)
    }
    return await consumer(branch.connection)
  }
  return transactionOver(database.db, { provideConnection: provide }) as unknown as Transaction<DB>
}
