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
import { asConnectionLost, type Database, withLink, withReadCommitted } from '../connection/database.ts'
import { fromOwn, InvalidInputError } from '../errors.ts'
import * as say from '../statements.ts'

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
  const by = owner === undefined ? null : checkName('owner', owner)
  await database.identify()
  const taken = await named(database, () =>
    withReadCommitted(
      database.connect(),
      async (link) => {
        await link.send(say.setLockTimeout(lockTimeout))
        return await link.send(say.takePartition(checked, by))
      },
      timeout,
    ),
  )
  return { ...checked, ...taken }
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
  const found = await named(database, () =>
    withLink(database.connect(), (link) => link.send(say.readPosition(checked)), timeout),
  )
  return found && { ...checked, ...found }
}

/**
 * The move of a position, checked and copied; it is sent with the commit.
 * @throws InvalidInputError `ONARG`; at the commit `ONFEN`, `ONCAS`, `ONTKN`, `ONEND`, `ONROL`
 * @see sql/position/advance.sql
 */
export function planMove(move: PositionMove): say.Statement<unknown> {
  const partition = check(move)
  const { expected, next } = move
  const epoch = checkEpoch(move.epoch)
  if (typeof next === 'string') {
    if (expected !== null && typeof expected !== 'string') {
      throw new InvalidInputError('ONARG', 'Expected `expected` to be a token or null, as `next` is a token')
    }
    const before = expected === null ? null : checkText('expected', expected)
    return say.advanceToken(partition, epoch, before, checkText('next', next))
  }
  const before = expected === null ? null : checkInteger('expected', expected, 0n, maxSequence)
  return say.advance(partition, epoch, before, checkInteger('next', next, 0n, maxSequence))
}

function check(which: Partition): Required<Partition> {
  const { group, topic, partition = 0 } = checkObject('partition', which, 'Pass { group, topic, partition }')
  return {
    group: checkName('group', group),
    topic: checkName('topic', topic),
    partition: Number(checkInteger('partition', partition, 0n, maxInt32)),
  }
}

async function named<T>(database: Database, question: () => Promise<T>): Promise<T> {
  try {
    return await question()
  } catch (error) {
    throw asConnectionLost(database.name, fromOwn(database.name, error))
  }
}
