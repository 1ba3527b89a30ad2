/**
 * The coordinator: runs a handler over one or several databases, and commits what it did in all of them or in
 * none. Here are its beginning and its end: branches begun at their first use, permits, giving up in time, running
 * again. How a commit is decided and finished is in `commit.ts`.
 *
 * A coordinator that dies anywhere leaves branches in doubt; recovery asks the home and finishes them.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import type { Transaction } from 'kysely'
import { show } from '../check.ts'
import type { Database } from '../connection/database.ts'
import { environment } from '../environment.ts'
import {
  AbortedError,
  causes,
  codeOf,
  DatabaseError,
  HandlerError,
  InvalidInputError,
  isRetryable,
  LimitError,
} from '../errors.ts'
import type { TransactionSettings } from '../options.ts'
import { type Branch, lazyTransaction, openBranch, Progress, refuseUnawaited } from './branch.ts'
import { commit, rollBack, Settled } from './commit.ts'
import { answerUntil, Deadline } from './deadline.ts'
import { refuseUnexecuted } from './explain.ts'

export interface TransactionResult<T> {
  /** What the handler returned. */
  readonly result: T
  /** For `once.outcome(id)`; null if the transaction left no row (one database, without `record`). */
  readonly id: string | null
  /** Whether every branch is committed; if not, recovery completes them. */
  readonly finished: boolean
}

/** What the coordinator needs of the client. */
export interface Context {
  readonly databases: ReadonlyMap<string, Database>
  /** Finishes that go on in the background; shutdown waits for them. */
  readonly background: Set<Promise<unknown>>
  /** Tells a recovery that runs in this process that there is something to do. */
  readonly poke: () => void
}

export type Handles = Record<string, Transaction<unknown>>

/** What a transaction does, around the handler and with it. */
export type Stage = Pick<Attempt, 'handles' | 'begin' | 'handle' | 'leave'>

export type TransactionBody<T> = (stage: Stage) => Promise<T>

/** @throws InvalidInputError `ONARG` */
export function databaseNamed(databases: ReadonlyMap<string, Database>, name: string): Database {
  const database = databases.get(name)
  if (database !== undefined) return database
  const wanted = typeof name === 'string' ? name.slice(0, 100) : show(name)
  const known = [...databases.keys()].join(', ')
  throw new InvalidInputError('ONARG', `No database named ${wanted}; there are ${known}`)
}

/** Milliseconds. */
const longestBackoff = 1_000

/** Set inside a handler, and in whatever it starts; `over` as soon as it has returned. */
interface Scope {
  readonly context: Context
  readonly outer: Scope | undefined
  over: boolean
}

const nested = new AsyncLocalStorage<Scope>()

/** Inside a handler of this client, however deep, nothing may wait for the client: it would wait for itself. */
export function refuseNested(context: Context, what: string): void {
  for (let scope = nested.getStore(); scope !== undefined; scope = scope.outer) {
    if (scope.context !== context || scope.over) continue
    const detail = 'It would neither be atomic with it nor could the two be kept from waiting for each other.'
    const hint = 'Use the handles that the handler was given; run independent work outside it'
    throw new HandlerError('NESTED', `${what} inside the handler of a transaction`, { detail, hint })
  }
}

/** A database was wanted out of order, and taking it might have closed a circle: begin again, with all of them. */
class OutOfOrder extends Error {
  readonly wanted: ReadonlySet<Database>

  constructor(wanted: ReadonlySet<Database>) {
    super('the handler is run again to take its databases in order')
    this.wanted = wanted
  }
}

/**
 * Runs a handler and commits what it did in all databases, or in none.
 *
 * @throws what the handler throws, after rolling back; `AbortedError`, `HandlerError`, `LimitError`,
 *   `DatabaseError` likewise; `OutcomeUnknownError` if the decision's answer was lost
 */
export async function runTransaction<T>(
  context: Context,
  settings: TransactionSettings,
  body: TransactionBody<T>,
): Promise<TransactionResult<T>> {
  refuseNested(context, 'A transaction was begun')
  const { timeout, retries, signal } = settings
  const deadline = new Deadline(timeout, signal)
  let wanted: ReadonlySet<Database> = new Set()
  try {
    for (let runs = 0; ; runs += 1) {
      const attempt = new Attempt(context, settings, deadline)
      try {
        return await attempt.run(body, wanted)
      } catch (error) {
        if (error instanceof OutOfOrder) {
          wanted = error.wanted
          runs -= 1
          continue
        }
        const mayHelp = attempt.didNothing || causes(error).some(isRetryable)
        if (runs >= retries || !mayHelp || deadline.signal.aborted) throw error
        const pause = environment.random() * Math.min(10 * 2 ** runs, longestBackoff)
        await environment.sleep(pause, deadline.signal).catch(() => {
          throw error
        })
      }
    }
  } finally {
    deadline.stop()
  }
}

/** One run of the handler. */
class Attempt {
  /** A handle for each database, begun at its first query. */
  readonly handles: Handles
  /** A connection was lost before the server had answered anything: nothing happened, as after a long sleep. */
  didNothing = false
  readonly #context: Context
  readonly #settings: TransactionSettings
  readonly #deadline: Deadline
  readonly #transactionId = environment.randomUUID()
  readonly #permits = new Permits()
  readonly #begun = new Map<Database, Promise<Branch>>()
  /** Those whose connection we have. */
  readonly #opened: Branch[] = []
  readonly #progress = new Progress()
  #givenUp = false
  #isVoid = false

  constructor(context: Context, settings: TransactionSettings, deadline: Deadline) {
    this.#context = context
    this.#settings = settings
    this.#deadline = deadline
    this.handles = this.#handles()
  }

  async run<T>(body: TransactionBody<T>, wanted: ReadonlySet<Database>): Promise<TransactionResult<T>> {
    try {
      if (this.#deadline.signal.aborted) await this.#deadline.race(new Promise<never>(() => {}))
      if (wanted.size > 0) await this.#permits.takeAll(wanted, this.#deadline.signal)
      return await this.#commit(await this.#deadline.race(body(this)))
    } catch (error) {
      throw await this.#rollBack(error)
    }
  }

  /** Begins a branch ahead of its first query. */
  begin(name: string): Promise<Branch> {
    return this.#begin(databaseNamed(this.#context.databases, name))
  }

  /** There is nothing to commit: no handler has run, and nothing was changed. */
  leave(): void {
    this.#isVoid = true
  }

  /** Runs the handler. Behind it its handles are of no use any more. */
  async handle<R>(handler: () => Promise<R>): Promise<R> {
    const scope: Scope = { context: this.#context, outer: nested.getStore(), over: false }
    try {
      const result = await nested.run(scope, handler)
      refuseUnawaited(this.#progress)
      return refuseUnexecuted(result)
    } finally {
      this.#progress.returned = true
      scope.over = true
    }
  }

  #handles(): Handles {
    const handles: Handles = {}
    for (const [name, database] of this.#context.databases) {
      let handle: Transaction<unknown> | undefined
      Object.defineProperty(handles, name, {
        enumerable: true,
        get: () => (handle ??= lazyTransaction(database, () => this.#begin(database), this.#progress)),
      })
    }
    return handles
  }

  #begin(database: Database): Promise<Branch> {
    const known = this.#begun.get(database)
    if (known !== undefined) return known
    const branch = this.#open(database)
    branch.catch(() => {})
    this.#begun.set(database, branch)
    // With its xid known in time the commit saves a round trip.
    const used = [...this.#begun.keys()]
    const home = used.find(({ name }) => name === this.#settings.home) ?? used[0]
    if (home === database || home === undefined) return branch
    const note = (first: Branch) => first.noteXid()
    this.#begun.get(home)?.then(note, () => {})
    return branch
  }

  async #open(database: Database): Promise<Branch> {
    // Permits are taken in the order of database ids, so the id comes first.
    const databaseId = database.databaseId ?? (await database.identify())
    refuseTwice(this.#context, database, databaseId)
    const waiting = this.#permits.take(database, this.#deadline.signal)
    if (waiting !== undefined) await waiting
    const [transactionId, progress] = [this.#transactionId, this.#progress]
    const branch = await openBranch(database, {
      transactionId,
      databaseId,
      progress,
      options: this.#settings,
      race: (answer) => this.#deadline.race(answer),
    })
    // Nobody waited for it any more.
    if (this.#givenUp) branch.link.abandon()
    this.#opened.push(branch)
    return branch
  }

  async #commit<T>(result: T): Promise<TransactionResult<T>> {
    const { finish } = this.#settings
    refuseUnawaited(this.#progress)
    const branches =
      this.#opened.length === this.#begun.size
        ? this.#opened
        : await this.#deadline.race(Promise.all(this.#begun.values()))
    refuseUnawaited(this.#progress)
    this.#progress.committing = true
    const work = { branches, deadline: this.#deadline, settings: this.#settings, isVoid: this.#isVoid }
    const { id, isFinished } = await commit(work)
    if (isFinished === undefined) {
      this.#release()
      return { result, id, finished: finish !== 'background' }
    }
    const ended = isFinished.then((finished) => {
      this.#release()
      if (!finished) this.#context.poke()
      return finished
    })
    // The decision stands; what is waited for is only that everybody sees it.
    const finished = finish === 'background' ? undefined : await answerUntil(this.#deadline.late, ended)
    if (finished === undefined) keepRunning(this.#context, ended)
    return { result, id, finished: finished ?? false }
  }

  /** Ends what was begun; gives the error for the caller. */
  async #rollBack(thrown: unknown): Promise<unknown> {
    this.#progress.returned = true
    this.#progress.committing = true
    // A server that does not answer to BEGIN holds up nobody once the transaction is given up.
    const outcomes = await this.#deadline.race(Promise.allSettled(this.#begun.values())).catch(() => [])
    this.#givenUp = true
    const error = thrown instanceof Settled ? thrown.error : thrown
    const code = codeOf(error)
    // One of them is not who it said it is, or not any more: the next transaction asks anew.
    if (code === 'ONIDN') for (const { database } of this.#opened) database.forgetDatabaseId()
    if (thrown instanceof Settled) {
      const tidied = thrown.tidied.then(() => {
        this.#release()
        this.#context.poke()
        return true
      })
      if (!(await answerUntil(this.#deadline.signal, tidied))) keepRunning(this.#context, tidied)
      return error
    }
    await rollBack(this.#opened, this.#deadline)
    this.#release()
    for (const outcome of outcomes)
      if (outcome.status === 'rejected' && outcome.reason instanceof OutOfOrder) return outcome.reason
    this.didNothing =
      code === 'CONNECTION_LOST' && this.#opened.length > 0 && this.#opened.every(({ answered }) => !answered)
    return error
  }

  #release(): void {
    for (const { link } of this.#opened) link.release()
    this.#permits.giveAll()
  }
}

/** What nobody waits for any more goes on; shutdown waits for it. */
function keepRunning({ background }: Context, task: Promise<unknown>): void {
  background.add(task)
  task.finally(() => background.delete(task))
}

/**
 * Permits: connections are taken in the order of their databases' ids by everybody, in whatever process, and
 * whatever names they have there, so no two can wait for each other.
 */
class Permits {
  readonly #held = new Set<Database>()
  #over = false
  // One after the other, or two waits of one transaction could be out of order among themselves.
  #last: Promise<unknown> = Promise.resolve()
  #waiting = 0

  /** Undefined if it is taken at once: it is free, and none of this transaction waits. */
  take(database: Database, signal: AbortSignal): Promise<void> | undefined {
    if (this.#waiting === 0 && !this.#over) {
      const isHeld = this.#held.has(database) || database.permits.tryTake()
      if (isHeld) return void this.#held.add(database)
    }
    this.#waiting += 1
    const taken = this.#last.then(() => this.#takeOne(database, signal))
    this.#last = taken
      .catch(() => {})
      .then(() => {
        this.#waiting -= 1
      })
    return taken
  }

  async takeAll(databases: ReadonlySet<Database>, signal: AbortSignal): Promise<void> {
    const inOrder = [...databases].sort((one, other) => (isBehind(one, other) ? 1 : -1))
    for (const database of inOrder) await this.#takeOne(database, signal)
  }

  giveAll(): void {
    this.#over = true
    for (const database of this.#held) database.permits.give()
    this.#held.clear()
  }

  async #takeOne(database: Database, signal: AbortSignal): Promise<void> {
    if (this.#held.has(database)) return
    if (!database.permits.tryTake()) {
      // Waiting is safe only for a database behind all those held; else somebody may wait the other way round.
      if ([...this.#held].some((held) => isBehind(held, database))) {
        throw new OutOfOrder(new Set([...this.#held, database]))
      }
      try {
        await database.permits.take(signal)
      } catch (cause) {
        const hint = 'Make the pool larger (maxConnections), or the handlers shorter'
        const what = `No connection to ${database.name} became free in time`
        throw new LimitError('NO_CONNECTION', what, { hint, cause })
      }
    }
    if (this.#over) {
      database.permits.give()
      throw new AbortedError('ABORTED', 'The transaction was given up')
    }
    this.#held.add(database)
  }
}

function isBehind(one: Database, other: Database): boolean {
  return (one.databaseId ?? '') > (other.databaseId ?? '')
}

/** Two names for one database would be two branches that wait for each other's locks. */
function refuseTwice(context: Context, database: Database, databaseId: string): void {
  // Whoever is asked second finds the pair.
  for (const other of context.databases.values()) {
    if (other === database || other.databaseId !== databaseId) continue
    const detail = `Both have the database id ${databaseId}.`
    const hint =
      'Give it one name. If one is a copy of the other, run in the copy: select once.renew_database_id(…)'
    const what = `${other.name} and ${database.name} are one database`
    throw new DatabaseError('SAME_DATABASE', what, { detail, hint })
  }
}
