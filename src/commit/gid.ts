/**
 * The gid of a branch: `once:1:<home>:<transaction>:<home xid>:<participant>`. Built here and nowhere else;
 * taken apart here and in `sql/recovery/decode_gid.sql`.
 *
 * The part before the participant is the id of the global transaction: it says where to ask and for what.
 */
import { checkDatabaseName, show } from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import type { GlobalId } from '../statements.ts'

const uuid = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
const pattern = new RegExp(`^once:1:(${uuid}):(${uuid}):([0-9]{1,19})$`)

/** The id of a global transaction, for `once.outcome(id)`. */
export function formatId({ home, transactionId, homeXid }: GlobalId): string {
  return `once:1:${home}:${transactionId}:${homeXid}`
}

/** @throws InvalidInputError `ONARG` if it is no such id */
export function parseId(id: string): GlobalId {
  const [, home, transactionId, homeXid] = (typeof id === 'string' && pattern.exec(id)) || []
  if (home === undefined || transactionId === undefined || homeXid === undefined) {
    const hint = 'It is `id` of a result or an OutcomeUnknownError, and looks like once:1:<uuid>:<uuid>:<xid>'
    throw new InvalidInputError('ONARG', `Expected an id of a global transaction, got ${show(id)}`, { hint })
  }
  return { home, transactionId, homeXid }
}

/** The gid of one branch. At most 165 characters, where Postgres takes 199. */
export function formatGid(id: GlobalId, participant: string): string {
  return `${formatId(id)}:${checkDatabaseName(participant)}`
}
