/**
 * Schema `once`, each function modelled after its file in `sql/`. One that reads twice does so in two steps, since
 * others run in between: a volatile function's every statement takes a new snapshot.
 */
import {
  type GlobalRow,
  lock,
  type Pause,
  read,
  refuse,
  type SimulatedDatabase,
  scan,
  statusOf,
  type Transaction,
  write,
} from './server.ts'

/** One backend's state, as statements see it. */
export interface SessionState {
  readonly database: SimulatedDatabase
  readonly login: string
  role: string
  /** Of a transaction block. */
  transaction: Transaction | undefined
}

export type Values = readonly unknown[]

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

function makeDurable(transaction: Transaction): void {
  if (transaction.synchronousCommit !== 'on' && transaction.synchronousCommit !== 'remote_apply')
    transaction.synchronousCommit = 'on'
}

/** What somebody remembers of this database must be so; null is not checked. */
function checkDatabaseId(transaction: Transaction, believed: unknown): void {
  const { databaseId } = transaction.database
  if (believed !== null && believed !== databaseId)
    throw refuse('ONIDN', `this database is ${databaseId}, not ${believed}`)
}

/** sql/commit/begin_global.sql */
export function* beginGlobal(
  transaction: Transaction,
  session: SessionState,
  [id, names, databaseIds, home]: Values,
): Generator<Pause, string | null> {
  assertBranch(transaction, session, String(id))
  if (transaction.xid === 0) return null
  makeDurable(transaction)
  checkDatabaseId(transaction, home)
  const key = String(id)
  yield* lock(transaction, 'global', key)
  if (read(transaction, 'global', key))
    throw refuse('23505', 'duplicate key value violates global_transaction_pkey')
  write(transaction, 'global', key, {
    id: key,
    xid: transaction.xid,
    participants: listOf(names),
    databaseIds: listOf(databaseIds),
    decidedAt: transaction.database.server.now(),
    provenAt: undefined,
    confirmedAt: undefined,
  })
  return String(transaction.xid)
}

/** sql/commit/vote.sql */
export function* vote(
  transaction: Transaction,
  session: SessionState,
  [id, home, participant, databaseId]: Values,
): Generator<Pause, boolean> {
  assertBranch(transaction, session, String(id))
  if (transaction.xid === 0) return false
  checkDatabaseId(transaction, databaseId)
  const key = String(id)
  yield* lock(transaction, 'evidence', key)
  if (read(transaction, 'evidence', key)) {
    removeOwn(transaction, 'evidence', key)
    if (read(transaction, 'evidence', key))
      throw refuse('23505', 'duplicate key value violates evidence_pkey')
  }
  write(transaction, 'evidence', key, { id: key, home: String(home), participant: String(participant) })
  return true
}

/** sql/commit/narrow_global.sql */
export function narrowGlobal(
  transaction: Transaction,
  id: string,
  names: string[],
  databaseIds: string[],
): void {
  const row = transaction.own.get(`global/${id}`) as GlobalRow | undefined
  if (names.length > 0) {
    if (row) write(transaction, 'global', id, { ...row, participants: names, databaseIds })
  } else {
    removeOwn(transaction, 'global', id)
  }
  removeOwn(transaction, 'evidence', id)
}

function removeOwn(transaction: Transaction, table: 'global' | 'evidence', key: string): void {
  if (transaction.own.get(`${table}/${key}`) !== undefined) write(transaction, table, key, undefined)
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
  // Whoever has locked relations of another database only is not this home either.
  const holder = server.running.get(Number(xid))
  over ||= holder !== undefined && holder.database !== transaction.database && hasLockedRelations(holder)
  yield pause(transaction)
  const row = read(transaction, 'global', id)
  return row !== undefined && String(row.xid) === xid ? 'committed' : over ? 'aborted' : 'pending'
}

function hasLockedRelations({ locks, deferred, unpreparable }: Transaction): boolean {
  return locks.length > 0 || deferred !== undefined || unpreparable
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

/** sql/recovery/mark_proven.sql */
export function* markProven(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
  makeDurable(transaction)
  let count = 0
  for (const id of ids) {
    if (!isUnproven(read(transaction, 'global', id))) continue
    yield* lock(transaction, 'global', id)
    const row = read(transaction, 'global', id)
    if (!isUnproven(row)) continue
    write(transaction, 'global', id, { ...row, provenAt: transaction.database.server.now() })
    count += 1
  }
  return count
}

export function isUnproven(row: GlobalRow | undefined): row is GlobalRow {
  return row !== undefined && row.provenAt === undefined
}

/** sql/recovery/mark_confirmed.sql */
export function* markConfirmed(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
  makeDurable(transaction)
  let count = 0
  for (const id of ids) {
    if (!isUnconfirmed(read(transaction, 'global', id))) continue
    yield* lock(transaction, 'global', id)
    const row = read(transaction, 'global', id)
    if (!isUnconfirmed(row)) continue
    write(transaction, 'global', id, { ...row, confirmedAt: transaction.database.server.now() })
    count += 1
  }
  return count
}

/** Proven, and not confirmed. */
export function isUnconfirmed(row: GlobalRow | undefined): row is GlobalRow {
  return row?.provenAt !== undefined && row.confirmedAt === undefined
}

/** sql/recovery/delete_evidence.sql */
export function* deleteEvidence(
  transaction: Transaction,
  home: string,
  ids: readonly string[],
): Generator<Pause, number> {
  makeDurable(transaction)
  for (const row of scan(transaction, 'heuristic')) {
    if (!ids.includes(row.id) || row.home !== home || row.done !== undefined) continue
    if (read(transaction, 'evidence', row.id) === undefined) continue
    yield* lock(transaction, 'heuristic', row.gid)
    write(transaction, 'heuristic', row.gid, { ...row, decided: 'committed', done: 'committed' })
  }
  let count = 0
  for (const id of ids) {
    if (read(transaction, 'evidence', id)?.home !== home) continue
    yield* lock(transaction, 'evidence', id)
    if (read(transaction, 'evidence', id)?.home !== home) continue
    write(transaction, 'evidence', id, undefined)
    count += 1
  }
  return count
}

/** sql/recovery/purge.sql */
export function* purge(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
  makeDurable(transaction)
  const gone: GlobalRow[] = []
  for (const id of ids) {
    if (read(transaction, 'global', id)?.confirmedAt === undefined) continue
    yield* lock(transaction, 'global', id)
    const row = read(transaction, 'global', id)
    if (row?.confirmedAt === undefined) continue
    write(transaction, 'global', id, undefined)
    gone.push(row)
  }
  if (gone.length > 0) {
    yield* lock(transaction, 'database', '')
    const before = read(transaction, 'database', '')?.purgedXid ?? 0
    write(transaction, 'database', '', { purgedXid: Math.max(before, ...gone.map(({ xid }) => xid)) })
  }
  return gone.length
}

/** sql/recovery/record_loss.sql */
export function* recordLoss(
  transaction: Transaction,
  [id, participant, home, kind]: readonly string[],
): Generator<Pause, boolean> {
  const key = `${id} ${participant} ${kind}`
  const isHeuristic = scan(transaction, 'heuristic').some(
    (row) => row.id === id && row.decided !== 'committed',
  )
  if (kind === 'lost decision' && isHeuristic) return false
  if (read(transaction, 'loss', key)) return false
  yield* lock(transaction, 'loss', key)
  if (read(transaction, 'loss', key)) return false
  write(transaction, 'loss', key, {
    id: String(id),
    participant: String(participant),
    home: String(home),
    kind: String(kind),
  })
  return true
}

/** sql/operator/judge_heuristic.sql */
export function* judgeHeuristic(
  transaction: Transaction,
  id: string,
  decided: string,
): Generator<Pause, number> {
  if (decided !== 'committed' && decided !== 'aborted') return 0
  const { database } = transaction
  const rows = scan(transaction, 'heuristic').filter((row) => row.id === id)
  if (
    rows.some(({ gid, owner }) =>
      branchesOf(database).some((branch) => branch.gid === gid && branch.owner === owner),
    )
  )
    return 0
  yield pause(transaction)
  let count = 0
  for (const row of rows) {
    if (row.done !== undefined) continue
    yield* lock(transaction, 'heuristic', row.gid)
    const done = read(transaction, 'evidence', id) ? 'committed' : 'rolled back'
    write(transaction, 'heuristic', row.gid, { ...row, decided, done })
    count += 1
  }
  return count
}

/** sql/recovery/stamp_recovery.sql */
export function stampRecovery(transaction: Transaction): void {
  const now = transaction.database.server.now()
  const row = read(transaction, 'recovery', '')
  if (row && row.recoveredAt > now - 5000) return
  if (transaction.xid === 0) transaction.synchronousCommit = 'off'
  // Skips what somebody else has locked.
  const holder = transaction.database.locks.get('recovery/')
  if (holder !== undefined && holder !== transaction) return
  transaction.database.locks.set('recovery/', transaction)
  transaction.locks.push('recovery/')
  write(transaction, 'recovery', '', { recoveredAt: now })
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
