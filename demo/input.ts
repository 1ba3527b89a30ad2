/**
 * The messages: the flights of the npm package `vega-datasets`, or the lines of the user's own file.
 */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { show } from '../src/check.ts'
import { InvalidInputError } from '../src/errors.ts'
import { type DatabaseName, databaseNames, type Message, type Place } from './plan.ts'

export interface InputOptions {
  /** A file with one JSON object a line; without it, the flights. */
  readonly input?: string | undefined
  /** The field that says where a message departs. @defaultValue origin */
  readonly from: string
  /** The field that says where it arrives. @defaultValue destination */
  readonly to: string
  /** How many messages, from the first on. @defaultValue all */
  readonly messages?: number | undefined
}

/** @throws InvalidInputError `ONARG` that names the line and what was expected */
export async function readMessages({ input, from, to, messages }: InputOptions): Promise<Message[]> {
  const found = input === undefined ? await readFlights() : await readLines(input, from, to, messages)
  if (messages !== undefined && messages > found.length) {
    const source = input ?? 'the file of flights'
    throw new InvalidInputError(
      'ONARG',
      `Expected \`--messages\` to be 1 to ${found.length}, got ${messages}`,
      {
        detail: `${source} has no more than ${found.length} messages.`,
      },
    )
  }
  return found.slice(0, messages)
}

// ---------------------------------------------------------------------------------------------------
// The flights

interface Flight {
  readonly origin: string
  readonly destination: string
}

async function readFlights(): Promise<Message[]> {
  const folder = join(dirname(dirname(createRequire(import.meta.url).resolve('vega-datasets'))), 'data')
  const [flights, airports] = await Promise.all([
    readFile(join(folder, 'flights-20k.json'), 'utf8'),
    readFile(join(folder, 'airports.csv'), 'utf8'),
  ])
  const regions = regionsOf(airports)
  const place = (key: string): Place => ({ key, database: regions.get(key) ?? databaseByHash(key) })
  return (JSON.parse(flights) as Flight[]).map(({ origin, destination }, index) => ({
    number: index + 1,
    departure: place(origin),
    arrival: place(destination),
  }))
}

/** Each airport's region: two meridians that cut the traffic into thirds. */
function regionsOf(airports: string): Map<string, DatabaseName> {
  const regions = new Map<string, DatabaseName>()
  for (const line of airports.split('\n').slice(1)) {
    const columns = line.split(',')
    const [code = ''] = columns
    // From the end, since names of airports contain commas.
    const longitude = Number(columns.at(-1))
    if (code !== '') regions.set(code, longitude < -104 ? 'west' : longitude < -84 ? 'central' : 'east')
  }
  return regions
}

// ---------------------------------------------------------------------------------------------------
// The user's own file

async function readLines(file: string, from: string, to: string, limit = Infinity): Promise<Message[]> {
  const messages: Message[] = []
  const stream = createReadStream(file)
  let number = 0
  try {
    for await (const line of createInterface({ input: stream, crlfDelay: Infinity })) {
      number += 1
      const text = number === 1 ? line.replace(/^\uFEFF/, '') : line
      if (text.trim() === '') continue
      const place = `${file}, line ${number}`
      const fields = parse(text, place)
      const side = (field: string): Place => {
        const key = readKey(fields, field, place)
        return { key, database: databaseByHash(key) }
      }
      messages.push({ number: messages.length + 1, departure: side(from), arrival: side(to) })
      if (messages.length >= limit) break
    }
  } catch (error) {
    if (error instanceof InvalidInputError) throw error
    const { message } = error as Error
    throw new InvalidInputError('ONARG', `Cannot read ${file}: ${message}`, { cause: error })
  } finally {
    stream.destroy()
  }
  if (messages.length > 0) return messages
  throw new InvalidInputError('ONARG', `${file}: expected at least one line, got none`, {
    hint: example(from, to),
  })
}

function parse(line: string, place: string): object {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (cause) {
    throw new InvalidInputError('ONARG', `${place}: expected one JSON object, got ${show(line)}`, {
      detail: (cause as Error).message,
      cause,
    })
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  throw new InvalidInputError('ONARG', `${place}: expected a JSON object, got ${show(line)}`)
}

function readKey(fields: object, field: string, place: string): string {
  const value: unknown = Object.hasOwn(fields, field) ? Reflect.get(fields, field) : undefined
  const key = typeof value === 'number' ? String(value) : value
  if (
    typeof key === 'string' &&
    key.length > 0 &&
    key.length <= 200 &&
    !key.includes('\0') &&
    key.isWellFormed()
  ) {
    return key
  }
  const got =
    value === undefined
      ? `only ${Object.keys(fields).slice(0, 8).map(show).join(', ') || 'no field'}`
      : show(JSON.stringify(value))
  throw new InvalidInputError(
    'ONARG',
    `${place}: expected field ${show(field)} to be a string of 1 to 200 characters or a number, got ${got}`,
    { hint: 'Say which fields are the two sides: --from FIELD --to FIELD' },
  )
}

function example(from: string, to: string): string {
  return `One JSON object a line, for example ${JSON.stringify({ [from]: 'SFO', [to]: 'JFK' })}`
}

/** The same for every run: which database a key of unknown region belongs to. */
function databaseByHash(key: string): DatabaseName {
  const index = createHash('sha256').update(key).digest().readUInt32BE() % databaseNames.length
  return databaseNames[index] ?? 'west'
}
