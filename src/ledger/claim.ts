/**
 * Claims: which of the messages at hand are new. What decides is in `sql/ledger/`; here what the caller gave is
 * checked and copied, once, when the call is made.
 */
import { createHash } from 'node:crypto'
import {
  checkArray,
  checkBoolean,
  checkEpoch,
  checkInteger,
  checkName,
  checkObject,
  checkSequence,
  checkText,
  maxSequence,
  show,
} from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import * as say from '../statements.ts'

/** A message with a place in its producer's stream. */
export interface SequencedMessage {
  /** Whose stream: a shop, a device, a topic and partition. 1 to 200 characters. */
  readonly producer: string
  /** The message's place in it, from 0 to 2^63-2; numbers beyond 2^53 as bigint. */
  readonly sequence: bigint | number
  /** The producer's incarnation: once a higher one was seen, lower ones are fenced. @defaultValue 0 */
  readonly epoch?: number
  /** Refuse a sequence that does not follow the last one. @defaultValue false */
  readonly strict?: boolean
  /** Where a new producer begins: sequences below count as processed. @defaultValue 0 */
  readonly startAt?: bigint | number
  readonly scope?: never
  readonly key?: never
  readonly occurredAt?: never
  readonly payload?: never
  readonly payloadHash?: never
  readonly keepResult?: never
}

/** A message with an id but no order: a webhook delivery, a payment. */
export type KeyedMessage = Keyed &
  PayloadCheck & {
    /** Where ids come from, such as `stripe`; retention is set per scope. 1 to 200 characters. */
    readonly scope: string
    /** Keep what the handler returns, as JSON, and give it to duplicates. @defaultValue false */
    readonly keepResult?: boolean
  }

/** What tells a message of a scope from the others. */
export interface Keyed {
  /** The message's id; any length. The time in a UUIDv7 or ULID counts only if `once.set_key_times` has said so of the scope. */
  readonly key: string
  /**
   * The message's own time, the same at every delivery (never the time of arrival). It decides where the
   * claim is kept and when it expires. Without any time the claim is kept apart and expires by its age.
   */
  readonly occurredAt?: Date
  readonly producer?: never
  readonly sequence?: never
  readonly epoch?: never
  readonly strict?: never
  readonly startAt?: never
}

/**
 * The message itself, or its SHA-256 as 32 bytes in `payloadHash`: if the key comes again with another
 * payload, that is an error instead of a duplicate.
 */
export type PayloadCheck =
  | { readonly payload?: string | Uint8Array; readonly payloadHash?: never }
  | { readonly payloadHash?: Uint8Array; readonly payload?: never }

export type Message = SequencedMessage | KeyedMessage

/** Messages of one producer. */
export interface SequencedBatch {
  readonly producer: string
  readonly sequences: readonly (bigint | number)[]
  readonly epoch?: number
  readonly strict?: boolean
  readonly startAt?: bigint | number
  readonly scope?: never
  readonly messages?: never
  readonly keepResult?: never
}

/** Messages of one scope; see {@link KeyedMessage}. */
export interface KeyedBatch {
  readonly scope: string
  readonly messages: readonly (
    | string
    | (Keyed & PayloadCheck & { readonly scope?: never; readonly keepResult?: never })
  )[]
  readonly producer?: never
  readonly sequences?: never
  readonly epoch?: never
  readonly strict?: never
  readonly startAt?: never
  readonly keepResult?: never
}

const bySequence = ['producer', 'sequence', 'sequences', 'epoch', 'strict', 'startAt'] as const
const ofOneMessage = ['key', 'occurredAt', 'payload', 'payloadHash', 'keepResult'] as const
const byKey = ['scope', 'messages', ...ofOneMessage] as const
const ofOneBatch = [...bySequence, 'scope', 'messages', 'keepResult'] as const

/** Which of the two kinds. @throws InvalidInputError `ONARG` if it has something of both */
export function isSequenced(message: Message): message is SequencedMessage
export function isSequenced(batch: SequencedBatch | KeyedBatch): batch is SequencedBatch
export function isSequenced(given: {
  readonly producer?: unknown
  readonly sequence?: unknown
  readonly sequences?: unknown
}): boolean {
  const sequenced =
    given.producer !== undefined || given.sequence !== undefined || given.sequences !== undefined
  const hint = 'Pass { producer, sequence } or { scope, key }, with the options of the same kind'
  if (sequenced)
    refuseAmong(given, byKey, 'is for messages by key, and this has a producer or a sequence', hint)
  else refuseAmong(given, bySequence, 'is for messages by sequence, and this has none', hint)
  refuseUnknown(given)
  return sequenced
}

/** What would be ignored is refused: a mistyped `occurredAt` would make another message of it. */
function refuseUnknown(given: object): void {
  const known: readonly string[] = [...bySequence, ...byKey]
  const found = Object.keys(given).find((name) => !known.includes(name))
  if (found === undefined) return
  throw new InvalidInputError('ONARG', `Expected the fields of a message, got ${show(found)}`, {
    hint: `A message has ${bySequence.join(', ')}; or ${byKey.join(', ')}`,
  })
}

/** What would be ignored is refused: whoever wrote it expects it to do something. */
function refuseAmong(given: object, names: readonly string[], why: string, hint: string): void {
  const found = names.find((name) => (given as Record<string, unknown>)[name] !== undefined)
  if (found !== undefined) throw new InvalidInputError('ONARG', `\`${found}\` ${why}`, { hint })
}

export type { Claim, ClaimStatus } from '../statements.ts'

export interface KeyClaim extends say.Claim {
  readonly key: string
}

/** A claim that is checked and copied: whatever the caller does to the message later, each attempt claims the same. */
export interface ClaimPlan {
  readonly statement: say.Statement<say.Claim>
  /** The claim and its effects in one statement. */
  readonly withEffects: (statements: readonly string[]) => say.Statement<say.Claim>
  /** Whether an answer has changed nothing: a duplicate, unless it has raised its producer's epoch. */
  readonly isVoid: (claim: say.Claim) => boolean
  /** What keeps the handler's result beside the claim; undefined if it is not kept. */
  readonly keep: ((result: unknown) => say.Statement<unknown>) | undefined
}

/** @throws InvalidInputError `ONARG` */
export function planClaim(message: Message): ClaimPlan {
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw new InvalidInputError('ONARG', `Expected a message, got ${show(message)}`, {
      hint: "Pass { producer: 'shop-7', sequence: 41n } or { scope: 'stripe', key: 'evt_1' }",
    })
  }
  if (isSequenced(message)) {
    const producer = checkName('producer', message.producer)
    const sequence = checkSequence(message.sequence)
    const options = sequenceOptions(message)
    const statement = say.claimSequence(producer, sequence, options)
    return {
      statement,
      withEffects: say.withEffects(statement),
      isVoid: ({ status }) => status === 'duplicate' && options.epoch === 0,
      keep: undefined,
    }
  }
  const scope = checkName('scope', message.scope)
  const key = checkKey(message.key)
  const at = time(message)
  const keeps = checkBoolean('keepResult', message.keepResult, false)
  const statement = say.claimKey(scope, key, at, hash(message))
  return {
    statement,
    withEffects: say.withEffects(statement),
    isVoid: ({ status }) => status === 'duplicate',
    keep: keeps ? (result) => say.keepResult(scope, key, resultJson(result), at) : undefined,
  }
}

/** Sequences of one producer, checked and copied. */
export interface SequencesPlan {
  readonly sequences: readonly bigint[]
  readonly statement: say.Statement<readonly say.Range[]>
  /** As {@link ClaimPlan.isVoid}. */
  readonly isVoid: (claimed: readonly say.Range[]) => boolean
}

/** @throws InvalidInputError `ONARG` */
export function planSequences(batch: SequencedBatch): SequencesPlan {
  const producer = checkName('producer', batch.producer)
  // Not map, which skips what a sparse array lacks.
  const sequences = Array.from(checkArray('sequences', batch.sequences), checkSequence)
  const options = sequenceOptions(batch)
  return {
    sequences,
    statement: say.claimRanges(producer, rangesOf(sequences), options),
    isVoid: (claimed) => claimed.length === 0 && options.epoch === 0,
  }
}

function sequenceOptions({
  epoch,
  strict,
  startAt,
}: {
  readonly epoch?: number | undefined
  readonly strict?: boolean | undefined
  readonly startAt?: bigint | number | undefined
}): say.SequenceOptions {
  return {
    epoch: checkEpoch(epoch ?? 0),
    strict: checkBoolean('strict', strict, false),
    startAt: startAt === undefined ? null : checkInteger('startAt', startAt, 0n, maxSequence),
  }
}

/** Runs of sequences that follow each other: mostly a batch is one. */
function rangesOf(sequences: readonly bigint[]): say.Range[] {
  const ranges: [bigint, bigint][] = []
  let last: [bigint, bigint] | undefined
  for (const sequence of sequences) {
    if (last !== undefined && sequence === last[1] + 1n) last[1] = sequence
    else {
      last = [sequence, sequence]
      ranges.push(last)
    }
  }
  return ranges
}

/** Those that were new, once each, in the order given. */
export function freshOf(sequences: readonly bigint[], claimed: readonly say.Range[]): readonly bigint[] {
  const [only] = claimed
  if (only === undefined) return []
  // The rule: a batch is a run, and all new.
  const isAll = claimed.length === 1 && only[1] - only[0] + 1n === BigInt(sequences.length)
  if (isAll && sequences[0] === only[0] && sequences.at(-1) === only[1] && rangesOf(sequences).length === 1)
    return sequences
  const left = new Set<bigint>()
  for (const [first, last] of claimed) for (let one = first; one <= last; one += 1n) left.add(one)
  return sequences.filter((sequence) => left.delete(sequence))
}

/** Keys of one scope, checked and copied. */
export interface KeysPlan {
  readonly keys: readonly string[]
  readonly statement: say.Statement<readonly say.Claim[]>
  /** As {@link ClaimPlan.isVoid}. */
  readonly isVoid: (claims: readonly say.Claim[]) => boolean
}

/** @throws InvalidInputError `ONARG` */
export function planKeys(batch: KeyedBatch): KeysPlan {
  const messages = Array.from(checkArray('messages', batch.messages), (message) =>
    typeof message === 'string'
      ? { key: message }
      : checkObject('message', message, 'Pass its key, or { key: … }'),
  )
  refuseAmong(
    batch,
    ofOneMessage,
    'cannot be set for a batch',
    'Set it for each message; `keepResult` is for `process`',
  )
  for (const message of messages)
    refuseAmong(
      message,
      ofOneBatch,
      'cannot be set for one message of a batch',
      '`keepResult` is for `process`, the others are for the batch',
    )
  const keys = messages.map(({ key }) => checkKey(key))
  return {
    keys,
    statement: say.claimKeys(checkName('scope', batch.scope), keys, messages.map(time), messages.map(hash)),
    isVoid: (claims) => claims.every(({ status }) => status === 'duplicate'),
  }
}

/** The handler's result, as it is kept. @throws InvalidInputError `ONARG` */
function resultJson(result: unknown): string {
  let json: string | undefined
  let cause: unknown
  try {
    json = JSON.stringify(result ?? null)
  } catch (error) {
    cause = error
  }
  // NUL, or half of a surrogate pair; an escape only behind an even number of backslashes.
  if (json !== undefined && !/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(json)) return json
  throw new InvalidInputError(
    'ONARG',
    'Expected the handler to return what JSON can hold, as well-formed text without NUL characters',
    { hint: 'Return plain data, or leave keepResult out', cause },
  )
}

function checkKey(key: unknown): string {
  if (typeof key !== 'string' || key === '') {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`key\` to be a string of at least one character, got ${show(key)}`,
    )
  }
  return checkText('key', key)
}

function time({ occurredAt }: { readonly occurredAt?: Date }): string | null {
  if (occurredAt === undefined) return null
  if (!(occurredAt instanceof Date) || Number.isNaN(occurredAt.getTime())) {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`occurredAt\` to be a valid Date, got ${show(occurredAt)}`,
    )
  }
  // Its upper bound is for Postgres to check (now and two days); it cannot read how JavaScript writes years of six digits.
  const year = occurredAt.getUTCFullYear()
  if (year < 2000 || year >= 2100) {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`occurredAt\` to be a time between 2000 and 2100, got ${occurredAt.toISOString()}`,
      { hint: 'Is the time in milliseconds where seconds were meant, or the reverse?' },
    )
  }
  return occurredAt.toISOString()
}

/** As Postgres reads bytes, or null without a payload. */
function hash({
  payload,
  payloadHash,
}: {
  readonly payload?: string | Uint8Array
  readonly payloadHash?: Uint8Array
}): string | null {
  if (payload !== undefined && payloadHash !== undefined) {
    throw new InvalidInputError('ONARG', 'Expected `payload` or `payloadHash`, got both', {
      hint: 'Pass the message as it came, or its hash',
    })
  }
  if (payloadHash !== undefined) {
    if (!(payloadHash instanceof Uint8Array) || payloadHash.length === 0 || payloadHash.length > 64) {
      throw new InvalidInputError(
        'ONARG',
        `Expected \`payloadHash\` to be 1 to 64 bytes, got ${show(payloadHash)}`,
      )
    }
    return `\\x${Buffer.from(payloadHash).toString('hex')}`
  }
  if (payload === undefined) return null
  if (typeof payload !== 'string' && !ArrayBuffer.isView(payload)) {
    throw new InvalidInputError(
      'ONARG',
      `Expected \`payload\` to be a string or bytes, got ${show(payload)}`,
      {
        hint: 'Pass the message as it came, before it is parsed',
      },
    )
  }
  return `\\x${createHash('sha256').update(payload).digest('hex')}`
}
