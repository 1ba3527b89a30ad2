/**
 * Every error of this package, and which SQLSTATE becomes which; docs/api.md#errors says what to do about each. Errors
 * that a handler raises, and SQL errors of its own statements, pass through as they are.
 */

/** What an error carries beside its message. */
export interface PgonceErrorOptions extends ErrorOptions {
  /** What exactly was found; undefined if the message says it all. */
  readonly detail?: string | undefined
  /** What to type next; undefined if there is nothing to do. */
  readonly hint?: string | undefined
}

/** The root. `code` is a SQLSTATE of class `ON` where SQL raised it, else a word in capitals. */
export class PgonceError extends Error implements PgonceErrorOptions {
  readonly code: string
  readonly detail: string | undefined
  readonly hint: string | undefined

  constructor(code: string, message: string, options: PgonceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = new.target.name
    this.code = code
    this.detail = options.detail
    this.hint = options.hint
  }
}

/** An argument is not what was expected (`ONARG`); nothing was done. */
export class InvalidInputError extends PgonceError {}

/** A newer incarnation of this producer, or a newer owner of this partition, exists (`ONFEN`): stop. */
export class FencedError extends PgonceError {}

/** In strict mode, a sequence that does not follow the last one (`ONGAP`): deliver what is missing first. */
export class SequenceGapError extends PgonceError {}

/**
 * A bound was reached: gaps of a producer (`ONMAX`), prepared transactions (`NO_SLOTS`), connections of the pool
 * (`NO_CONNECTION`) or of the server (`TOO_MANY_CONNECTIONS`), the time for a lock (`LOCK_TIMEOUT`).
 */
export class LimitError extends PgonceError {}

/** The same key with another payload (`ONPAY`): two messages share one key. */
export class PayloadMismatchError extends PgonceError {}

/** A position is not where the consumer believed (`ONCAS`), or the partition was never taken (`ONTKN`). */
export class PositionError extends PgonceError {}

/**
 * A handler did what a handler must not (`ONEND`, `ONROL`, `SWALLOWED`, `NOT_EXECUTED`, `NOT_AWAITED`, `NESTED`,
 * `CANNOT_PREPARE`, `COPY`, `ENDED`), and everything was rolled back.
 */
export class HandlerError extends PgonceError {}

/**
 * A database cannot do what it is asked. We do not get in (`NO_DATABASE`, `LOGIN_REFUSED`, `NO_PRIVILEGE`); it is not the
 * right one (`SERVER_VERSION`, `ONSTB`, `ONCPY`, `ONRLS`, `ONIDN`, `SAME_DATABASE`), not set up (`NOT_INSTALLED`,
 * `SCHEMA_VERSION`, `FOREIGN_SCHEMA`, `MIGRATION_FAILED`, `PREPARE_DISABLED`, `ONEXT`, `ONPER`), or not as we need it
 * (`READ_ONLY`, `DRIVER`, `NO_STATEMENT`, `ONISO`).
 */
export class DatabaseError extends PgonceError {}

/**
 * The transaction was given up before its decision and rolled back: by the caller (`ABORTED`, `CLOSED`), in time
 * (`TIMEOUT`), for want of a connection (`CONNECTION_LOST`), or by COMMIT after a failed statement (`ROLLED_BACK`).
 */
export class AbortedError extends PgonceError {}

/**
 * The decision was asked for and its answer was lost (`OUTCOME_UNKNOWN`). What was decided stands and recovery
 * completes it. Never retry blindly: ask `once.outcome(error.id)`, or deliver the message again: its claim knows.
 */
export class OutcomeUnknownError extends PgonceError {
  /** For `once.outcome(id)`; null if the transaction left no row (one database, without `record`). */
  readonly id: string | null

  constructor(id: string | null, message: string, options: PgonceErrorOptions = {}) {
    super('OUTCOME_UNKNOWN', message, options)
    this.id = id
  }
}

type ErrorClass = new (code: string, message: string, options?: PgonceErrorOptions) => PgonceError

const classes: readonly (readonly [ErrorClass, readonly string[]])[] = [
  [InvalidInputError, ['ONARG']],
  [FencedError, ['ONFEN']],
  [SequenceGapError, ['ONGAP']],
  [LimitError, ['ONMAX']],
  [PayloadMismatchError, ['ONPAY']],
  [PositionError, ['ONCAS', 'ONTKN']],
  [HandlerError, ['ONEND', 'ONROL']],
  [DatabaseError, ['ONISO', 'ONSTB', 'ONIDN', 'ONCPY', 'ONRLS', 'ONEXT', 'ONPER']],
]

/** The SQLSTATE (or the client's own code) of an error of any driver; undefined if it has none. */
export function codeOf(error: unknown): string | undefined {
  // What a handler throws may be anything, with getters that throw in turn.
  try {
    const { code } = error as { code?: unknown }
    return typeof code === 'string' ? code : undefined
  } catch {
    return undefined
  }
}

/** The error and what caused it. What an unknown outcome says about its cause says nothing about what was decided. */
export function causes(error: unknown): unknown[] {
  const found: unknown[] = []
  try {
    for (let next = error; next != null && found.length < 8; next = (next as { cause?: unknown }).cause) {
      found.push(next)
      if (next instanceof OutcomeUnknownError) break
    }
  } catch {
    // A getter that throws is the end of what can be known.
  }
  return found
}

/** What an error says, and what it says to do, in one line: for reports, which have no place for a hint. */
export function withHint(error: unknown): string {
  const { message, hint } = error as { message: string; hint?: unknown }
  return typeof hint === 'string' ? `${message}. ${hint}` : message
}

/** Turns what SQL raised under our class `ON` into our error; anything else comes back unchanged. */
export function fromSql(error: unknown): unknown {
  const code = codeOf(error)
  const [Class] = classes.find(([, codes]) => codes.some((one) => one === code)) ?? []
  if (Class === undefined || code === undefined || error instanceof PgonceError) return error
  const { message, detail, hint } = error as Error & PgonceErrorOptions
  return new Class(code, message, { detail, hint, cause: error })
}

/** As {@link fromSql}, for statements of ours in a transaction: names the database. Handlers get Postgres's own error. */
export function fromOwn(database: string, error: unknown): unknown {
  const cause = error
  const { message, detail, hint } = error as PgonceErrorOptions & Error
  const said = `Postgres says: ${message}`
  switch (codeOf(error)) {
    case '55P03': {
      const what = `Timed out waiting for a lock in database ${database}`
      return new LimitError('LOCK_TIMEOUT', what, { detail: said, hint: lockHint, cause })
    }
    case '25006': {
      const what = `Database ${database} is read-only`
      return new DatabaseError('READ_ONLY', what, { detail: said, hint: readOnlyHint, cause })
    }
    case '26000': {
      const what = `A prepared statement is gone in database ${database}`
      return new DatabaseError('NO_STATEMENT', what, { detail: said, hint: poolerHint, cause })
    }
    case 'ONEND':
      if (error instanceof PgonceError) return error
      return new HandlerError('ONEND', `${message}, in database ${database}`, { detail, hint, cause })
    default:
      return fromSql(error)
  }
}

const lockHint =
  'If a branch in doubt has it (npx pgonce in-doubt), recovery frees it: once.recovery.start(), or ' +
  'npx pgonce recover. If another transaction has it, make that one shorter, or lockTimeout longer'
const readOnlyHint =
  'Is it a standby, or did somebody set default_transaction_read_only, because a disk was full? pgonce doctor tells'
const poolerHint =
  'Is a pooler in transaction mode in between? Switch prepared statements off in the driver of your instance'

/** Whether the server sent this error, as opposed to a network or a driver. */
export function isServerError(error: unknown): boolean {
  if (!/^[0-9A-Z]{5}$/.test(codeOf(error) ?? '')) return false
  return typeof (error as { severity?: unknown }).severity === 'string'
}

/**
 * Whether the server answered ERROR: the statement did nothing, for certain. FATAL is no such answer, since a
 * server that shuts down may say it after a COMMIT or PREPARE has taken effect. Nor is what a pooler between us says
 * when it has lost the server: a connection exception (08), or that the completion of a statement is not known.
 */
export function isErrorAnswer(error: unknown): boolean {
  if (!isServerError(error)) return false
  const { code, severity } = error as { code: string; severity: string }
  if (/^(08...|40003)$/.test(code)) return false
  // Field S of an error response is in the server's language, and `pg` reads no other (postgres.js reads V).
  if (severity === 'ERROR') return true
  return severity !== 'FATAL' && severity !== 'PANIC' && !mayBeFatal.test(code)
}

/** Codes that come with FATAL or PANIC as well; in a language that we do not know, these count as that. */
const mayBeFatal = /^(57P..|58...|XX...|28...|53...|25P0[34]|3D000|F0...|72...)$/

/** The transaction did nothing, and doing it again may succeed: deadlock, serialization failure, what is outdated. */
export function isRetryable(error: unknown): boolean {
  const code = codeOf(error)
  return code === '40001' || code === '40P01' || isOutdated(error)
}

/** A statement was prepared before somebody changed what it reads (0A000), or for another session (26000). */
export function isOutdated(error: unknown): boolean {
  const code = codeOf(error)
  if (code !== '0A000') return code === '26000'
  return (error as { routine?: unknown }).routine === 'RevalidateCachedQuery'
}
