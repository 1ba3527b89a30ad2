/**
 * The coordinator: runs a handler over one or several databases, and commits what it did in all of them or in
 * none. Here are its beginning and its end: options, branches begun at their first use, permits, giving up in
 * time, running anew. How a commit is decided and finished is in `commit.ts`.
 *
 * A coordinator that dies anywhere leaves branches in doubt; recovery asks the home and finishes them.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import type { Transaction } from 'kysely'
import { checkBoolean, checkInteger, checkMilliseconds, checkSignal, show } from '../check.ts'
import type { Database } from '../connection/database.ts'
import { environment } from '../environment.ts'
import {
  AbortedError,
  codeOf,
  DatabaseError,
  HandlerError,
  InvalidInputError,
  isRetryable,
  LimitError,
  OutcomeUnknownError,
} from '../errors.ts'
import { answerUntil, whenAborted } from './abortion.ts'
import { type Branch, lazyTransaction, openBranch } from './branch.ts'
import { commit, rollBack, Settled } from './commit.ts'
import { candidateAmong } from './votes.ts'

/** Postgres's, of which it takes the first for the second. */
const isolationLevels = ['read uncommitted', 'read committed', 'repeatable read', 'serializable'] as const

export interface TransactionOptions {
  /** Gives up and rolls back, up to the decision; afterwards it has no effect. */
  readonly signal?: AbortSignal
  /** Milliseconds until the transaction is given up and rolled back if it is not decided. @defaultValue 60000 */
  readonly timeout?: number
  /** Milliseconds a statement waits for a lock; 0: for ever. @defaultValue 10000 */
  readonly lockTimeout?: number
  /**
   * Milliseconds after which the server ends a branch that does nothing, so that a coordinator which
   * vanished does not hold its locks; 0: never. Prepared branches are not concerned. @defaultValue 60000
   */
  readonly idleTimeout?: number
  /** @defaultValue as the sessions have it, in Postgres read committed */
  readonly isolationLevel?: (typeof isolationLevels)[number]
  /**
   * Whether to wait until every branch is committed (`await`), or only for the decision (`background`): it
   * stands either way, but until the branch is finished other transactions do not see its effects there.
   * @defaultValue 'await'
   */
  readonly finish?: 'await' | 'background'
  /** The database to prefer as home if it was written to. @defaultValue the first that was used */
  readonly home?: string
  /** How often to run the handler anew after a deadlock or serialization failure. @defaultValue 5 */
  readonly retries?: number
  /**
   * Record the outcome even if one database only was written to, so that `once.outcome(id)` can tell it
   * should the answer to COMMIT be lost. Costs a row and a round trip. @defaultValue false
   */
  readonly record?: boolean
}

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

/** A handler, and `begin` to begin one branch ahead of its first query. */
export type TransactionBody<T> = (
  handles: Handles,
  begin: (name: string) => Promise<Branch>,
  transactionId: string,
) => Promise<T>

export const defaults = {
  timeout: 60_000,
  lockTimeout: 10_000,
  idleTimeout: 60_000,
  finish: 'await',
  retries: 5,
} as const

/** @throws InvalidInputError `ONARG` */
export function checkOptions(options: TransactionOptions): TransactionOptions {
  // As numbers: a bigint is taken as well, and timers take none.
  const numbers: { -readonly [What in 'lockTimeout' | 'idleTimeout' | 'timeout' | 'retries']?: number } = {}
  for (const what of ['lockTimeout', 'idleTimeout'] as const) {
    if (options[what] !== undefined) numbers[what] = checkMilliseconds(what, options[what])
  }
  if (options.timeout !== undefined) numbers.timeout = checkMilliseconds('timeout', options.timeout, 1)
  if (options.retries !== undefined)
    numbers.retries = Number(checkInteger('retries', options.retries, 0n, 1000n))
  if (options.signal !== undefined) checkSignal('signal', options.signal)
  checkBoolean('record', options.record, false)
  const { finish = 'await', isolationLevel } = options
  if (finish !== 'await' && finish !== 'background') {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`finish\` to be 'await' or 'background', got ${show(finish)}`,
    )
  }
  if (
    isolationLevel !== undefined &&
    // A string by its type: it goes into the text of BEGIN.
    !(typeof isolationLevel === 'string' && isolationLevels.includes(isolationLevel))
  ) {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`isolationLevel\` to be ${isolationLevels.map((level) => `'${level}'`).join(', ')}, got ${show(isolationLevel)}`,
    )
  }
  return { ...options, ...numbers }
}

/** @throws InvalidInputError `ONARG` */
export function databaseNamed(databases: ReadonlyMap<string, Database>, name: string): Database {
  const database = databases.get(name)
  if (database !== undefined) return database
  throw new InvalidInputError(
    'ONARG',
    `No database named ${typeof name === 'string' ? name.slice(0, 100) : show(name)}; there are ${[...databases.keys()].join(', ')}`,
  )
}

/** Milliseconds. */
const longestBackoff = 1_000

/** Set inside a handler, and in whatever it starts; `over` as soon as it has returned. */
const nested = new AsyncLocalStorage<{ readonly context: Context; over: boolean }>()

/** A database was wanted out of order, and taking it might have closed a circle: begin anew, with all of them. */
class OutOfOrder extends Error {
  readonly wanted: ReadonlySet<Database>

  constructor(wanted: ReadonlySet<Database>) {
    super('the handler is run anew to take its databases in order')
    this.wanted = wanted
  }
}

/**
 * Runs a handler and commits what it did in all databases, or in none.
 *
 * @param body gets the handles, and `begin` to begin one branch ahead of its first query
 * @throws what the handler throws, after rolling back; `AbortedError`, `HandlerError`, `LimitError`,
 *   `DatabaseError` likewise; `OutcomeUnknownError` if the decision's answer was lost
 */
export async function runTransaction<T>(
  context: Context,
  options: TransactionOptions,
  body: TransactionBody<T>,
): Promise<TransactionResult<T>> {
  const outer = nested.getStore()
  if (outer?.context === context && !outer.over) {
    throw new HandlerError('NESTED', 'A transaction was begun inside the handler of another', {
      detail: 'It would neither be atomic with it nor could the two be kept from waiting for each other.',
      hint: 'Use the handles that the handler was given; run independent work outside it',
    })
  }
  const retries = options.retries ?? defaults.retries
  // AbortSignal.timeout() would do, but costs more, and its timers stay behind: one for each transaction of
  // the last minute.
  const late = new AbortController()
  const stopTimer = environment.after(options.timeout ?? defaults.timeout, () => {
    late.abort(new DOMException('The transaction was not decided in time', 'TimeoutError'))
  })
  const signal = options.signal ? AbortSignal.any([options.signal, late.signal]) : late.signal
  let wanted: ReadonlySet<Database> = new Set()
  try {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await runOnce(context, options, { signal, late: late.signal }, wanted, body)
      } catch (error) {
        if (error instanceof OutOfOrder) {
          wanted = error.wanted
          attempt -= 1
          continue
        }
        if (attempt >= retries || !causes(error).some(isRetryable) || signal.aborted) throw error
        const pause = environment.random() * Math.min(10 * 2 ** attempt, longestBackoff)
        await environment.sleep(pause, signal).catch(() => {
          throw error
        })
      }
    }
  } finally {
    stopTimer()
  }
}

function causes(error: unknown): unknown[] {
  const found: unknown[] = []
  for (let next = error; next != null && found.length < 8; next = (next as { cause?: unknown }).cause) {
    found.push(next)
    // What it says about why the answer was lost says nothing about what was decided.
    if (next instanceof OutcomeUnknownError) break
  }
  return found
}

async function runOnce<T>(
  context: Context,
  options: TransactionOptions,
  { signal, late }: { readonly signal: AbortSignal; readonly late: AbortSignal },
  wanted: ReadonlySet<Database>,
  body: TransactionBody<T>,
): Promise<TransactionResult<T>> {
  const transactionId = environment.randomUUID()
  const { lockTimeout = defaults.lockTimeout, idleTimeout = defaults.idleTimeout, isolationLevel } = options
  const permits = takePermits()
  const begun = new Map<Database, Promise<Branch>>()
  const opened: Branch[] = []
  let givenUp = false
  const progress = { returned: false, committing: false }

  const begin = (database: Database): Promise<Branch> => {
    let branch = begun.get(database)
    if (branch === undefined) {
      branch = (async () => {
        await permits.take(database, signal)
        const databaseId = await checkDistinct(context, database)
        const open = await openBranch(database, {
          transactionId,
          databaseId,
          lockTimeout,
          idleTimeout,
          isolationLevel,
          progress,
        })
        // Nobody waited for it any more.
        if (givenUp) open.session.abandon()
        opened.push(open)
        return open
      })()
      branch.catch(() => {})
      begun.set(database, branch)
      // With its xid known in time the commit saves a round trip: see knownHome.
      const home = candidateAmong([...begun.keys()], ({ name }) => name, options.home)
      if (home !== undefined && home !== database)
        begun.get(home)?.then(
          (first) => first.noteXid(),
          () => {},
        )
    }
    return branch
  }
  const handles: Handles = {}
  for (const [name, database] of context.databases) {
    handles[name] = lazyTransaction(database, () => begin(database), progress)
  }

  const aborted = whenAborted(signal)
  const scope = { context, over: false }
  let branches: Branch[] = []
  try {
    await aborted.race(permits.takeAll(wanted, signal))
    const running = nested.run(scope, () =>
      body(handles, (name) => begin(databaseNamed(context.databases, name)), transactionId),
    )
    const result = await aborted.race(running)
    progress.returned = true
    scope.over = true
    branches = await aborted.race(Promise.all(begun.values()))
    await aborted.race(Promise.all(branches.map((branch) => branch.opened())))
    progress.committing = true
    const { id, unfinished } = await commit({
      branches,
      aborted,
      answerTimeout: options.timeout ?? defaults.timeout,
      record: options.record ?? false,
      preferredHome: options.home,
    })
    if (unfinished === undefined) {
      release(branches, permits)
      return { result, id, finished: options.finish !== 'background' }
    }
    const finished = unfinished.then((databases) => {
      release(branches, permits)
      if (databases.length > 0) context.poke()
      return databases.length === 0
    })
    // The decision stands; what is waited for is only that everybody sees it.
    const isFinished = options.finish === 'background' ? undefined : await answerUntil(late, finished)
    if (isFinished === undefined) keepRunning(context, finished)
    return { result, id, finished: isFinished ?? false }
  } catch (error) {
    progress.returned = true
    progress.committing = true
    scope.over = true
    // A server that does not answer to BEGIN holds up nobody once the transaction is given up.
    const outcomes = await aborted.race(Promise.allSettled(begun.values())).catch(() => [])
    givenUp = true
    branches = opened
    // One of them is not who it said it is, or not any more: the next transaction asks anew.
    if (codeOf(error instanceof Settled ? error.error : error) === 'ONIDN')
      for (const { database } of branches) database.forgetDatabaseId()
    if (error instanceof Settled) {
      const tidied = error.tidied.then(() => {
        release(opened, permits)
        context.poke()
        return true
      })
      if (!(await answerUntil(signal, tidied))) keepRunning(context, tidied)
    } else {
      await rollBack(opened, aborted)
      release(opened, permits)
    }
    const outOfOrder = outcomes.find(
      (outcome) => outcome.status === 'rejected' && outcome.reason instanceof OutOfOrder,
    )
    if (outOfOrder?.status === 'rejected') throw outOfOrder.reason
    throw error instanceof Settled ? error.error : error
  } finally {
    aborted.stop()
  }
}

/** What nobody waits for any more goes on; shutdown waits for it. */
function keepRunning({ background }: Context, task: Promise<unknown>): void {
  background.add(task)
  task.finally(() => background.delete(task))
}

// ---------------------------------------------------------------------------------------------------
// Permits: a database's connections are taken in one order by everybody, so no two can wait for each other

function takePermits() {
  const held = new Set<Database>()
  let over = false
  // One after the other, or two waits of one transaction could be out of order among themselves.
  let last: Promise<unknown> = Promise.resolve()

  const takeOne = async (database: Database, signal: AbortSignal) => {
    if (held.has(database)) return
    if (!database.permits.tryTake()) {
      // Waiting is safe only for a database behind all those held; else somebody may wait the other way round.
      if ([...held].some(({ order }) => order > database.order))
        throw new OutOfOrder(new Set([...held, database]))
      try {
        await database.permits.take(signal)
      } catch (cause) {
        throw new LimitError('NO_CONNECTION', `All connections to ${database.name} stayed in use`, {
          hint: 'Make the pool larger (maxConnections), or the handlers shorter',
          cause,
        })
      }
    }
    if (over) {
      database.permits.give()
      throw new AbortedError('ABORTED', 'The transaction was given up')
    }
    held.add(database)
  }
  return {
    take(database: Database, signal: AbortSignal): Promise<void> {
      const taken = last.then(() => takeOne(database, signal))
      last = taken.catch(() => {})
      return taken
    },
    async takeAll(databases: ReadonlySet<Database>, signal: AbortSignal): Promise<void> {
      for (const database of [...databases].sort((a, b) => a.order - b.order)) await takeOne(database, signal)
    },
    giveAll() {
      over = true
      for (const database of held) database.permits.give()
      held.clear()
    },
  }
}

function release(branches: readonly Branch[], permits: ReturnType<typeof takePermits>): void {
  for (const { session } of branches) session.release()
  permits.giveAll()
}

/** Two names for one database would be two branches that wait for each other's locks. */
async function checkDistinct(context: Context, database: Database): Promise<string> {
  const databaseId = await database.identify()
  // Whoever is asked second finds the pair.
  for (const other of context.databases.values()) {
    if (other !== database && other.databaseId === databaseId) throw sameDatabase(other, database)
  }
  return databaseId
}

function sameDatabase(one: Database, other: Database): DatabaseError {
  return new DatabaseError('SAME_DATABASE', `${one.name} and ${other.name} are one database`, {
    detail: `Both have the database id ${one.databaseId}.`,
    hint: 'Give it one name. If one is a copy of the other, run in the copy: select once.renew_database_id(…)',
  })
}
