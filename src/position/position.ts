/** Positions of consumer groups, kept beside the results. What decides is in `sql/position/`. */
import { checkInt32, checkName, checkObject, checkSequence, checkText } from '../check.ts'
import { asConnectionLost, type Database, withLink, withReadCommitted } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { fromOwn, InvalidInputError } from '../errors.ts'
import type { TransactionSettings } from '../options.ts'
import * as say from '../statements.ts'

export interface Partition {
  /** The consumer group; it and the topic have 1 to 200 characters. */
  readonly group: string
  readonly topic: string
  /** @defaultValue 0 */
  readonly partition?: number
}

/** A numeric position (the next message to read), or an opaque token; null: the start. */
export type Position = bigint | string | null

/** A partition that was taken: from here on until somebody else takes it. */
export interface TakenPartition extends Required<Partition> {
  /** Fences whoever had it before; every move needs it. */
  readonly epoch: number
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

export interface PositionState extends TakenPartition {
  readonly owner: string | null
  readonly updatedAt: Date
}

/** See `Pgonce.takePartition`; `lockTimeout` bounds the wait for a branch in doubt, `timeout` all of it. */
export async function takePartition(
  database: Database,
  partition: Partition,
  owner: string | undefined,
  { lockTimeout, timeout }: TransactionSettings,
): Promise<TakenPartition> {
  const checked = check(partition)
  const take = say.takePartition(checked, owner === undefined ? null : checkName('owner', owner))
  const taken = await asked(database, withReadCommitted, timeout, async (link) => {
    await link.send(say.setLockTimeout(lockTimeout))
    return await link.send(take)
  })
  return { ...checked, ...taken }
}

export async function readPosition(
  database: Database,
  partition: Partition,
  { timeout }: TransactionSettings,
): Promise<PositionState | undefined> {
  const checked = check(partition)
  const found = await asked(database, withLink, timeout, (link) => link.send(say.readPosition(checked)))
  return found && { ...checked, ...found }
}

/** The move of a position, checked and copied; sent with the commit. @throws InvalidInputError `ONARG` */
export function planMove(move: PositionMove): say.Statement<unknown> {
  const partition = check(move)
  const { expected, next } = move
  const epoch = checkInt32('epoch', move.epoch)
  if (typeof next !== 'string') {
    const before = expected === null ? null : checkSequence('expected', expected)
    return say.advance(partition, epoch, before, checkSequence('next', next))
  }
  if (expected !== null && typeof expected !== 'string') {
    throw new InvalidInputError('ONARG', 'Expected `expected` to be a token or null, as `next` is a token')
  }
  const before = expected === null ? null : checkText('expected', expected)
  return say.advance(partition, epoch, before, checkText('next', next))
}

function check(which: Partition): Required<Partition> {
  const { group, topic, partition = 0 } = checkObject('partition', which, 'Pass { group, topic, partition }')
  return {
    group: checkName('group', group),
    topic: checkName('topic', topic),
    partition: checkInt32('partition', partition),
  }
}

async function asked<T>(
  database: Database,
  within: typeof withLink,
  timeout: number,
  question: (link: Link) => Promise<T>,
): Promise<T> {
  await database.identify()
  try {
    return await within(database.connect(), question, timeout)
  } catch (error) {
    throw asConnectionLost(database.name, fromOwn(database.name, error))
  }
}
