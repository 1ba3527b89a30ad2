/**
 * Claims: which of the messages at hand are new. What decides is in `sql/ledger/`; here values are checked,
 * sent and read.
 */
import { createHash } from 'node:crypto'
import { fromSql, InvalidInputError } from './errors.ts'
import { checkEpoch, checkName, checkSequence, checkText, show } from './names.ts'
import type { Branch } from './transaction/branch.ts'

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
}

/** A message with an id but no order: a webhook delivery, a payment. */
export interface KeyedMessage {
  /** Where ids come from, such as `stripe`; retention is set per scope. 1 to 200 characters. */
  readonly scope: string
  /** The message's id; any length. If it is a UUIDv7 or a ULID, its time is the message's time. */
  readonly key: string
  /**
   * The message's own time, the same at every delivery (never the time of arrival). It decides where the
   * claim is kept and when it expires. Without any time the claim is kept apart and swept by its age.
   */
  readonly occurredAt?: Date
  /**
   * The message itself, or its SHA-256 as 32 bytes in `payloadHash`: if the key comes again with another
   * payload, that is an error instead of a duplicate.
   */
  readonly payload?: string | Uint8Array
  readonly payloadHash?: Uint8Array
  /** Keep what the handler returns, as JSON, and give it to duplicates. @defaultValue false */
  readonly keepResult?: boolean
}

export type Message = SequencedMessage | KeyedMessage

/** Messages of one producer. */
export interface SequencedBatch {
  readonly producer: string
  readonly sequences: readonly (bigint | number)[]
  readonly epoch?: number
  readonly strict?: boolean
}

/** Messages of one scope; see {@link KeyedMessage}. */
export interface KeyedBatch {
  readonly scope: string
  readonly messages: readonly (string | Omit<KeyedMessage, 'scope' | 'keepResult'>)[]
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
  if ('producer' in message) {
    const { rows } = await run<{ status: ClaimStatus }>(
      branch,
      `select case when once.claim_run($1, $2::text::bigint, $2::text::bigint, $3::int) then 'claimed'
                   else (select c.status from once.claim($1, $2::text::bigint, $3::int, $4::boolean) c) end as status`,
      [
        checkName('producer', message.producer),
        String(checkSequence(message.sequence)),
        checkEpoch(message.epoch ?? 0),
        message.strict ?? false,
      ],
    )
    return { status: rows[0]?.status ?? 'duplicate', result: undefined }
  }
  const { rows } = await run<{ status: ClaimStatus; result: string | null }>(
    branch,
    `select c.status, c.result::text as result
       from once.claim_key($1, $2, $3::text::timestamptz, decode($4, 'hex')) c`,
    [checkName('scope', message.scope), checkKey(message.key), time(message), hash(message)],
  )
  const { status = 'duplicate', result = null } = rows[0] ?? {}
  return { status, result: result === null ? undefined : JSON.parse(result) }
}

/** Claims sequences of one producer; the new ones, once each, in the order given. */
export async function claimSequences(branch: Branch, batch: SequencedBatch): Promise<bigint[]> {
  const producer = checkName('producer', batch.producer)
  const sequences = batch.sequences.map(checkSequence)
  const common = [producer, checkEpoch(batch.epoch ?? 0), batch.strict ?? false]
  const [first, last] = [sequences[0], sequences.at(-1)]
  const isRun =
    first !== undefined && sequences.every((sequence, index) => sequence === first + BigInt(index))
  const { rows } = isRun
    ? // The rule: the batch is the next piece of its stream, and all new. Two numbers say so, and one word.
      await run<{ fresh: string | null }>(
        branch,
        `select case when once.claim_run($1, $4::text::bigint, $5::text::bigint, $2::int) then null
                     else array(select c from once.claim_batch(
                                  $1, array(select generate_series($4::text::bigint, $5::text::bigint)), $2::int, $3::boolean
                                ) c)::text end as fresh`,
        [...common, String(first), String(last)],
      )
    : await run<{ fresh: string | null }>(
        branch,
        'select array(select c from once.claim_batch($1, $4::text::bigint[], $2::int, $3::boolean) c)::text as fresh',
        [...common, `{${sequences.join(',')}}`],
      )
  const fresh = rows[0]?.fresh
  if (fresh == null) return sequences
  const left = new Set(fresh.slice(1, -1).split(',').filter(Boolean).map(BigInt))
  return sequences.filter((sequence) => left.delete(sequence))
}

/** Claims keys of one scope; one answer a message, in the order given. */
export async function claimKeys(branch: Branch, batch: KeyedBatch): Promise<KeyClaim[]> {
  const messages = batch.messages.map((message) => (typeof message === 'string' ? { key: message } : message))
  const input = messages.map((message) => ({
    key: checkKey(message.key),
    at: time(message),
    hash: hash(message),
  }))
  const { rows } = await run<{ status: ClaimStatus; result: string | null }>(
    branch,
    `select c.status, c.result::text as result
       from (select coalesce(array_agg(m.key order by n), '{}') as keys,
                    array_agg(m.at order by n) as times,
                    array_agg(decode(m.hash, 'hex') order by n) as hashes
               from jsonb_array_elements($2::text::jsonb) with ordinality e (value, n)
              cross join lateral jsonb_to_record(e.value) as m (key text, at timestamptz, hash text)) i
      cross join lateral once.claim_key_batch($1, i.keys, i.times, i.hashes) c
      order by c.ordinal`,
    [checkName('scope', batch.scope), JSON.stringify(input)],
  )
  return rows.map(({ status, result }, index) => ({
    key: input[index]?.key ?? '',
    status,
    result: result === null ? undefined : JSON.parse(result),
  }))
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
  // An escape only behind an even number of backslashes.
  if (json === undefined || /(?<!\\)(?:\\\\)*\\u0000/.test(json)) {
    throw new InvalidInputError(
      'ONARG',
      'Expected the handler to return what JSON can hold, without NUL characters',
      { hint: 'Return plain data, or leave keepResult out', cause },
    )
  }
  await branch.checkOpen()
  await branch.send('select once.keep_result($1, $2, $3::text::jsonb, $4::text::timestamptz)', [
    message.scope,
    message.key,
    json,
    time(message),
  ])
}

async function run<R>(branch: Branch, text: string, parameters: readonly unknown[]): Promise<{ rows: R[] }> {
  try {
    return await branch.query<R>(text, parameters)
  } catch (error) {
    // What was sent ahead (BEGIN, once.open) and failed is the better explanation.
    await branch.settle()
    throw fromSql(error)
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
  if (payloadHash !== undefined) {
    if (!(payloadHash instanceof Uint8Array) || payloadHash.length === 0 || payloadHash.length > 64) {
      throw new InvalidInputError(
        'ONARG',
        `Expected \`payloadHash\` to be 1 to 64 bytes, got ${show(payloadHash)}`,
      )
    }
    return Buffer.from(payloadHash).toString('hex')
  }
  return payload === undefined ? null : createHash('sha256').update(payload).digest('hex')
}
