/**
 * The options, in tables: each with its check, and its default. A name that is in no table is refused: whoever wrote it
 * expects it to do something.
 */
import {
  type Check,
  checkBoolean,
  checkFunction,
  checkInteger,
  checkMilliseconds,
  checkObject,
  checkSignal,
  oneOf,
  show,
} from './check.ts'
import type { MigrationStep } from './database/migrate.ts'
import type { MigrationFile } from './database/migration.ts'
import { InvalidInputError } from './errors.ts'
import type { RecoveryReport } from './recovery/report.ts'

interface Option<T, Default> {
  readonly check: Check<T>
  readonly byDefault: Default
}

type Table = Readonly<Record<string, Option<unknown, unknown>>>

/** As they are given: undefined is as if left out. */
type Given<Options> = {
  readonly [Name in keyof Options]?: (Options[Name] extends Option<infer T, unknown> ? T : never) | undefined
}

/** As they are used. */
type Complete<Options> = {
  readonly [Name in keyof Options]: Options[Name] extends Option<infer T, infer Default> ? T | Default : never
}

const optional = <T>(check: Check<T>): Option<T, undefined> => ({ check, byDefault: undefined })
const option = <T>(check: Check<T>, byDefault: T): Option<T, T> => ({ check, byDefault })
const milliseconds = (byDefault: number) => option(checkMilliseconds, byDefault)
const atLeastOne = (byDefault: number) =>
  option((name, value) => checkMilliseconds(name, value, 1), byDefault)
/** Checked later, by those who know more. */
const asGiven = <T>(_name: string, value: unknown) => value as T

export const transactionOptions = {
  /** Gives up and rolls back, up to the decision; afterwards it has no effect. */
  signal: optional(checkSignal),
  /** Milliseconds until the transaction is given up and rolled back if it is not decided. @defaultValue 60000 */
  timeout: atLeastOne(60_000),
  /** Milliseconds a statement waits for a lock; 0: forever. @defaultValue 10000 */
  lockTimeout: milliseconds(10_000),
  /** Milliseconds until the server ends a branch that is idle and not prepared; 0: never. @defaultValue 60000 */
  idleTimeout: milliseconds(60_000),
  /** It goes into the text of BEGIN. @defaultValue as the sessions have it, in Postgres read committed */
  isolationLevel: optional(oneOf('read uncommitted', 'read committed', 'repeatable read', 'serializable')),
  /** Wait until all branches are committed and seen by others, or only for the decision. @defaultValue 'await' */
  finish: option(oneOf('await', 'background'), 'await'),
  /** The database to prefer as home if it was written to. @defaultValue the first that was used */
  home: optional(asGiven<string>),
  /** How often to run the handler again where nothing happened and it helps: after a deadlock, say. @defaultValue 5 */
  retries: option((name, value) => Number(checkInteger(name, value, 0n, 1000n)), 5),
  /** Record the outcome for `once.outcome(id)`, also of one database: a row and a round trip. @defaultValue false */
  record: option(checkBoolean, false),
}

export type TransactionOptions = Given<typeof transactionOptions>

/** The options of a transaction as they are used. */
export type TransactionSettings = Complete<typeof transactionOptions>

export const clientOptions = {
  /** See `PgonceOptions`. */
  databases: optional(asGiven<object>),
  /**
   * How many connections at once: the size of a pool of ours, unless options of postgres.js say `max`; for a Kysely
   * instance, how many of its pool are ours, unless it comes as `{ kysely, maxConnections }`. @defaultValue 10
   */
  maxConnections: option((name, value) => Number(checkInteger(name, value, 1n, 10_000n)), 10),
  /** Milliseconds to wait for a connection, and for a database to say who it is. @defaultValue 10000 */
  connectTimeout: milliseconds(10_000),
  /** Options of every transaction that does not say otherwise. */
  transaction: option<Omit<TransactionOptions, 'signal'>>(
    (name, value) => checkOptions(checkObject(name, value as object)),
    {},
  ),
}

export type ClientOptions = Omit<Given<typeof clientOptions>, 'databases'>

export const runOptions = {
  /** Leave branches alone that are younger (milliseconds): their coordinator is probably at them. @defaultValue 0 */
  settle: milliseconds(0),
  /** Purge what is proven for longer (milliseconds). @defaultValue 600000, ten minutes */
  keep: milliseconds(600_000),
  /** Prove and purge, too. @defaultValue true */
  purge: option(checkBoolean, true),
  /** Compare all evidence with the decisions at its homes, as `recovery.audit()` does. @defaultValue false */
  audit: option(checkBoolean, false),
}

export type RunOptions = Given<typeof runOptions>

export const startOptions = {
  /** Purge what is proven for longer (milliseconds). @defaultValue 600000, ten minutes */
  keep: runOptions.keep,
  /** Milliseconds between two looks; a quarter of it while branches are young or pending. @defaultValue 1000 */
  interval: milliseconds(1_000),
  /**
   * Called after each look at a database that found anything, and after the first that found nothing any more. Counts
   * and losses are of this look; what is unfinished and who is unreachable, of the last look at every database.
   */
  onReport: optional(checkFunction<(report: RecoveryReport) => unknown>),
}

export type StartOptions = Given<typeof startOptions>

const migrations = {
  /** For tests. @defaultValue the ones that this package ships, in order @internal */
  migrations: optional(asGiven<readonly MigrationFile[]>),
}

export const migrateOptions = {
  /** Look, but change nothing: what would run has the status `pending`. @defaultValue false */
  dryRun: option(checkBoolean, false),
  /** Milliseconds that the database may take to answer at first; an instance has its own. @defaultValue 10000 */
  connectTimeout: atLeastOne(10_000),
  /** Milliseconds to wait for a lock of a running transaction, before it gives up; 0: forever. @defaultValue 10000 */
  lockTimeout: milliseconds(10_000),
  /** Called after each migration that was installed. */
  onProgress: optional(checkFunction<(step: MigrationStep) => void>),
  ...migrations,
}

export type MigrateOptions = Given<typeof migrateOptions>

export const migrationSqlOptions = {
  /** The schema version that the database has, as `once.schema_version()` gives it. @defaultValue 0, not installed */
  from: option(asGiven<number>, 0),
  ...migrations,
}

export type MigrationSqlOptions = Given<typeof migrationSqlOptions>

/** @throws InvalidInputError `ONARG` */
export const checkOptions = (options: TransactionOptions) => checked(transactionOptions, options)

export const defaults = defaultsOf(transactionOptions)

/** What was given, and the defaults of the rest. @throws InvalidInputError `ONARG` */
export function complete<Options extends Table>(table: Options, given: Given<Options>): Complete<Options> {
  return { ...defaultsOf(table), ...checked(table, given) }
}

function checked<Options extends Table>(table: Options, given: Given<Options>): Partial<Complete<Options>> {
  const found: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(checkObject('options', given))) {
    if (!Object.hasOwn(table, name)) {
      const hint = `The options are ${Object.keys(table).join(', ')}`
      throw new InvalidInputError('ONARG', `Expected the name of an option, got ${show(name)}`, { hint })
    }
    if (value !== undefined) found[name] = table[name]?.check(name, value)
  }
  return found as Partial<Complete<Options>>
}

function defaultsOf<Options extends Table>(table: Options): Complete<Options> {
  const entries = Object.entries(table).map(([name, { byDefault }]) => [name, byDefault])
  return Object.fromEntries(entries) as Complete<Options>
}
