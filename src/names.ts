/** What names and numbers must look like, checked where they enter. */
import { InvalidInputError } from './errors.ts'

/** The largest sequence: a range in Postgres that contains 2^63-1 has no upper bound. */
export const maxSequence = 9223372036854775806n

/** Shows a value in a message: quoted, and never longer than a line. */
export function show(value: unknown): string {
  const text =
    typeof value === 'string'
      ? JSON.stringify(value)
      : typeof value === 'bigint'
        ? `${value}n`
        : String(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}

function refuse(what: string, value: unknown, expected: string, hint: string): never {
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

/** Text of any length without NUL. */
export function checkText(what: string, value: unknown): string {
  if (typeof value !== 'string' || value.includes('\0')) {
    refuse(
      what,
      value,
      'a string without NUL characters',
      'Postgres cannot store NUL in text; encode it, for example in base64',
    )
  }
  return value as string
}

/** A whole number between two bounds; numbers beyond 2^53 must come as bigint, as they were rounded already. */
export function checkInteger(what: string, value: unknown, min: bigint, max: bigint): bigint {
  if (typeof value === 'bigint' ? value >= min && value <= max : Number.isSafeInteger(value)) {
    const integer = BigInt(value as bigint | number)
    if (integer >= min && integer <= max) return integer
  }
  return refuse(
    what,
    value,
    `a whole number from ${min} to ${max}`,
    'Beyond 2^53 pass a bigint, for example 9007199254740993n',
  )
}

export function checkSequence(value: unknown): bigint {
  return checkInteger('sequence', value, 0n, maxSequence)
}

export function checkEpoch(value: unknown): number {
  return Number(checkInteger('epoch', value, 0n, 2147483647n))
}

/** Milliseconds as Postgres's timeouts take them. */
export function checkMilliseconds(what: string, value: unknown): number {
  return Number(checkInteger(what, value, 0n, 2147483647n))
}
