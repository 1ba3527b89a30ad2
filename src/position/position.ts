/**
 * Positions of consumer groups, kept beside the results. What decides is in `sql/position/`.
 */
import {
  checkEpoch,
  checkInteger,
  checkName,
  checkObject,
  checkText,
  maxInt32,
  maxSequence,
} from '../check.ts'
import type { Branch } from '../commit/branch.ts'
import { asConnectionLost, type Database, withReadCommitted, withSession } from '../connection/database.ts'
import type { SessionResult } from '../connection/session.ts'
import { fromOwn, InvalidInputError } from '../errors.ts'

/** Which position. */
export interface Partition {
  /** The consumer group. 1 to 200 characters. */
  readonly group: string
  /** 1 to 200 characters. */
  readonly topic: string
  /** @defaultValue 0 */
  readonly partition?: number
}

/** A numeric position (the next message to read), or an opaque token; null: the start. */
export type Position = bigint | string | null

/** A partition that was taken: from here on until somebody else takes it. */
export interface TakenPartition extends Required<Partition> {
  /** Fences whoever had it before; every move of the position needs it. */
  readonly epoch: number
  /** Where to go on. */
  readonly position: Position
}

/** A move of a position that commits together with the results. */
export interface PositionMove extends Partition {
  readonly epoch: number
  /** Where the position must be now, as read when the partition was taken or moved last. */
  readonly expected: Position | number
  /** Where it shall be: the next message to read. A number or bigint, or a string for a token. */
  readonly next: bigint | number | string
}

/** What is known of a position. */
export interface PositionState extends Required<Partition> {
  readonly position: Position
  readonly epoch: number
  readonly owner: string | null
  readonly updatedAt: Date
}

/**
 * Takes a partition for a consumer: bumps its epoch, which fences the previous owner. If the connection is lost
 * it may have been taken, without anybody knowing the epoch: take it again. Waits no longer than
 * `lockTimeout` for the transaction that moves its position, which may be a branch in doubt, and no longer than
 * `timeout` for the server (both milliseconds).
 * @throws PgonceError `ONARG`, `CONNECTION_LOST`, `LOCK_TIMEOUT`, `TIMEOUT`
 * @see sql/position/take_partition.sql
 */
export async function takePartition(
  database: Database,
  partition: Partition,
  owner: string | undefined,
  { lockTimeout, timeout }: { readonly lockTimeout: number; readonly timeout: number },
): Promise<TakenPartition> {
  const checked = check(partition)
  await database.identify()
  const by = owner === undefined ? null : checkName('owner', owner)
  const [row] = await ask(database, () =>
    withReadCommitted(
      database.connect(),
      async (session) => {
        await session.query("select set_config('lock_timeout', $1, true)", [String(lockTimeout)])
        return await session.query<{ epoch: number; number: string | null; token: string | null }>(
          'select t.epoch, t."position"::text as number, t.token from once.take_partition($1, $2, $3::int, $4) t',
          [checked.group, checked.topic, checked.partition, by],
        )
      },
      timeout,
    ),
  )
  if (row === undefined) throw new Error('unreachable: once.take_partition returns one row')
  return { ...checked, epoch: row.epoch, position: position(row) }
}

/**
 * Reads a position without taking the partition; undefined if it was never taken.
 * @param timeout milliseconds to wait for the server
 * @throws PgonceError `ONARG`, `CONNECTION_LOST`, `TIMEOUT`
 * @see sql/position/read_position.sql
 */
export async function readPosition(
  database: Database,
  partition: Partition,
  timeout: number,
): Promise<PositionState | undefined> {
  const checked = check(partition)
  await database.identify()
  const [row] = await ask(database, () =>
    withSession(
      database.connect(),
      (session) =>
        session.query<{
          epoch: number
          number: string | null
          token: string | null
          owner: string | null
          at: string
        }>(
          `select o.epoch, o."position"::text as number, o.token, o.owner,
                  to_char(o.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as at
             from once.read_position($1, $2, $3::int) o`,
          [checked.group, checked.topic, checked.partition],
        ),
      timeout,
    ),
  )
  if (row === undefined) return undefined
  return {
    ...checked,
    position: position(row),
    epoch: row.epoch,
    owner: row.owner,
    updatedAt: new Date(row.at),
  }
}

/**
 * Moves a position in a branch; travels with the commit, so it asks itself whether the transaction is still open: it
 * would move by itself behind a ROLLBACK of the handler's.
 * @throws PgonceError `ONARG`; at the commit `ONFEN`, `ONCAS`, `ONTKN`, `ONEND`, `ONROL`
 * @see sql/position/advance.sql
 */
export async function advance(branch: Branch, move: PositionMove): Promise<void> {
  const { group, topic, partition } = check(move)
  const { epoch, expected, next } = move
  const common = [group, topic, partition, checkEpoch(epoch)]
  if (typeof next === 'string') {
    if (expected !== null && typeof expected !== 'string') {
      throw new InvalidInputError('ONARG', 'Expected `expected` to be a token or null, as `next` is a token')
    }
    const before = expected === null ? null : checkText('expected', expected)
    await branch.send(
      'select once.assert_branch($7::uuid), once.advance_token($1, $2, $3::int, $4::int, $5, $6)',
      [...common, before, checkText('next', next), branch.transactionId],
    )
    return
  }
  const before = expected === null ? null : String(checkInteger('expected', expected, 0n, maxSequence))
  const after = String(checkInteger('next', next, 0n, maxSequence))
  await branch.send(
    'select once.assert_branch($7::uuid), once.advance($1, $2, $3::int, $4::int, $5::text::bigint, $6::text::bigint)',
    [...common, before, after, branch.transactionId],
  )
}

function check(which: Partition): Required<Partition> {
  const { group, topic, partition = 0 } = checkObject('partition', which, 'Pass { group, topic, partition }')
  return {
    group: checkName('group', group),
    topic: checkName('topic', topic),
    partition: Number(checkInteger('partition', partition, 0n, maxInt32)),
  }
}

function position({ number, token }: { number: string | null; token: string | null }): Position {
  return number === null ? token : BigInt(number)
}

async function ask<R>(database: Database, question: () => Promise<SessionResult<R>>): Promise<R[]> {
  try {
    return (await question()).rows
  } catch (error) {
    throw asConnectionLost(database.name, fromOwn(database.name, error))
  }
}
