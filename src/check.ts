/** What names, numbers and options must look like, checked where they enter. */
import { InvalidInputError } from './errors.ts'

/** The largest sequence: a range in Postgres that contains 2^63-1 has no upper bound. */
export const maxSequence = 9223372036854775806n

/** The largest `integer` of Postgres: epochs and partitions are such, and timeouts, as for Node's timers. */
export const maxInt32 = 2147483647n

/** Shows a value in a message: quoted, and never longer than a line. Whatever it is, this does not throw. */
export function show(value: unknown): string {
  const text = describe(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 60))
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return 'a function'
  try {
    if (Array.isArray(value)) return 'an array'
    const text = String(value)
    return text.startsWith('[object ') ? 'an object' : text
  } catch {
    // An object without a prototype, or one whose own methods throw.
    return 'an object'
  }
}

function refuse(what: string, value: unknown, expected: string, hint: string | undefined): never {
  throw new InvalidInputError('ONARG', `Expected \`${what}\` to be ${expected}, got ${show(value)}`, { hint })
}

/** Names of databases stand in gids, unquoted in logs and in flags: 1 to 63 of `A-Z a-z 0-9 . _ -`. */
export function checkDatabaseName(value: string): string {
  if (!/^[A-Za-z0-9._-]{1,63}$/.test(value)) {
    refuse('database name', value, '1 to 63 of A-Z a-z 0-9 . _ -', 'For example: orders, billing-eu')
  }
  return value
}

/** Producers, scopes, groups, topics: 1 to 200 characters, anything but NUL, which Postgres cannot store. */
export function checkName(what: string, value: unknown): string {
  if (typeof value !== 'string' || value.length === 0 || value.length > 400 || [...value].length > 200) {
    refuse(what, value, 'a string of 1 to 200 characters', 'Use a short stable name')
  }
  return checkText(what, value as string)
}

/**
 * Text of any length without NUL, and without half of a surrogate pair: what cannot be encoded is sent as U+FFFD,
 * so that two different keys would be one.
 */
export function checkText(what: string, value: unknown): string {
  if (typeof value !== 'string' || value.includes('\0') || !value.isWellFormed()) {
    refuse(
      what,
      value,
      'a well-formed string without NUL characters',
      'Postgres cannot store NUL or half of a surrogate pair in text; encode it, for example in base64',
    )
  }
  return value as string
}

/** An object that holds options, a message, and the like. */
export function checkObject<T>(what: string, value: T, hint = 'Pass an object, or leave it out'): T & object {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    refuse(what, value, 'an object', hint)
  return value as T & object
}

export function checkFunction<T>(what: string, value: T): T {
  if (typeof value !== 'function') refuse(what, value, 'a function', 'For example: async (trx) => { … }')
  return value
}

export function checkArray<T>(what: string, value: readonly T[]): readonly T[] {
  if (!Array.isArray(value)) refuse(what, value, 'an array', 'For a single message there is `process`')
  return value
}

/** Undefined stands for the default. */
export function checkBoolean(what: string, value: unknown, byDefault: boolean): boolean {
  if (value === undefined) return byDefault
  if (typeof value !== 'boolean') refuse(what, value, 'a boolean', 'Pass true or false, or leave it out')
  return value as boolean
}

export function checkSignal(what: string, value: AbortSignal): AbortSignal {
  if (!(value instanceof AbortSignal))
    refuse(
      what,
      value,
      'an AbortSignal',
      'For example: AbortSignal.timeout(5000), or `signal` of an AbortController',
    )
  return value
}

/** A whole number between two bounds; numbers beyond 2^53 must come as bigint, as they were rounded already. */
export function checkInteger(what: string, value: unknown, min: bigint, max: bigint): bigint {
  if (typeof value === 'bigint' ? value >= min && value <= max : Number.isSafeInteger(value)) {
    const integer = BigInt(value as bigint | number)
    if (integer >= min && integer <= max) return integer
  }
  return refuse(what, value, `a whole number from ${min} to ${max}`, integerHint(value, max))
}

/** Only where numbers can be that large is there something to say. */
function integerHint(value: unknown, max: bigint): string | undefined {
  if (max <= BigInt(Number.MAX_SAFE_INTEGER)) return undefined
  if (typeof value === 'string' && /^\d+$/.test(value)) return 'A string of digits is converted by BigInt(…)'
  return Number.isInteger(value) && !Number.isSafeInteger(value)
    ? 'Beyond 2^53 pass a bigint, for example 9007199254740993n'
    : undefined
}

export function checkSequence(value: unknown): bigint {
  return checkInteger('sequence', value, 0n, maxSequence)
}

export function checkEpoch(value: unknown): number {
  return Number(checkInteger('epoch', value, 0n, maxInt32))
}

/** Milliseconds, as many as timeouts of Postgres and timers of Node take. */
export function checkMilliseconds(what: string, value: unknown, least: 0 | 1 = 0): number {
  return Number(checkInteger(what, value, BigInt(least), maxInt32))
}
