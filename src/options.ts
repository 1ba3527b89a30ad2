/**
 * The options of a transaction: each with its unit, default and bounds. What nobody knows is refused: whoever wrote
 * it expects it to do something.
 */
import { checkBoolean, checkInteger, checkMilliseconds, checkObject, checkSignal, show } from './check.ts'
import { InvalidInputError } from './errors.ts'

/** Postgres's, of which it takes the first for the second. */
const isolationLevels = ['read uncommitted', 'read committed', 'repeatable read', 'serializable'] as const

export interface TransactionOptions {
  /** Gives up and rolls back, up to the decision; afterwards it has no effect. */
  readonly signal?: AbortSignal | undefined
  /** Milliseconds until the transaction is given up and rolled back if it is not decided. @defaultValue 60000 */
  readonly timeout?: number | undefined
  /** Milliseconds a statement waits for a lock; 0: forever. @defaultValue 10000 */
  readonly lockTimeout?: number | undefined
  /**
   * Milliseconds after which the server ends a branch that does nothing, so that a coordinator which
   * vanished does not hold its locks; 0: never. Prepared branches are not concerned. @defaultValue 60000
   */
  readonly idleTimeout?: number | undefined
  /** @defaultValue as the sessions have it, in Postgres read committed */
  readonly isolationLevel?: (typeof isolationLevels)[number] | undefined
  /**
   * Whether to wait until every branch is committed (`await`), or only for the decision (`background`): it
   * stands either way, but until the branch is finished other transactions do not see its effects there.
   * @defaultValue 'await'
   */
  readonly finish?: 'await' | 'background' | undefined
  /** The database to prefer as home if it was written to. @defaultValue the first that was used */
  readonly home?: string | undefined
  /** How often to run the handler again where nothing happened and trying again helps: a deadlock, a serialization
   * failure, a statement that a migration has outdated, a connection lost before its first answer. @defaultValue 5 */
  readonly retries?: number | undefined
  /**
   * Record the outcome even if one database only was written to, so that `once.outcome(id)` can tell it
   * should the answer to COMMIT be lost. Costs a row and a round trip. @defaultValue false
   */
  readonly record?: boolean | undefined
}

export const defaults = {
  timeout: 60_000,
  lockTimeout: 10_000,
  idleTimeout: 60_000,
  finish: 'await',
  retries: 5,
} as const

type Checked = { -readonly [Name in keyof TransactionOptions]?: TransactionOptions[Name] }

/** One check an option; each gives the value as it is used. */
const checks: Readonly<Record<keyof TransactionOptions, (value: never) => unknown>> = {
  signal: (value: AbortSignal) => checkSignal('signal', value),
  // As numbers: a bigint is taken as well, and timers take none.
  timeout: (value: unknown) => checkMilliseconds('timeout', value, 1),
  lockTimeout: (value: unknown) => checkMilliseconds('lockTimeout', value),
  idleTimeout: (value: unknown) => checkMilliseconds('idleTimeout', value),
  retries: (value: unknown) => Number(checkInteger('retries', value, 0n, 1000n)),
  record: (value: unknown) => checkBoolean('record', value, false),
  finish: (value: unknown) => oneOf('finish', value, ['await', 'background']),
  // It goes into the text of BEGIN.
  isolationLevel: (value: unknown) => oneOf('isolationLevel', value, isolationLevels),
  home: (value: string) => value,
}

/** @throws InvalidInputError `ONARG` */
export function checkOptions(options: TransactionOptions): TransactionOptions {
  checkObject('options', options)
  const checked: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(options)) {
    const check = (checks as unknown as Record<string, ((value: unknown) => unknown) | undefined>)[name]
    if (check === undefined) {
      throw new InvalidInputError('ONARG', `Expected the name of an option, got ${show(name)}`, {
        hint: `The options are ${Object.keys(checks).join(', ')}`,
      })
    }
    if (value !== undefined) checked[name] = check(value)
  }
  return checked as Checked
}

function oneOf<Word extends string>(what: string, value: unknown, words: readonly Word[]): Word {
  if (typeof value === 'string' && words.includes(value as Word)) return value as Word
  const known = words.map((word) => `'${word}'`)
  throw new InvalidInputError(
    'ONARG',
    `Expected \`${what}\` to be ${known.slice(0, -1).join(', ')} or ${known.at(-1)}, got ${show(value)}`,
  )
}
