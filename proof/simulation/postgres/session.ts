/**
 * One backend's session: its transaction block, what it has set, and the commands that change these. A text of several
 * commands outside of a block is one implicit block, which its end commits, and BEGIN makes an ordinary one.
 */
import {
  type Answer,
  abort,
  beginTransaction,
  commitTransaction,
  type Flushed,
  finishPrepared,
  type Pause,
  prepareTransaction,
  refuse,
  type SessionSettings,
  type SimulatedDatabase,
  type Transaction,
} from './server.ts'

/** One backend's state, as statements see it. */
export interface SessionState extends Mutable<SessionSettings> {
  readonly database: SimulatedDatabase
  readonly login: string
  readonly pid: number
  /** Of a transaction block, or of the text at hand. */
  transaction: Transaction | undefined
  /** The block ends with the text at hand. */
  implicit: boolean
  /** Advisory locks of the session. */
  advisory: number
  /** Whether `once_unlock` is prepared. */
  canUnlock: boolean
  /** A pooler gives it to one client of ours after another. */
  readonly isPooled: boolean
}

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] }

export type Values = readonly (string | null)[]

/** What one command does. */
export type Run = (
  session: SessionState,
  values: Values,
  flushed: Flushed,
) => Answer | Generator<Pause, Answer>

export interface Command {
  /** How its text begins. */
  readonly text: string
  readonly run: Run
}

export const tag = (command: string): Answer => ({ rows: [], command })
export const select = (...rows: Answer['rows']): Answer => ({ rows, command: 'SELECT', count: rows.length })

/** The error that strikes a text, and before which of its commands. */
export interface Refusal {
  readonly code: string
  /** At least 0, less than 1. */
  readonly place: number
}

/**
 * Runs the commands of a text in turn, up to the first that fails. One generator function for all: each that is
 * called leaves something behind, with all that it closes over, until the next full collection.
 */
export function* runText(
  session: SessionState,
  commands: readonly Command[],
  values: Values,
  flushed: Flushed,
  refusal: Refusal | undefined,
): Generator<Pause, Answer> {
  const refused = refusal && Math.floor(refusal.place * commands.length)
  let answer: Answer = tag('')
  try {
    for (let index = 0; index < commands.length; index += 1) {
      const { run } = commands[index] as Command
      if (session.transaction === undefined) {
        session.transaction = beginTransaction(session.database, undefined, session)
        session.implicit = true
      }
      if (index === refused) throw errorOf(refusal as Refusal)
      if (session.transaction.failed && !ending.has(run)) throw inFailed()
      const done = run(session, values, flushed)
      answer = 'next' in done ? yield* done : done
    }
    if (session.implicit) yield* end(session, flushed)
    return answer
  } catch (error) {
    fail(session)
    throw error
  }
}

function errorOf({ code }: Refusal) {
  return code === '0A000'
    ? refuse(code, 'cached plan must not change result type', 'ERROR', { routine: 'RevalidateCachedQuery' })
    : refuse(code, 'canceling statement')
}

export function inFailed() {
  return refuse('25P02', 'current transaction is aborted')
}

/** Ends the transaction and what it had set; in a block what is left is to end that, too. */
export function fail(session: SessionState): void {
  const { transaction, implicit } = session
  if (transaction === undefined) return
  if (!transaction.failed) undo(session, transaction)
  transaction.failed = true
  if (implicit) leave(session)
}

function undo(session: SessionState, transaction: Transaction): void {
  abort(transaction)
  if (transaction.before) Object.assign(session, transaction.before)
}

function leave(session: SessionState): void {
  session.transaction = undefined
  session.implicit = false
}

function* end(session: SessionState, flushed: Flushed): Generator<Pause, void> {
  const transaction = session.transaction as Transaction
  leave(session)
  try {
    yield* commitTransaction(transaction, flushed)
  } catch (error) {
    if (transaction.before) Object.assign(session, transaction.before)
    throw error
  }
}

// ---------------------------------------------------------------------------------------------------
// What begins and ends transactions

/** @param readWrite whatever the session's default */
export function begin(
  session: SessionState,
  isolation: string | null | undefined,
  readWrite: boolean,
): Answer {
  const transaction = session.transaction as Transaction
  if (session.implicit) {
    session.implicit = false
    if (isolation != null) transaction.isolation = isolation
    if (readWrite) transaction.readOnly = false
  }
  return tag('BEGIN')
}

export function* commit(session: SessionState, _: Values, flushed: Flushed): Generator<Pause, Answer> {
  const { failed } = session.transaction as Transaction
  if (failed) {
    leave(session)
    return tag('ROLLBACK')
  }
  yield* end(session, flushed)
  return tag('COMMIT')
}

export function rollback(session: SessionState): Answer {
  const transaction = session.transaction as Transaction
  if (!transaction.failed) undo(session, transaction)
  leave(session)
  return tag('ROLLBACK')
}

export const savepoint: Run = ({ implicit }) => {
  if (implicit) throw refuse('25P01', 'SAVEPOINT can only be used in transaction blocks')
  return tag('SAVEPOINT')
}

/** The implicit block of a text of several commands is prepared like any other. */
export function prepare(gid: (values: Values) => string): Run {
  const run: Run = function* (session, values, flushed) {
    const transaction = session.transaction as Transaction
    leave(session)
    if (transaction.failed) return tag('ROLLBACK')
    try {
      yield* prepareTransaction(transaction, gid(values), session.role, flushed)
    } catch (error) {
      if (transaction.before) Object.assign(session, transaction.before)
      throw error
    }
    return tag('PREPARE TRANSACTION')
  }
  ending.add(run)
  return run
}

/** COMMIT PREPARED or ROLLBACK PREPARED. */
export function* finish(
  session: SessionState,
  [verb, gid]: Values,
  flushed: Flushed,
): Generator<Pause, Answer> {
  if (!session.implicit) throw refuse('25001', 'cannot run inside a transaction block')
  yield* finishPrepared(session.database, String(gid), verb === 'commit', session.role, flushed)
  return tag(verb === 'commit' ? 'COMMIT PREPARED' : 'ROLLBACK PREPARED')
}

/** What is carried out in a failed block, too. */
const ending = new Set<Run>([commit, rollback])

/** @returns the same, which is asked in a failed block, too, and refuses that itself */
export function alsoInFailed(run: Run): Run {
  ending.add(run)
  return run
}

// ---------------------------------------------------------------------------------------------------
// What a session has set

/** For longer than the transaction, if that commits. */
export function set(session: SessionState, settings: Partial<SessionSettings>): void {
  const { transaction, role, synchronousCommit, defaultReadOnly, temp } = session
  if (transaction) transaction.before ??= { role, synchronousCommit, defaultReadOnly, temp }
  Object.assign(session, settings)
  if (transaction && 'synchronousCommit' in settings)
    transaction.synchronousCommit =
      settings.synchronousCommit ?? session.database.server.settings.synchronousCommit
}

/** RESET ALL: not the role. */
export function resetAll(session: SessionState): Answer {
  set(session, { synchronousCommit: undefined, defaultReadOnly: undefined })
  const transaction = session.transaction as Transaction
  transaction.mark = ''
  transaction.lockTimeout = session.database.server.settings.lockTimeout ?? 0
  transaction.idleTimeout = 0
  return tag('RESET')
}

export const isReadOnly = ({ database, defaultReadOnly }: SessionState) =>
  defaultReadOnly ?? database.server.fencedAt !== undefined

/** Deferred triggers and constraints. */
export function setConstraints({ transaction }: SessionState): Answer {
  const { deferred, softens } = transaction as Transaction
  if (softens) {
    ;(transaction as Transaction).synchronousCommit = 'off'
    ;(transaction as Transaction).softens = false
  }
  if (deferred !== undefined) throw refuse(deferred, 'a deferred constraint is violated')
  return tag('SET CONSTRAINTS')
}
