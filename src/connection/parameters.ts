/**
 * Parameters of handlers, put into words before postgres.js sees them. It would do so while it writes a message, and
 * what throws there (`undefined`, an invalid date, a BigInt in JSON) it blames on another statement (3.4.9).
 */
import type postgres from 'postgres'
import { parse } from 'postgres-array'
import { show } from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import { literal } from './quote.ts'

/** The most that the protocol can count. */
const most = 65_534

/** Types that are told to the server, since it could not infer them everywhere; as postgres.js does. */
const oid = { boolean: 16, bytea: 17, bigint: 20, timestamptz: 1184, json: 114, jsonb: 3802 } as const

/** A value of which only the server knows whether it is an array or JSON. Neither form throws any more. */
class Structured {
  readonly given: object
  readonly #position: number
  readonly #json: string | undefined
  readonly #array: string | undefined

  constructor(value: object, position: number) {
    this.given = value
    this.#position = position
    // A list of plain values can be written either way, so it is written once, when it is known which.
    if (Array.isArray(value) && value.every(isPlain)) return
    this.#json = jsonOf(value, position)
    this.#array = Array.isArray(value) ? arrayOf(value, position) : this.#json
  }

  get json(): string {
    return this.#json ?? jsonOf(this.given, this.#position)
  }

  toString(): string {
    return this.#array ?? arrayOf(this.given as unknown[], this.#position)
  }
}

function isPlain(value: unknown): boolean {
  return value === null || ['string', 'number', 'boolean', 'bigint'].includes(typeof value)
}

/** What of postgres.js's options its types do not tell. */
interface TextOptions {
  readonly types: Record<string, { readonly to: number; readonly serialize?: (value: unknown) => unknown }>
  serializers: Record<number, (value: unknown) => unknown>
  readonly transform: { readonly row: { from?: ((row: unknown) => unknown) | undefined } }
}

/**
 * Parameters are text by the time that a client of ours serializes them, and rows of ours are arrays of bytes. The
 * caller's own serializers get what the handler gave. One that throws does so while postgres.js writes a message, so the
 * connection is given up.
 */
export function takeTextAsItIs(client: postgres.Sql, giveUp: (cause: unknown) => void): void {
  const options = client.options as unknown as TextOptions
  const json = (value: unknown) => (value instanceof Structured ? value.json : String(value))
  options.serializers = { [oid.json]: json, [oid.jsonb]: json }
  for (const { to, serialize } of Object.values(options.types)) {
    if (!serialize) continue
    options.serializers[to] = (value) => {
      try {
        return serialize(value instanceof Structured ? value.given : value)
      } catch (error) {
        giveUp(error)
        return ''
      }
    }
  }
  const { from } = options.transform.row
  if (from) options.transform.row.from = (row) => (Array.isArray(row) ? row : from(row))
}

/** @throws InvalidInputError `ONARG` if one of them cannot be put into words */
export function textParameters(client: postgres.Sql, values: readonly unknown[]): unknown[] {
  if (values.length > most) {
    const what = `Expected at most ${most} parameters in one query, got ${values.length}`
    throw new InvalidInputError('ONARG', what, { hint: 'Send the rows in smaller pieces' })
  }
  return values.map((value, index) => {
    switch (typeof value) {
      case 'string':
        return value
      case 'number':
        return String(value)
      case 'boolean':
        return client.typed(value ? 't' : 'f', oid.boolean)
      case 'bigint':
        return client.typed(String(value), oid.bigint)
      case 'object':
        return value === null ? null : textOf(client, value, index + 1)
      case 'undefined':
        return client.options.transform.undefined === null ? null : refuse(value, index + 1)
      default:
        return refuse(value, index + 1)
    }
  })
}

/**
 * Parameters as they stand in a text. There only the context tells a type: a list is written as an array, anything
 * else that is no plain value as JSON.
 *
 * @throws InvalidInputError `ONARG`
 */
export function literals(values: readonly unknown[]): string[] {
  return values.map((value, index) => {
    if (value === null) return 'null'
    if (typeof value === 'boolean') return String(value)
    if (typeof value === 'bigint') return `'${value}'::pg_catalog.int8`
    if (value instanceof Date) return `${literal(wordOf(value, index + 1))}::pg_catalog.timestamptz`
    if (value instanceof Uint8Array) return `${literal(hex(value))}::pg_catalog.bytea`
    return literal(Array.isArray(value) ? arrayOf(value, index + 1) : wordOf(value, index + 1))
  })
}

function textOf(client: postgres.Sql, value: object, position: number): unknown {
  if (value instanceof Date) return client.typed(wordOf(value, position), oid.timestamptz)
  if (value instanceof Uint8Array) return client.typed(hex(value), oid.bytea)
  return new Structured(value, position)
}

function refuse(value: unknown, position: number): never {
  const what = `Expected parameter ${position} to be a value that Postgres has, got ${show(value)}`
  const hint = 'Pass null for nothing; a valid Date; plain data without undefined, functions or symbols'
  throw new InvalidInputError('ONARG', what, { hint })
}

function hex(bytes: Uint8Array): string {
  return `\\x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')}`
}

/** What cannot be JSON may be an array all the same: then the server refuses this text if it wants JSON. */
function jsonOf(value: object, position: number): string {
  try {
    const json: string | undefined = JSON.stringify(value)
    if (json !== undefined) return json
  } catch (cause) {
    const { message } = cause as Error
    if (Array.isArray(value)) return `not JSON: ${message}`
    const hint = 'Convert BigInt to string; plain data has no cycles'
    throw new InvalidInputError('ONARG', `Parameter ${position} cannot be written as JSON: ${message}`, {
      hint,
      cause,
    })
  }
  return refuse(value, position)
}

/** @see https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO */
function arrayOf(values: readonly unknown[], position: number): string {
  const words = Array.from(values, (value) => {
    if (value === null) return 'null'
    if (Array.isArray(value)) return arrayOf(value, position)
    return `"${wordOf(value, position).replace(/["\\]/g, '\\$&')}"`
  })
  return `{${words.join(',')}}`
}

function wordOf(value: unknown, position: number): string {
  if (value instanceof Date)
    return Number.isNaN(value.getTime()) ? refuse(value, position) : value.toISOString()
  if (value instanceof Uint8Array) return hex(value)
  if (typeof value === 'boolean') return value ? 't' : 'f'
  if (typeof value === 'object' && value !== null) return jsonOf(value, position)
  if (value === undefined || typeof value === 'function' || typeof value === 'symbol') refuse(value, position)
  return String(value)
}

/** An array type of a database: its oid, and that of its elements. */
export type ArrayType = readonly [oid: number, element: number]

/**
 * Parsers for array types, in place of postgres.js's `fetch_types`: it asks for them in a promise that nobody holds,
 * so a connection that breaks at that moment ends the process (3.4.9).
 */
export function learnArrays(client: postgres.Sql, types: readonly ArrayType[]): void {
  const parsers = client.options.parsers as unknown as Record<number, (text: string) => unknown>
  // The one type of Postgres whose arrays are not separated by commas: box.
  parsers[1020] ??= (text) => text.slice(1, -1).split(';')
  for (const [type, element] of types) {
    parsers[type] ??= (text) => parse(text, (word) => (parsers[element] ? parsers[element](word) : word))
  }
}
