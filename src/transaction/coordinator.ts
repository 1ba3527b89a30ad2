/**
 * The coordinator: one transaction over one or several databases, atomic over all of them.
 *
 * Several databases commit in two phases. One of those that were written to is the home; it does not
 * prepare. Its own ordinary transaction holds the decision row (`once.begin_global`), so its COMMIT is the
 * commit point: before it everything can be rolled back, after it nothing can. There is no other log.
 *
 *     work      BEGIN and the handler's SQL, each database at its first use
 *     vote      home: decision row, gives the xid | others: did you write? evidence row     in parallel
 *     prepare   others: PREPARE TRANSACTION                                                 in parallel, 1 flush
 *     decide    home: COMMIT                                                                1 flush
 *     finish    others: COMMIT PREPARED                                                     in parallel, 1 flush
 *
 * A coordinator that dies anywhere leaves branches in doubt; recovery asks the home and finishes them.
 *
 * @see Gray, Lamport: Consensus on Transaction Commit, 2006, section 3 (two-phase commit)
 * @see sql/transaction/
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { IsolationLevel, Transaction } from 'kysely'
import { type Database, inTime, withReadCommitted } from '../database/database.ts'
import type { Session } from '../database/session.ts'
import {
  AbortedError,
  codeOf,
  DatabaseError,
  fromSql,
  HandlerError,
  InvalidInputError,
  isErrorAnswer,
  isRetryable,
  LimitError,
  OutcomeUnknownError,
  PgonceError,
} from '../errors.ts'
import { type Branch, lazyTransaction, openBranch } from './branch.ts'
import { traced } from './channels.ts'
import { formatGid, formatId, type GlobalId, quoteGid } from './gid.ts'

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
  readonly isolationLevel?: IsolationLevel
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

const defaults = {
  timeout: 60_000,
  lockTimeout: 10_000,
  idleTimeout: 60_000,
  finish: 'await',
  retries: 5,
} as const

/** How long to wait for the answer to a question that only delays us. */
const patience = 10_000

const nested = new AsyncLocalStorage<Context>()

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
  body: (handles: Handles, begin: (name: string) => Promise<Branch>, transactionId: string) => Promise<T>,
): Promise<TransactionResult<T>> {
  if (nested.getStore() === context) {
    throw new HandlerError('NESTED', 'A transaction was begun inside the handler of another', {
      detail: 'It would neither be atomic with it nor could the two be kept from waiting for each other.',
      hint: 'Use the handles that the handler was given; run independent work outside it',
    })
  }
  const retries = options.retries ?? defaults.retries
  const timeout = AbortSignal.timeout(options.timeout ?? defaults.timeout)
  const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout
  let wanted: ReadonlySet<Database> = new Set()
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await runOnce(context, options, signal, wanted, body)
    } catch (error) {
      if (error instanceof OutOfOrder) {
        wanted = error.wanted
        attempt -= 1
        continue
      }
      if (attempt >= retries || !causes(error).some(isRetryable) || signal.aborted) throw error
      await sleep(Math.random() * 10 * 2 ** attempt)
    }
  }
}

function causes(error: unknown): unknown[] {
  const found: unknown[] = []
  for (let next = error; next != null && found.length < 8; next = (next as { cause?: unknown }).cause)
    found.push(next)
  return found
}

async function runOnce<T>(
  context: Context,
  options: TransactionOptions,
  signal: AbortSignal,
  wanted: ReadonlySet<Database>,
  body: (handles: Handles, begin: (name: string) => Promise<Branch>, transactionId: string) => Promise<T>,
): Promise<TransactionResult<T>> {
  const transactionId = randomUUID()
  const { lockTimeout = defaults.lockTimeout, idleTimeout = defaults.idleTimeout, isolationLevel } = options
  const permits = takePermits()
  const begun = new Map<Database, Promise<Branch>>()
  let open = true

  const begin = (database: Database): Promise<Branch> => {
    let branch = begun.get(database)
    if (branch === undefined) {
      branch = (async () => {
        await permits.take(database, signal)
        await checkDistinct(context, database)
        return await openBranch(database, { transactionId, lockTimeout, idleTimeout, isolationLevel })
      })()
      branch.catch(() => {})
      begun.set(database, branch)
    }
    return branch
  }
  const named = (name: string) => {
    const database = context.databases.get(name)
    if (database !== undefined) return database
    throw new InvalidInputError(
      'ONARG',
      `No database named ${name}; there are ${[...context.databases.keys()].join(', ')}`,
    )
  }
  const handles: Handles = {}
  for (const [name, database] of context.databases) {
    handles[name] = lazyTransaction(
      database,
      () => begin(database),
      () => open,
    )
  }

  const aborted = whenAborted(signal)
  let branches: Branch[] = []
  try {
    await aborted.race(permits.takeAll(wanted, signal))
    const running = nested.run(context, () => body(handles, (name) => begin(named(name)), transactionId))
    const result = await aborted.race(running)
    open = false
    branches = await aborted.race(Promise.all(begun.values()))
    const { id, unfinished } = await commit({
      transactionId,
      branches,
      aborted,
      patience: options.timeout ?? defaults.timeout,
      record: options.record ?? false,
      preferredHome: options.home,
    })
    const finished = unfinished.then((databases) => {
      release(branches, permits)
      if (databases.length > 0) context.poke()
      return databases.length === 0
    })
    if (options.finish === 'background') {
      context.background.add(finished)
      finished.finally(() => context.background.delete(finished))
      return { result, id, finished: false }
    }
    return { result, id, finished: await finished }
  } catch (error) {
    open = false
    const outcomes = await Promise.allSettled(begun.values())
    branches = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []))
    if (error instanceof Settled) context.poke()
    else await rollBack(branches, signal.aborted)
    release(branches, permits)
    const outOfOrder = outcomes.find(
      (outcome) => outcome.status === 'rejected' && outcome.reason instanceof OutOfOrder,
    )
    if (outOfOrder?.status === 'rejected') throw outOfOrder.reason
    throw error instanceof Settled ? error.error : error
  } finally {
    aborted.stop()
  }
}

/** Thrown while committing when the branches are dealt with already; what the caller gets is inside. */
class Settled extends Error {
  readonly error: unknown

  constructor(error: unknown) {
    super('the branches are dealt with')
    this.error = error
  }
}

// ---------------------------------------------------------------------------------------------------
// Permits: a database's connections are taken in one order by everybody, so no two can wait for each other

function takePermits() {
  const held = new Set<Database>()
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
async function checkDistinct(context: Context, database: Database): Promise<void> {
  const identity = await database.identify()
  // Whoever is asked second finds the pair.
  for (const other of context.databases.values()) {
    if (other !== database && other.identity === identity) throw sameDatabase(other, database)
  }
}

function sameDatabase(one: Database, other: Database): DatabaseError {
  return new DatabaseError('SAME_DATABASE', `${one.name} and ${other.name} are one database`, {
    detail: `Both have the identity ${one.identity}.`,
    hint: 'Give it one name. If one is a copy of the other, run in the copy: select once.renew_identity(…)',
  })
}

// ---------------------------------------------------------------------------------------------------
// Giving up in time

interface Abortion {
  race<T>(promise: Promise<T>): Promise<T>
  stop(): void
}

function whenAborted(signal: AbortSignal): Abortion {
  let listener = () => {}
  const aborted = new Promise<never>((_, reject) => {
    listener = () => {
      const reason = signal.reason as Error
      const timedOut = reason?.name === 'TimeoutError'
      reject(
        new AbortedError(
          timedOut ? 'TIMEOUT' : 'ABORTED',
          `The transaction was ${timedOut ? 'not decided in time' : 'aborted'}`,
          {
            detail: 'It is rolled back in every database.',
            cause: reason,
          },
        ),
      )
    }
    if (signal.aborted) listener()
    else signal.addEventListener('abort', listener, { once: true })
  })
  aborted.catch(() => {})
  return {
    race: (promise) => Promise.race([promise, aborted]),
    stop: () => signal.removeEventListener('abort', listener),
  }
}

/** Ends transactions that were not prepared; a connection that does not answer to it is given up. */
async function rollBack(branches: readonly Branch[], hurry: boolean): Promise<void> {
  await Promise.all(
    branches.map(async (branch) => {
      if (hurry) return branch.session.abandon()
      try {
        await branch.query('rollback')
      } catch {
        branch.session.abandon()
      }
    }),
  )
}

// ---------------------------------------------------------------------------------------------------
// Committing

interface Work {
  readonly transactionId: string
  readonly branches: readonly Branch[]
  readonly aborted: Abortion
  /** Milliseconds to wait for the answer to COMMIT. */
  readonly patience: number
  readonly record: boolean
  readonly preferredHome: string | undefined
}

interface Committed {
  readonly id: string | null
  /** The databases whose branch is left to recovery. */
  readonly unfinished: Promise<readonly Database[]>
}

const nothingUnfinished = Promise.resolve([])

/** @throws Settled if the branches are dealt with; anything else: nothing is decided, roll back */
async function commit(work: Work): Promise<Committed> {
  const [only] = work.branches
  if (only === undefined) return { id: null, unfinished: nothingUnfinished }
  if (work.branches.length === 1) return await commitInOnePhase(work, only)

  const { home, xid, writers, readers } = await collectVotes(work)
  // First, because a serializable transaction that only read may still fail.
  await work.aborted.race(Promise.all(readers.map((reader) => commitReader(reader))))
  if (home === undefined) return { id: null, unfinished: nothingUnfinished }
  if (writers.length === 0 || xid === null) {
    await home.send('select once.narrow_global($1::uuid, $2::text[], $2::uuid[])', [work.transactionId, '{}'])
    return await commitInOnePhase(work, home)
  }
  return await commitInTwoPhases(work, home, xid, writers)
}

/** One database wrote: its plain COMMIT is the decision. */
async function commitInOnePhase(work: Work, branch: Branch): Promise<Committed> {
  let id: string | null = null
  if (work.record) {
    const xid = await beginGlobal(work, branch, [])
    if (xid !== null)
      id = formatId({
        home: await branch.database.identify(),
        transactionId: work.transactionId,
        homeXid: xid,
      })
  } else if (branch.suspect) {
    await explained(branch, branch.send('select once.check_open($1::uuid)', [work.transactionId]))
  }
  const decision = await decide(work, branch)
  if (decision.outcome === 'committed') return { id, unfinished: nothingUnfinished }
  if (decision.outcome === 'aborted') throw decision.error
  branch.session.abandon()
  throw new Settled(outcomeUnknown(id, branch, decision.error))
}

async function commitReader(reader: Branch): Promise<void> {
  const { command } = await explained(reader, reader.query('commit'))
  if (command !== undefined && command !== 'COMMIT') throw swallowed(reader)
}

interface Votes {
  /** Undefined if nobody wrote anything. */
  readonly home: Branch | undefined
  /** Null if the home is the only one that wrote and has no decision row. */
  readonly xid: string | null
  /** Those that wrote, without the home: their evidence stands in their transactions. */
  readonly writers: readonly Branch[]
  readonly readers: readonly Branch[]
}

/**
 * Asks everybody in one round trip whether they wrote; the candidate for home answers with the xid of its
 * decision row. A candidate that wrote nothing is no home: it would be one participant more.
 */
async function collectVotes({ transactionId, branches, aborted, preferredHome }: Work): Promise<Votes> {
  const readers: Branch[] = []
  let candidates = branches
  for (;;) {
    const home =
      candidates.find(({ database }) => database.name === preferredHome) ?? (candidates[0] as Branch)
    const others = candidates.filter((branch) => branch !== home)
    const homeId = await home.database.identify()
    const [xid, wrote] = await aborted.race(
      allOrFirstCause(
        candidates,
        beginGlobal({ transactionId }, home, others),
        Promise.all(others.map((other) => castVote(transactionId, other, homeId))),
      ),
    )
    const writers = others.filter((_, index) => wrote[index])
    readers.push(...others.filter((branch) => !writers.includes(branch)))
    if (xid !== null) {
      if (writers.length > 0 && writers.length < others.length) await narrow(transactionId, home, writers)
      return { home, xid, writers, readers }
    }
    readers.push(home)
    const [next] = writers
    if (next === undefined || writers.length === 1) return { home: next, xid: null, writers: [], readers }
    // It has voted for the home that is none; a home leaves no evidence.
    await next.send('select once.narrow_global($1::uuid, $2::text[], $2::uuid[])', [transactionId, '{}'])
    candidates = writers
  }
}

/** What was sent ahead and failed explains why the votes did. */
async function allOrFirstCause<A, B>(
  branches: readonly Branch[],
  one: Promise<A>,
  other: Promise<B>,
): Promise<[A, B]> {
  const [ahead] = await Promise.allSettled([
    Promise.all(branches.map((branch) => branch.settle())),
    one,
    other,
  ])
  if (ahead.status === 'rejected') throw ahead.reason
  return [await one, await other]
}

/** The home's decision row; null if it wrote nothing. @see sql/transaction/begin_global.sql */
async function beginGlobal(
  { transactionId }: Pick<Work, 'transactionId'>,
  home: Branch,
  others: readonly Branch[],
): Promise<string | null> {
  return await traced('vote', { database: home.database.name, transactionId }, async () => {
    const { names, identities } = await participants(others)
    const { rows } = await explained(
      home,
      home.query<{ xid: string | null }>(
        'select once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[])::text as xid',
        [transactionId, names, identities],
      ),
    )
    return rows[0]?.xid ?? null
  })
}

/** Whether the participant wrote, with its evidence if so. @see sql/transaction/vote.sql */
async function castVote(transactionId: string, branch: Branch, home: string): Promise<boolean> {
  const { name } = branch.database
  return await traced('vote', { database: name, transactionId }, async () => {
    const { rows } = await explained(
      branch,
      branch.query<{ wrote: boolean }>('select once.vote($1::uuid, $2::uuid, $3) as wrote', [
        transactionId,
        home,
        name,
      ]),
    )
    return rows[0]?.wrote === true
  })
}

async function narrow(transactionId: string, home: Branch, writers: readonly Branch[]): Promise<void> {
  const { names, identities } = await participants(writers)
  await home.send('select once.narrow_global($1::uuid, $2::text::text[], $3::text::uuid[])', [
    transactionId,
    names,
    identities,
  ])
}

/** As array literals, which every driver passes on as they are. Names need no quotes: see checkDatabaseName. */
async function participants(branches: readonly Branch[]): Promise<{ names: string; identities: string }> {
  const identities = await Promise.all(branches.map(({ database }) => database.identify()))
  return {
    names: `{${branches.map(({ database }) => database.name).join(',')}}`,
    identities: `{${identities.join(',')}}`,
  }
}

async function commitInTwoPhases(
  work: Work,
  home: Branch,
  xid: string,
  writers: readonly Branch[],
): Promise<Committed> {
  const { transactionId } = work
  const global: GlobalId = { home: await home.database.identify(), transactionId, homeXid: xid }
  const id = formatId(global)
  const gidOf = (branch: Branch) => quoteGid(formatGid(global, branch.database.name))

  const answers = await Promise.allSettled(
    writers.map((writer) => work.aborted.race(prepare(transactionId, writer, gidOf(writer)))),
  )
  const failed = answers.find((answer) => answer.status === 'rejected')
  if (failed?.status === 'rejected') {
    const prepared = writers.filter((_, index) => answers[index]?.status === 'fulfilled')
    const refused = writers.filter((_, index) => {
      const answer = answers[index]
      return answer?.status === 'rejected' && isRefusal(answer.reason)
    })
    // Without an answer it may be prepared, now or later: only recovery can tell.
    for (const writer of writers)
      if (!prepared.includes(writer) && !refused.includes(writer)) writer.session.abandon()
    await undo(home, prepared, refused, gidOf)
    throw new Settled(failed.reason)
  }

  let decision = await decide(work, home)
  if (decision.outcome === 'unknown') {
    home.session.abandon()
    const answer = await ask(home.database, global, work.patience)
    if (answer === undefined) throw new Settled(outcomeUnknown(id, home, decision.error))
    decision =
      answer === 'committed'
        ? { outcome: 'committed' }
        : { outcome: 'aborted', error: lost(home, decision.error) }
  }
  if (decision.outcome === 'aborted') {
    // The server said so: the home's transaction is over, and its row was never visible.
    await Promise.all(
      writers.map((writer) => finish(transactionId, writer, `rollback prepared ${gidOf(writer)}`)),
    )
    throw new Settled(decision.error)
  }
  const unfinished = Promise.all(
    writers.map(async (writer) => {
      const finished = await finish(transactionId, writer, `commit prepared ${gidOf(writer)}`)
      return finished ? [] : [writer.database]
    }),
  ).then((databases) => databases.flat())
  return { id, unfinished }
}

/** Whether an error says for certain that the branch is not prepared. */
function isRefusal(error: unknown): boolean {
  return isErrorAnswer(error) || (error instanceof PgonceError && !(error instanceof AbortedError))
}

async function prepare(transactionId: string, branch: Branch, gid: string): Promise<void> {
  await traced('prepare', { database: branch.database.name, transactionId }, async () => {
    const { command } = await explained(branch, branch.query(`prepare transaction ${gid}`))
    if (command === 'PREPARE TRANSACTION') return
    if (command === undefined) {
      // No tag from this dialect: in a failed transaction PREPARE rolls back and reports no error, so look.
      const { rows } = await branch.query(`select from pg_prepared_xacts where gid = ${gid}`)
      if (rows.length === 1) return
    }
    throw swallowed(branch)
  })
}

/**
 * Nothing was decided, and since this coordinator never sent COMMIT to the home, nothing will be. Still a
 * branch is rolled back only when the home has confirmed that its transaction is over; otherwise, or when it
 * is not known whether a branch is prepared, recovery asks and finishes.
 */
async function undo(
  home: Branch,
  prepared: readonly Branch[],
  refused: readonly Branch[],
  gidOf: (branch: Branch) => string,
): Promise<void> {
  const over = await inTime(patience, home.query('rollback')).then(
    () => true,
    () => false,
  )
  if (!over) home.session.abandon()
  await Promise.all([
    ...(over ? prepared.map((branch) => finish('', branch, `rollback prepared ${gidOf(branch)}`)) : []),
    rollBack(refused, false),
  ])
}

type Decision =
  | { readonly outcome: 'committed' }
  | { readonly outcome: 'aborted' | 'unknown'; readonly error: unknown }

/**
 * COMMIT, with what was sent just before it. An ERROR from the server is a rollback for certain. Anything else
 * that is no answer is unknown, FATAL included: a server that shuts down may say it after committing.
 */
async function decide({ transactionId, patience }: Work, branch: Branch): Promise<Decision> {
  return await traced(
    'decide',
    { database: branch.database.name, transactionId },
    async (): Promise<Decision> => {
      const [before, commit] = await Promise.allSettled([
        branch.settle(),
        inTime(patience, branch.query('commit')),
      ])
      if (before.status === 'rejected' && isRefusal(before.reason)) {
        return { outcome: 'aborted', error: await reasonOf(branch, before.reason) }
      }
      if (commit.status === 'rejected') {
        return {
          outcome: isErrorAnswer(commit.reason) ? 'aborted' : 'unknown',
          error: await reasonOf(branch, commit.reason),
        }
      }
      const { command } = commit.value
      if (command !== undefined && command !== 'COMMIT')
        return { outcome: 'aborted', error: swallowed(branch) }
      return { outcome: 'committed' }
    },
  )
}

/** Asks the home until it answers for certain; undefined if it does not in time. */
async function ask(
  home: Database,
  global: GlobalId,
  time: number,
): Promise<'committed' | 'aborted' | undefined> {
  const deadline = performance.now() + time
  while (performance.now() < deadline) {
    try {
      const outcome = await readOutcome(home, global)
      if (outcome === 'committed' || outcome === 'aborted') return outcome
    } catch {
      // Not reachable yet; only an answer counts.
    }
    await sleep(50)
  }
  return undefined
}

/** @see sql/transaction/outcome.sql */
export async function readOutcome(
  home: Database,
  { home: homeId, transactionId, homeXid }: GlobalId,
): Promise<string> {
  const { rows } = await withReadCommitted(home.connectApart(), (session) =>
    session.query<{ outcome: string }>('select once.outcome($1::uuid, $2::uuid, $3::text::xid8) as outcome', [
      homeId,
      transactionId,
      homeXid,
    ]),
  )
  return rows[0]?.outcome ?? 'pending'
}

/**
 * Commits or rolls back a prepared branch on the connection that prepared it. False: left to recovery. Never
 * throws, for the decision is made.
 */
export async function finish(transactionId: string, branch: Branch, statement: string): Promise<boolean> {
  const { session, database } = branch
  return await traced('finish', { database: database.name, transactionId }, async () => {
    try {
      return await inTime(patience, finishPrepared(session, statement, transactionId))
    } catch {
      session.abandon()
      return false
    }
  })
}

/**
 * Runs COMMIT PREPARED or ROLLBACK PREPARED; false if it is not known to have happened. Recovery uses it too.
 */
export async function finishPrepared(
  session: Session,
  statement: string,
  transactionId: string,
): Promise<boolean> {
  for (;;) {
    try {
      await session.query(statement)
      return true
    } catch (error) {
      const code = codeOf(error)
      if (code === '55000') {
        // Somebody else is finishing it right now, or PREPARE still waits for a standby.
        await sleep(20)
      } else if (code === '42704') {
        // Somebody else has finished it, or it was lost. That it is gone proves nothing; evidence does.
        if (statement.startsWith('rollback')) return true
        const { rows } = await session.query('select from once.find_evidence(array[$1::uuid])', [
          transactionId,
        ])
        return rows.length === 1
      } else {
        throw error
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------
// Saying what went wrong

/** An error of our own statements, told in terms of what the handler or the database did. */
async function explained<T>(branch: Branch, answer: Promise<T>): Promise<T> {
  try {
    return await answer
  } catch (error) {
    throw await reasonOf(branch, error)
  }
}

async function reasonOf(branch: Branch, error: unknown): Promise<unknown> {
  const { name } = branch.database
  const cause = error
  switch (codeOf(error)) {
    case '25P02':
      return swallowed(branch)
    case '55000':
      return new DatabaseError(
        'PREPARE_DISABLED',
        `Database ${name} has prepared transactions switched off`,
        {
          detail: 'max_prepared_transactions is 0 on its server; nothing was committed anywhere.',
          hint: 'alter system set max_prepared_transactions = 100; and restart the server',
          cause,
        },
      )
    case '53200':
      return new LimitError(
        'NO_SLOTS',
        `The server of database ${name} has no room for another prepared transaction`,
        {
          detail:
            'All max_prepared_transactions are taken, or it is out of memory; nothing was committed anywhere.',
          hint: 'Look for orphans: npx pgonce in-doubt. If there are none: alter system set max_prepared_transactions = …, restart',
          cause,
        },
      )
    case '0A000':
      return new HandlerError(
        'CANNOT_PREPARE',
        `What the handler did in database ${name} cannot be prepared`,
        {
          detail: (error as Error).message,
          hint: 'Leave NOTIFY, LISTEN, temporary tables, WITH HOLD cursors and exported snapshots out of transactions over several databases',
          cause,
        },
      )
    case '42501':
      if (!branch.suspect) return error
      return new HandlerError(
        'ONROL',
        `The handler left a role in force in database ${name} that may not use schema once`,
        {
          detail: (error as Error).message,
          hint: 'Run RESET ROLE before the handler returns',
          cause,
        },
      )
    default:
      return fromSql(error)
  }
}

function swallowed(branch: Branch): HandlerError {
  return new HandlerError(
    'SWALLOWED',
    `A statement in database ${branch.database.name} failed, and the handler went on`,
    {
      detail: 'Postgres refuses everything after a failed statement, so the transaction was rolled back.',
      hint: 'Let the error out of the handler, or run the statement behind a savepoint',
      cause: branch.failure,
    },
  )
}

function lost(branch: Branch, cause: unknown): AbortedError {
  return new AbortedError(
    'CONNECTION_LOST',
    `The connection to ${branch.database.name} was lost; the transaction was rolled back`,
    {
      cause,
    },
  )
}

function outcomeUnknown(id: string | null, branch: Branch, cause: unknown): OutcomeUnknownError {
  return new OutcomeUnknownError(id, `Database ${branch.database.name} was lost while it was committing`, {
    detail: 'Whether it committed is decided there, but this process was not told.',
    hint:
      id === null
        ? 'Deliver the message again: its claim knows. Or use `record: true` to be able to ask'
        : `await once.outcome('${id}')`,
    cause,
  })
}
