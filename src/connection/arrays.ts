/**
 * Array types for connections of our own, in place of postgres.js's `fetch_types`.
 *
 * postgres.js (3.4.9) asks for them when it connects, in a promise that nobody holds: if the connection
 * breaks at that moment, the rejection is unhandled and ends the process.
 */
import type postgres from 'postgres'
import { InvalidInputError } from '../errors.ts'

interface ArrayType {
  readonly oid: number
  readonly element: number
  readonly delimiter: string
}

type Codec = (value: unknown) => unknown

/** Asks for all array types of the database, so that arrays are taken and given as arrays; opens the connection. */
export async function learnArrayTypes(client: postgres.Sql): Promise<void> {
  const types = await client.unsafe<ArrayType[]>(
    `select a.oid, e.oid as element, e.typdelim as delimiter
       from pg_catalog.pg_type a join pg_catalog.pg_type e on e.oid = a.typelem and e.typarray = a.oid`,
  )
  const parsers = client.options.parsers as unknown as Record<number, Codec>
  const serializers = client.options.serializers as unknown as Record<number, Codec>
  for (const { oid, element, delimiter } of types) {
    parsers[oid] ??= (text) => parseArray(text as string, parsers[element], delimiter)
    serializers[oid] ??= (value) => serializeArray(value, serializers[element], delimiter)
  }
}

/** @see https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO */
function serializeArray(value: unknown, element: Codec | undefined, delimiter: string): unknown {
  // A string is taken for the literal.
  if (!Array.isArray(value)) return value
  const words = value.map((one) => {
    if (one === undefined) {
      throw new InvalidInputError('ONARG', 'Expected an array without undefined', { hint: 'Use null' })
    }
    if (one === null) return 'null'
    if (Array.isArray(one)) return serializeArray(one, element, delimiter)
    return `"${String(element ? element(one) : one).replace(/["\\]/g, '\\$&')}"`
  })
  return `{${words.join(delimiter)}}`
}

function parseArray(text: string, element: Codec | undefined, delimiter: string): unknown[] {
  // Bounds come first if they are not 1, as in [0:1]={7,8}.
  let at = text.indexOf('{')
  const readList = (): unknown[] => {
    const values: unknown[] = []
    at += 1
    while (at < text.length && text[at] !== '}') {
      values.push(text[at] === '{' ? readList() : readWord())
      if (text[at] === delimiter) at += 1
    }
    at += 1
    return values
  }
  const readWord = (): unknown => {
    let word = ''
    const quoted = text[at] === '"'
    if (quoted) {
      for (at += 1; at < text.length && text[at] !== '"'; at += 1) {
        if (text[at] === '\\') at += 1
        word += text[at]
      }
      at += 1
    } else {
      const start = at
      while (at < text.length && text[at] !== delimiter && text[at] !== '}') at += 1
      word = text.slice(start, at)
      if (word === 'NULL') return null
    }
    return element ? element(word) : word
  }
  return readList()
}
