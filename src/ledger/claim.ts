/**
 * Claims: which of the messages at hand are new. What decides is in `sql/ledger/`; here what the caller gave is
 * checked and copied, once, when the call is made.
 */
import { createHash } from 'node:crypto'
import {
  checkArray,
  checkBoolean,
  checkInt32,
  checkName,
  checkObject,
  checkSequence,
  checkText,
  expect,
} from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import * as say from '../statements.ts'

export type { Claim, ClaimStatus } from '../statements.ts'

/** The fields of each kind; what would be ignored is refused, by the compiler as well. */
const bySequence = ['producer', 'sequence', 'sequences', 'epoch', 'strict', 'startAt'] as const
const ofKey = ['key', 'occurredAt', 'payload', 'payloadHash'] as const
const byKey = [...ofKey, 'scope', 'keepResult'] as const
const keyedBatch = ['scope', 'messages'] as const

type Without<Names extends readonly string[]> = { readonly [Name in Names[number]]?: never }

/** A producer's stream of messages. */
interface Stream {
  /** Whose stream: a shop, a device, a topic and partition. 1 to 200 characters. */
  readonly producer: string
  /** The producer's incarnation: once a higher one was seen, lower ones are fenced. @defaultValue 0 */
  readonly epoch?: number
  /** Refuse a sequence that does not follow the last one. @defaultValue false */
  readonly strict?: boolean
  /** Where a new producer begins: sequences below count as processed. @defaultValue 0 */
  readonly startAt?: bigint | number
}

/** A message with a place in its producer's stream. */
export interface SequencedMessage extends Stream, Without<typeof byKey> {
  /** The message's place in it, from 0 to 2^63-2; numbers beyond 2^53 as bigint. */
  readonly sequence: bigint | number
}

/** What tells a message of a scope from the others. */
export interface Keyed extends Without<typeof bySequence> {
  /** The message's id; any length. The time in a UUIDv7 or ULID counts if `once.set_key_times` said so of the scope. */
  readonly key: string
  /** Its own time, the same at every delivery: where the claim is kept and when it expires; without, by its age. */
  readonly occurredAt?: Date
}

/** The message itself, or its hash (1 to 64 bytes): with another payload, the same key is an error, no duplicate. */
export type PayloadCheck =
  | { readonly payload?: string | Uint8Array; readonly payloadHash?: never }
  | { readonly payloadHash?: Uint8Array; readonly payload?: never }

/** A message with an id but no order: a webhook delivery, a payment. */
export type KeyedMessage = Keyed &
  PayloadCheck & {
    /** Where ids come from, such as `stripe`; retention is set per scope. 1 to 200 characters. */
    readonly scope: string
    /** Keep what the handler returns, as JSON, and give it to duplicates. @defaultValue false */
    readonly keepResult?: boolean
  }

export type Message = SequencedMessage | KeyedMessage

/** Messages of one producer. */
export interface SequencedBatch extends Stream, Without<typeof keyedBatch | ['keepResult']> {
  readonly sequences: readonly (bigint | number)[]
}

/** Messages of one scope: keys, or more of each. */
export interface KeyedBatch extends Without<typeof bySequence | ['keepResult']> {
  readonly scope: string
  readonly messages: readonly (string | (Keyed & PayloadCheck & Without<['scope', 'keepResult']>))[]
}

export interface KeyClaim extends say.Claim {
  readonly key: string
}

/** Which of the two kinds. */
export function isSequenced(message: Message): message is SequencedMessage
export function isSequenced(batch: SequencedBatch | KeyedBatch): batch is SequencedBatch
export function isSequenced(given: { [Name in 'producer' | 'sequence' | 'sequences']?: unknown }): boolean {
  return given.producer !== undefined || given.sequence !== undefined || given.sequences !== undefined
}

/** A mistyped `occurredAt` would make another message of it. */
function refuseOthers(given: object, fields: readonly string[], what: string): void {
  const others = Object.entries(given).filter(([name]) => !fields.includes(name))
  const [found] = others.find(([name, value]) => value !== undefined || !everyField.includes(name)) ?? []
  if (found === undefined) return
  const message = `Expected the fields of ${what}, got \`${found.slice(0, 60)}\``
  throw new InvalidInputError('ONARG', message, { hint: `They are ${fields.join(', ')}` })
}

const everyField: readonly string[] = [...bySequence, ...byKey, ...keyedBatch]

/**
 * A claim, checked and copied: whatever the caller does to the message later, each attempt claims the same. `withEffects`
 * is it and its effects in one statement, `keep` what keeps a result beside it. An answer is void if nothing was changed:
 * a duplicate, unless it may have raised its producer's epoch, or set its start. @throws InvalidInputError `ONARG`
 */
export function planClaim(message: Message) {
  const example = "Pass { producer: 'shop-7', sequence: 41n } or { scope: 'stripe', key: 'evt_1' }"
  checkObject('message', message, example)
  if (isSequenced(message)) {
    refuseOthers(message, bySequence, 'a message by sequence')
    const producer = checkName('producer', message.producer)
    const sequence = checkSequence('sequence', message.sequence)
    const stream = streamOf(message)
    const statement = say.claimSequence(producer, sequence, stream)
    const isVoid = ({ status }: say.Claim) => status === 'duplicate' && changesNothing(stream)
    return { statement, withEffects: say.withEffects(statement), isVoid, keep: undefined }
  }
  refuseOthers(message, byKey, 'a message by key')
  const scope = checkName('scope', message.scope)
  const key = checkKey(message.key)
  const at = time(message)
  const statement = say.claimKey(scope, key, at, hash(message))
  const keep = (result: unknown) => say.keepResult(scope, key, resultJson(result), at)
  const isKept = checkBoolean('keepResult', message.keepResult ?? false)
  const isVoid = ({ status }: say.Claim) => status === 'duplicate'
  return { statement, withEffects: say.withEffects(statement), isVoid, keep: isKept ? keep : undefined }
}

/** Sequences of one producer, checked and copied. @throws InvalidInputError `ONARG` */
export function planSequences(batch: SequencedBatch) {
  refuseOthers(batch, bySequence, 'a batch by sequence')
  const producer = checkName('producer', batch.producer)
  // Not map, which skips what a sparse array lacks.
  const given = Array.from(checkArray('sequences', batch.sequences))
  const sequences: readonly bigint[] = given.map((sequence) => checkSequence('sequence', sequence))
  const stream = streamOf(batch)
  const isVoid = (claimed: readonly say.Range[]) => claimed.length === 0 && changesNothing(stream)
  return { sequences, statement: say.claimRanges(producer, rangesOf(sequences), stream), isVoid }
}

/** Keys of one scope, checked and copied. @throws InvalidInputError `ONARG` */
export function planKeys(batch: KeyedBatch) {
  refuseOthers(batch, keyedBatch, 'a batch by key')
  const messages = Array.from(checkArray('messages', batch.messages), (message) => {
    if (typeof message === 'string') return { key: message }
    checkObject('message', message, 'Pass its key, or { key: … }')
    refuseOthers(message, ofKey, 'a message of a batch')
    return message
  })
  const keys: readonly string[] = messages.map(({ key }) => checkKey(key))
  const scope = checkName('scope', batch.scope)
  const statement = say.claimKeys(scope, keys, messages.map(time), messages.map(hash))
  const isVoid = (claims: readonly say.Claim[]) => claims.every(({ status }) => status === 'duplicate')
  return { keys, statement, isVoid }
}

function streamOf({ epoch, strict, startAt }: Stream): say.SequenceOptions {
  return {
    epoch: checkInt32('epoch', epoch ?? 0),
    strict: checkBoolean('strict', strict ?? false),
    startAt: startAt === undefined ? null : checkSequence('startAt', startAt),
  }
}

const changesNothing = ({ epoch, startAt }: say.SequenceOptions) => epoch === 0 && startAt === null

/** Runs of sequences that follow each other: mostly a batch is one. */
function rangesOf(sequences: readonly bigint[]): say.Range[] {
  const ranges: [bigint, bigint][] = []
  for (const sequence of sequences) {
    const last = ranges.at(-1)
    if (last !== undefined && sequence === last[1] + 1n) last[1] = sequence
    else ranges.push([sequence, sequence])
  }
  return ranges
}

/** Those that were new, once each, in the order given. */
export function freshOf(sequences: readonly bigint[], claimed: readonly say.Range[]): readonly bigint[] {
  const [only] = claimed
  if (only === undefined) return []
  // The rule: a batch is a run, and all new.
  const isAll = claimed.length === 1 && only[1] - only[0] + 1n === BigInt(sequences.length)
  if (isAll && sequences[0] === only[0] && rangesOf(sequences).length === 1) return sequences
  const left = new Set<bigint>()
  for (const [first, last] of claimed) for (let one = first; one <= last; one += 1n) left.add(one)
  return sequences.filter((sequence) => left.delete(sequence))
}

/** The handler's result, as it is kept. @throws InvalidInputError `ONARG` */
function resultJson(result: unknown): string {
  let cause: unknown
  try {
    const json = JSON.stringify(result ?? null)
    // NUL, or half of a surrogate pair; an escape only behind an even number of backslashes.
    if (json !== undefined && !/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(json)) return json
  } catch (error) {
    cause = error
  }
  const message = 'Expected the handler to return what JSON holds, as well-formed text without NUL characters'
  throw new InvalidInputError('ONARG', message, { hint: 'Return plain data, or leave keepResult out', cause })
}

function checkKey(key: unknown): string {
  expect(typeof key === 'string' && key !== '', 'key', key, 'a string of at least one character')
  return checkText('key', key)
}

function time({ occurredAt }: { readonly occurredAt?: Date }): string | null {
  if (occurredAt === undefined) return null
  const isTime = occurredAt instanceof Date && !Number.isNaN(occurredAt.getTime())
  const time = expect<Date>(isTime, 'occurredAt', occurredAt, 'a valid Date').toISOString()
  // A year of six digits is not for Postgres to read; else the upper bound (now and two days) is for it to check.
  const hint = 'Is the time in milliseconds where seconds were meant, or the reverse?'
  return expect(/^20\d\d-/.test(time), 'occurredAt', time, 'a time between 2000 and 2100', hint)
}

/** As Postgres reads bytes, or null without a payload. */
function hash({ payload, payloadHash }: PayloadCheck): string | null {
  if (payload !== undefined && payloadHash !== undefined) {
    const hint = 'Pass the message as it came, or its hash'
    throw new InvalidInputError('ONARG', 'Expected `payload` or `payloadHash`, got both', { hint })
  }
  if (payloadHash !== undefined) {
    const isHash = payloadHash instanceof Uint8Array && payloadHash.length > 0 && payloadHash.length <= 64
    return bytes(expect(isHash, 'payloadHash', payloadHash, '1 to 64 bytes'))
  }
  if (payload === undefined) return null
  const isPayload = typeof payload === 'string' || ArrayBuffer.isView(payload)
  const hint = 'Pass the message as it came, before it is parsed'
  expect(isPayload, 'payload', payload, 'a string or bytes', hint)
  return bytes(createHash('sha256').update(payload).digest())
}

const bytes = (found: Uint8Array) => `\\x${Buffer.from(found).toString('hex')}`
