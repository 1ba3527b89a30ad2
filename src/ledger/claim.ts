/**
 * Claims: which of the messages at hand are new. What decides is in `sql/ledger/`; here values are checked,
 * sent and read.
 */
import { createHash } from 'node:crypto'
import {
  checkArray,
  checkBoolean,
  checkEpoch,
  checkName,
  checkObject,
  checkSequence,
  checkText,
  show,
} from '../check.ts'
import type { Branch } from '../commit/branch.ts'
import { fromOwn, InvalidInputError } from '../errors.ts'

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
  /** The message's id; any length. If it is a UUIDv7 or a ULID, its time is the message's time. */
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
  readonly keepResult?: never
}

const bySequence = ['producer', 'sequence', 'sequences', 'epoch', 'strict'] as const
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
  return sequenced
}

/** What would be ignored is refused: whoever wrote it expects it to do something. */
function refuseAmong(given: object, names: readonly string[], why: string, hint: string): void {
  const found = names.find((name) => (given as Record<string, unknown>)[name] !== undefined)
  if (found !== undefined) throw new InvalidInputError('ONARG', `\`${found}\` ${why}`, { hint })
}

export type ClaimStatus = 'claimed' | 'duplicate' | 'expired'

export interface Claim {
  readonly status: ClaimStatus
  /** What the first one's handler returned, if it was kept. */
  readonly result: unknown
}

export interface KeyClaim extends Claim {
  readonly key: string
}

/** Claims one message in a branch. @throws PgonceError `ONARG`, `ONFEN`, `ONGAP`, `ONMAX`, `ONPAY` */
export async function claim(branch: Branch, message: Message): Promise<Claim> {
  if (typeof message !== 'object' || message === null) {
    throw new InvalidInputError('ONARG', `Expected a message, got ${show(message)}`, {
      hint: "Pass { producer: 'shop-7', sequence: 41n } or { scope: 'stripe', key: 'evt_1' }",
    })
  }
  if (isSequenced(message)) {
    const { rows } = await run<{ status: ClaimStatus }>(
      branch,
      `select once.claim($1, $2::text::bigint, $3::int, $4::boolean) as status, once.assert_branch($5::uuid)`,
      [
        checkName('producer', message.producer),
        String(checkSequence(message.sequence)),
        checkEpoch(message.epoch ?? 0),
        checkBoolean('strict', message.strict, false),
        branch.transactionId,
      ],
    )
    return { status: rows[0]?.status ?? 'duplicate', result: undefined }
  }
  checkBoolean('keepResult', message.keepResult, false)
  const { rows } = await run<{ status: ClaimStatus; result: string | null }>(
    branch,
    `select c.status, c.result::text as result, once.assert_branch($5::uuid)
       from once.claim_key($1, $2, $3::text::timestamptz, decode($4, 'hex')) c`,
    [
      checkName('scope', message.scope),
      checkKey(message.key),
      time(message),
      hash(message),
      branch.transactionId,
    ],
  )
  const { status = 'duplicate', result = null } = rows[0] ?? {}
  return { status, result: result === null ? undefined : JSON.parse(result) }
}

/** Claims sequences of one producer; the new ones, once each, in the order given. */
export async function claimSequences(branch: Branch, batch: SequencedBatch): Promise<bigint[]> {
  const producer = checkName('producer', batch.producer)
  // Not map, which skips what a sparse array lacks.
  const sequences = Array.from(checkArray('sequences', batch.sequences), checkSequence)
  const [first, last] = [sequences[0], sequences.at(-1)]
  const isRun =
    first !== undefined && sequences.every((sequence, index) => sequence === first + BigInt(index))
  // The rule is a run, and two numbers say it.
  const ranges = isRun ? [`[${first},${last}]`] : sequences.map((sequence) => `[${sequence},${sequence}]`)
  const { rows } = await run<{ fresh: string }>(
    branch,
    `select once.claim_ranges($1, $2::text::int8multirange, $3::int, $4::boolean)::text as fresh,
            once.assert_branch($5::uuid)`,
    [
      producer,
      `{${ranges.join(',')}}`,
      checkEpoch(batch.epoch ?? 0),
      checkBoolean('strict', batch.strict, false),
      branch.transactionId,
    ],
  )
  const fresh = Array.from((rows[0]?.fresh ?? '').matchAll(/\[(\d+),(\d+)\)/g), ([, from, to]) => ({
    from: BigInt(from ?? ''),
    to: BigInt(to ?? ''),
  }))
  if (isRun && fresh[0]?.from === first && fresh[0].to === (last ?? 0n) + 1n) return sequences
  const left = new Set<bigint>()
  for (const { from, to } of fresh) for (let one = from; one < to; one += 1n) left.add(one)
  return sequences.filter((sequence) => left.delete(sequence))
}

/** Claims keys of one scope; one answer a message, in the order given. */
export async function claimKeys(branch: Branch, batch: KeyedBatch): Promise<KeyClaim[]> {
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
  const input = messages.map((message) => ({
    key: checkKey(message.key),
    at: time(message),
    hash: hash(message),
  }))
  const { rows } = await run<{ answer: string }>(
    branch,
    `select once.claim_keys($1, i.keys, i.times, i.hashes) as answer, once.assert_branch($3::uuid)
       from (select coalesce(array_agg(m.key order by n), '{}') as keys,
                    array_agg(m.at order by n) as times,
                    array_agg(decode(m.hash, 'hex') order by n) as hashes
               from jsonb_array_elements($2::text::jsonb) with ordinality e (value, n)
              cross join lateral jsonb_to_record(e.value) as m (key text, at timestamptz, hash text)) i`,
    [checkName('scope', batch.scope), JSON.stringify(input), branch.transactionId],
  )
  const answer = rows[0]?.answer ?? ''
  const answers: (ClaimStatus | { result: unknown })[] | undefined =
    answer === 'claimed' ? undefined : JSON.parse(answer)
  return input.map(({ key }, index) => {
    const one = answers === undefined ? 'claimed' : (answers[index] ?? 'duplicate')
    return typeof one === 'string'
      ? { key, status: one, result: undefined }
      : { key, status: 'duplicate', result: one.result }
  })
}

/** Keeps the handler's result beside the claim; travels with the commit. */
export async function keepResult(branch: Branch, message: KeyedMessage, result: unknown): Promise<void> {
  let json: string | undefined
  let cause: unknown
  try {
    json = JSON.stringify(result ?? null)
  } catch (error) {
    cause = error
  }
  // NUL, or half of a surrogate pair; an escape only behind an even number of backslashes.
  if (json === undefined || /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(json)) {
    throw new InvalidInputError(
      'ONARG',
      'Expected the handler to return what JSON can hold, as well-formed text without NUL characters',
      { hint: 'Return plain data, or leave keepResult out', cause },
    )
  }
  await branch.send(
    'select once.assert_branch($5::uuid), once.keep_result($1, $2, $3::text::jsonb, $4::text::timestamptz)',
    [message.scope, message.key, json, time(message), branch.transactionId],
  )
}

/**
 * Runs a claim. It travels with BEGIN, so it says in which transaction it belongs (`once.assert_branch`): should
 * BEGIN fail, the claim fails, too.
 */
async function run<R>(branch: Branch, text: string, parameters: readonly unknown[]): Promise<{ rows: R[] }> {
  try {
    return await branch.query<R>(text, parameters)
  } catch (error) {
    // What was sent ahead (BEGIN, once.open) and failed is the better explanation.
    await branch.settle()
    throw fromOwn(branch.database.name, error)
  }
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

/** Hexadecimal, or null without a payload. */
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
    return Buffer.from(payloadHash).toString('hex')
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
  return createHash('sha256').update(payload).digest('hex')
}
