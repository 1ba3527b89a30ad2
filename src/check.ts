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

/** Gives the value back. @throws InvalidInputError `ONARG` unless it is right */
export type Check<T> = (what: string, value: unknown) => T

export function expect<T>(fits: boolean, what: string, value: unknown, expected: string, hint?: string): T {
  if (fits) return value as T
  throw new InvalidInputError('ONARG', `Expected \`${what}\` to be ${expected}, got ${show(value)}`, { hint })
}

/** Names of databases stand in gids, unquoted in logs and in flags. */
export function checkDatabaseName(value: string): string {
  const isName = /^[A-Za-z0-9._-]{1,63}$/.test(value)
  const expected = '1 to 63 of A-Z a-z 0-9 . _ -'
  return expect(isName, 'database name', value, expected, 'For example: orders, billing-eu')
}

/** Producers, scopes, groups, topics. */
export function checkName(what: string, value: unknown): string {
  const isShort = typeof value === 'string' && value !== '' && value.length <= 400 && [...value].length <= 200
  expect(isShort, what, value, 'a string of 1 to 200 characters', 'Use a short stable name')
  return checkText(what, value)
}

/** Text of any length; half of a surrogate pair would be sent as U+FFFD, so that two different keys would be one. */
export function checkText(what: string, value: unknown): string {
  const isText = typeof value === 'string' && !value.includes('\0') && value.isWellFormed()
  const hint = 'Postgres cannot store NUL or half of a surrogate pair in text; encode it, say in base64'
  return expect(isText, what, value, 'a well-formed string without NUL characters', hint)
}

/** An object that holds options, a message, and the like. */
export function checkObject<T>(what: string, value: T, hint = 'Pass an object, or leave it out'): T & object {
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value)
  return expect(isObject, what, value, 'an object', hint)
}

export function checkFunction<T>(what: string, value: unknown): T {
  return expect(typeof value === 'function', what, value, 'a function', 'For example: async (trx) => { … }')
}

export function checkArray<T>(what: string, value: readonly T[]): readonly T[] {
  return expect(Array.isArray(value), what, value, 'an array', 'For a single message there is `process`')
}

export function checkBoolean(what: string, value: unknown): boolean {
  return expect(typeof value === 'boolean', what, value, 'a boolean', 'Pass true or false, or leave it out')
}

export function checkSignal(what: string, value: unknown): AbortSignal {
  const hint = 'For example: AbortSignal.timeout(5000), or `signal` of an AbortController'
  return expect(value instanceof AbortSignal, what, value, 'an AbortSignal', hint)
}

export function oneOf<Word extends string>(...words: readonly Word[]): Check<Word> {
  const known = words.map((word) => `'${word}'`)
  const expected = `${known.slice(0, -1).join(', ')} or ${known.at(-1)}`
  return (what, value) => expect(words.includes(value as Word), what, value, expected)
}

/** A whole number between two bounds; numbers beyond 2^53 must come as bigint, as they were rounded already. */
export function checkInteger(what: string, value: unknown, min: bigint, max: bigint): bigint {
  const isInteger = typeof value === 'bigint' || Number.isSafeInteger(value)
  const integer = isInteger ? BigInt(value as bigint) : min - 1n
  if (integer >= min && integer <= max) return integer
  return expect(false, what, value, `a whole number from ${min} to ${max}`, integerHint(value, max))
}

/** Only where numbers can be that large is there something to say. */
function integerHint(value: unknown, max: bigint): string | undefined {
  if (max <= BigInt(Number.MAX_SAFE_INTEGER)) return undefined
  if (typeof value === 'string' && /^\d+$/.test(value)) return 'A string of digits is converted by BigInt(…)'
  return Number.isInteger(value) && !Number.isSafeInteger(value)
    ? 'Beyond 2^53 pass a bigint, for example 9007199254740993n'
    : undefined
}

export const checkSequence: Check<bigint> = (what, value) => checkInteger(what, value, 0n, maxSequence)

/** Epochs and partitions. */
export const checkInt32: Check<number> = (what, value) => Number(checkInteger(what, value, 0n, maxInt32))

/** As many as timeouts of Postgres and timers of Node take; those take no bigint. */
export function checkMilliseconds(what: string, value: unknown, least: 0 | 1 = 0): number {
  return Number(checkInteger(what, value, BigInt(least), maxInt32))
}
