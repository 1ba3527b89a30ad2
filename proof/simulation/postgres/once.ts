/**
 * Schema `once`, as coordinators and those who ask for outcomes use it, each function modelled after its file in
 * `sql/`. One that reads twice does so in two steps, since others run in between: a volatile function's every
 * statement takes a new snapshot.
 */
import {
  assignXid,
  lock,
  type Pause,
  read,
  refuse,
  type SimulatedDatabase,
  statusOf,
  type Transaction,
  write,
} from './server.ts'
import type { SessionState } from './session.ts'

export function assertBranch(transaction: Transaction, session: SessionState, id: string): void {
  if (transaction.mark === `${id} ${session.role}`) return
  if (!transaction.mark.startsWith(`${id} `))
    throw refuse('ONEND', 'the handler ended the transaction it was given')
  throw refuse('ONROL', `the handler changed the role to ${session.role}`)
}

export function assertHome(transaction: Transaction, home: string): void {
  if (transaction.isolation !== 'read committed')
    throw refuse('ONISO', `a decision cannot be read under ${transaction.isolation}`)
  if (transaction.database.databaseId !== home)
    throw refuse('ONIDN', `this database is ${transaction.database.databaseId}, not the home ${home}`)
}

/** sql/commit/open.sql */
export function open(
  transaction: Transaction,
  session: SessionState,
  id: string,
  lockTimeout: number,
  idleTimeout: number,
): void {
  transaction.mark = `${id} ${session.role}`
  transaction.lockTimeout = lockTimeout
  transaction.idleTimeout = idleTimeout
  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'
}

/** sql/commit/assert_branch.sql: once.seal */
export function seal(transaction: Transaction, session: SessionState, id: string): void {
  assertBranch(transaction, session, id)
  makeDurable(transaction)
}

export function makeDurable(transaction: Transaction): void {
  if (transaction.synchronousCommit !== 'on' && transaction.synchronousCommit !== 'remote_apply')
    transaction.synchronousCommit = 'on'
}

/** What somebody remembers of this database must be so. */
function checkDatabaseId(transaction: Transaction, believed: string): void {
  const { databaseId } = transaction.database
  if (believed !== databaseId) throw refuse('ONIDN', `this database is ${databaseId}, not ${believed}`)
}

/** sql/commit/begin_global.sql */
export function* beginGlobal(
  transaction: Transaction,
  session: SessionState,
  id: string,
  names: readonly string[],
  databaseIds: readonly string[],
  home: string,
): Generator<Pause, void> {
  assertBranch(transaction, session, id)
  if (transaction.xid === 0) return
  makeDurable(transaction)
  checkDatabaseId(transaction, home)
  yield* insertDecision(transaction, id, names, databaseIds)
}

/** sql/commit/vote.sql */
export function* vote(
  transaction: Transaction,
  session: SessionState,
  id: string,
  home: string,
  participant: string,
  databaseId: string,
): Generator<Pause, void> {
  assertBranch(transaction, session, id)
  if (transaction.xid === 0) return
  checkDatabaseId(transaction, databaseId)
  makeDurable(transaction)
  yield* insertEvidence(transaction, id, home, participant)
}

/** sql/commit/global_transaction.sql: the xid is the transaction's own, whoever inserts. */
export function* insertDecision(
  transaction: Transaction,
  id: string,
  participants: readonly string[],
  databaseIds: readonly string[],
): Generator<Pause, void> {
  yield* lock(transaction, 'global', id)
  if (read(transaction, 'global', id))
    throw refuse('23505', 'duplicate key value violates global_transaction_pkey')
  write(transaction, 'global', id, {
    id,
    xid: assignXid(transaction),
    participants,
    databaseIds,
    decidedAt: transaction.database.server.now(),
    provenAt: undefined,
    confirmedAt: undefined,
  })
}

/** sql/commit/evidence.sql */
export function* insertEvidence(
  transaction: Transaction,
  id: string,
  home: string,
  participant: string,
): Generator<Pause, void> {
  yield* lock(transaction, 'evidence', id)
  if (read(transaction, 'evidence', id)) throw refuse('23505', 'duplicate key value violates evidence_pkey')
  write(transaction, 'evidence', id, { id, home, participant })
}

/** sql/ledger/claim.sql, as far as the protocol can tell: true if nobody has claimed it. */
export function* claimSequence(
  transaction: Transaction,
  producer: string,
  sequence: string,
): Generator<Pause, boolean> {
  yield* lock(transaction, 'sequence', producer)
  const claimed = read(transaction, 'sequence', producer) ?? []
  if (claimed.includes(sequence)) return false
  write(transaction, 'sequence', producer, [...claimed, sequence])
  return true
}

/** sql/recovery/branch_outcomes.sql: the status, and then, with a newer snapshot, the row. */
export function* branchOutcome(
  transaction: Transaction,
  home: string,
  id: string,
  xid: string,
): Generator<Pause, string> {
  assertHome(transaction, home)
  const { server } = transaction.database
  let over = true
  try {
    over = (statusOf(server, Number(xid)) ?? 'too old') !== 'in progress'
  } catch {
    // In the future: lost in a crash before anything of it was flushed.
  }
  over ||= [...server.prepared.values()].some(
    (prepared) => prepared.valid && prepared.transaction.xid === Number(xid),
  )
  yield pause(transaction)
  const row = read(transaction, 'global', id)
  return row !== undefined && String(row.xid) === xid ? 'committed' : over ? 'aborted' : 'pending'
}

/** sql/recovery/outcome.sql */
export function* outcome(
  transaction: Transaction,
  home: string,
  id: string,
  xid: string,
): Generator<Pause, string> {
  const answer = yield* branchOutcome(transaction, home, id, xid)
  yield pause(transaction)
  const purged = read(transaction, 'database', '')?.purgedXid ?? 0
  return answer === 'aborted' && purged >= Number(xid) ? 'purged' : answer
}

/** Between two statements of a function. Now and then the backend gets no processor for a while. */
export function pause(transaction: Transaction): number {
  const { random: dice } = transaction.database.server
  return dice.chance(0.1) ? dice.between(0.5, 50) : dice.between(0.001, 0.5)
}

const gidPattern = /^once:1:([0-9a-f-]{36}):([0-9a-f-]{36}):([0-9]{1,19}):([A-Za-z0-9._-]{1,63})$/

interface GidParts {
  readonly home: string
  readonly id: string
  readonly xid: string
  readonly participant: string
}

/** sql/recovery/decode_gid.sql */
export function decodeGid(gid: string): GidParts | undefined {
  const [, home, id, xid, participant] = gidPattern.exec(gid) ?? []
  if (home === undefined || id === undefined || xid === undefined || participant === undefined)
    return undefined
  return { home, id, xid, participant }
}

/** sql/recovery/branch.sql: of this database only, and only those of the list. */
export function branchesOf(
  database: SimulatedDatabase,
): (GidParts & { gid: string; owner: string; at: number })[] {
  const branches = []
  for (const { gid, owner, at, valid, transaction } of database.server.prepared.values()) {
    if (!valid || transaction.database !== database) continue
    const parts = decodeGid(gid)
    if (parts) branches.push({ ...parts, gid, owner, at })
  }
  return branches
}

export function listOf(literal: unknown): string[] {
  const inner = String(literal).slice(1, -1)
  return inner === '' ? [] : inner.split(',')
}
