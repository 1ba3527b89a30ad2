/**
 * The statements that the client sends, by their exact text, and what a database with schema `once` answers. A
 * text that is not here is an error of the simulation, never an answer.
 *
 * Each function is modelled after its file in `sql/`. One that reads twice does so in two steps, since others run
 * in between: a volatile function's every statement takes a new snapshot.
 */
import type { Kind } from '../points.ts'
import {
  type Answer,
  abort,
  assignXid,
  beginTransaction,
  commitTransaction,
  type EvidenceRow,
  type Flushed,
  finishPrepared,
  type GlobalRow,
  lock,
  type Pause,
  prepareTransaction,
  read,
  refuse,
  type SimulatedDatabase,
  scan,
  statusOf,
  superuser,
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

type Values = readonly unknown[]
type Run = (
  transaction: Transaction,
  session: SessionState,
  values: Values,
) => Answer | Generator<Pause, Answer>

/** What a text means: which purpose it has in the flow, and how it runs. */
export interface Statement {
  readonly kind: Kind
  run(session: SessionState, values: Values, flushed: Flushed): Generator<Pause, Answer>
}

/** The simulation does not know what the client wants: somebody must teach it. */
export class UnknownStatement extends Error {}

const select = (...rows: object[]): Answer => ({ rows, command: 'SELECT', count: rows.length })
const tag = (command: string): Answer => ({ rows: [], command })

// ---------------------------------------------------------------------------------------------------
// Schema once

function checkOpen(transaction: Transaction, session: SessionState, id: string): void {
  if (transaction.mark === `${id} ${session.role}`) return
  if (!transaction.mark.startsWith(`${id} `))
    throw refuse('ONEND', 'the handler ended the transaction it was given')
  throw refuse('ONROL', `the handler changed the role to ${session.role}`)
}

function checkHome(transaction: Transaction, home: string): void {
  if (transaction.isolation !== 'read committed')
    throw refuse('ONISO', `a decision cannot be read under ${transaction.isolation}`)
  if (transaction.database.identity !== home)
    throw refuse('ONIDN', `this database is ${transaction.database.identity}, not the home ${home}`)
}

/** sql/transaction/open.sql */
function open(
  transaction: Transaction,
  session: SessionState,
  id: string,
  lockTimeout: number,
  idleTimeout: number,
) {
  transaction.mark = `${id} ${session.role}`
  transaction.lockTimeout = lockTimeout
  transaction.idleTimeout = idleTimeout
  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'
  return tag('CALL')
}

function makeDurable(transaction: Transaction): void {
  if (transaction.synchronousCommit !== 'on' && transaction.synchronousCommit !== 'remote_apply')
    transaction.synchronousCommit = 'on'
}

/** What somebody remembers of this database must be so; null is not checked. */
function checkIdentity(transaction: Transaction, believed: unknown): void {
  const { identity } = transaction.database
  if (believed !== null && believed !== identity)
    throw refuse('ONIDN', `this database is ${identity}, not ${believed}`)
}

/** sql/transaction/begin_global.sql */
function* beginGlobal(
  transaction: Transaction,
  session: SessionState,
  [id, names, homes, home]: Values,
): Generator<Pause, string | null> {
  checkOpen(transaction, session, String(id))
  if (transaction.xid === 0) return null
  makeDurable(transaction)
  checkIdentity(transaction, home)
  const key = String(id)
  yield* lock(transaction, 'global', key)
  if (read(transaction, 'global', key))
    throw refuse('23505', 'duplicate key value violates global_transaction_pkey')
  write(transaction, 'global', key, {
    id: key,
    xid: transaction.xid,
    participants: listOf(names),
    homes: listOf(homes),
    decidedAt: transaction.database.server.now(),
    provenAt: undefined,
    confirmedAt: undefined,
  })
  return String(transaction.xid)
}

/** sql/transaction/vote.sql */
function* vote(
  transaction: Transaction,
  session: SessionState,
  [id, home, participant, participantHome]: Values,
): Generator<Pause, boolean> {
  checkOpen(transaction, session, String(id))
  if (transaction.xid === 0) return false
  checkIdentity(transaction, participantHome)
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

/** sql/transaction/narrow_global.sql */
function narrowGlobal(transaction: Transaction, id: string, names: string[], homes: string[]): void {
  const row = transaction.own.get(`global/${id}`) as GlobalRow | undefined
  if (names.length > 0) {
    if (row) write(transaction, 'global', id, { ...row, participants: names, homes })
  } else {
    removeOwn(transaction, 'global', id)
  }
  removeOwn(transaction, 'evidence', id)
}

function removeOwn(transaction: Transaction, table: 'global' | 'evidence', key: string): void {
  if (transaction.own.get(`${table}/${key}`) !== undefined) write(transaction, table, key, undefined)
}

/** sql/transaction/decide_batch.sql: the status, and then, with a newer snapshot, the row. */
export function* decide(
  transaction: Transaction,
  home: string,
  id: string,
  xid: string,
): Generator<Pause, string> {
  checkHome(transaction, home)
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

/** sql/transaction/outcome.sql */
function* outcome(transaction: Transaction, home: string, id: string, xid: string): Generator<Pause, string> {
  const decision = yield* decide(transaction, home, id, xid)
  yield pause(transaction)
  const forgotten = read(transaction, 'identity', '')?.forgottenXid ?? 0
  return decision === 'aborted' && forgotten >= Number(xid) ? 'forgotten' : decision
}

/** Between two statements of a function. Now and then the backend gets no processor for a while. */
function pause(transaction: Transaction): number {
  const { random: dice } = transaction.database.server
  return dice.chance(0.1) ? dice.between(0.5, 50) : dice.between(0.001, 0.5)
}

/** sql/transaction/mark_proven.sql */
function* markProven(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
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

function isUnproven(row: GlobalRow | undefined): row is GlobalRow {
  return row !== undefined && row.provenAt === undefined
}

/** A page of decisions by the time at which they were proven, or confirmed. */
function pageBy(time: 'provenAt' | 'confirmedAt', rows: readonly GlobalRow[], [size, at, id]: Values) {
  return rows
    .filter(
      (row) =>
        at === null || Number(row[time]) > Number(at) || (row[time] === Number(at) && row.id > String(id)),
    )
    .toSorted((one, other) => Number(one[time]) - Number(other[time]) || (one.id < other.id ? -1 : 1))
    .slice(0, Number(size))
    .map((row) => ({ ...decisionColumns(row), at: String(row[time]) }))
}

/** sql/transaction/mark_confirmed.sql */
function* markConfirmed(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
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
function isUnconfirmed(row: GlobalRow | undefined): row is GlobalRow {
  return row?.provenAt !== undefined && row.confirmedAt === undefined
}

/** sql/transaction/delete_evidence.sql */
function* deleteEvidence(
  transaction: Transaction,
  home: string,
  ids: readonly string[],
): Generator<Pause, number> {
  makeDurable(transaction)
  for (const row of scan(transaction, 'forced')) {
    if (!ids.includes(row.id) || row.home !== home || row.done !== undefined) continue
    if (read(transaction, 'evidence', row.id) === undefined) continue
    yield* lock(transaction, 'forced', row.gid)
    write(transaction, 'forced', row.gid, { ...row, decision: 'committed', done: 'committed' })
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

/** sql/transaction/forget_proven.sql */
function* forgetProven(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
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
    yield* lock(transaction, 'identity', '')
    const before = read(transaction, 'identity', '')?.forgottenXid ?? 0
    write(transaction, 'identity', '', { forgottenXid: Math.max(before, ...gone.map(({ xid }) => xid)) })
  }
  return gone.length
}

/** sql/transaction/record_heuristic.sql */
function* recordHeuristic(
  transaction: Transaction,
  [id, participant, home, kind]: readonly string[],
): Generator<Pause, boolean> {
  const key = `${id} ${participant} ${kind}`
  const isForced = scan(transaction, 'forced').some((row) => row.id === id && row.decision !== 'committed')
  if (kind === 'lost decision' && isForced) return false
  if (read(transaction, 'heuristic', key)) return false
  yield* lock(transaction, 'heuristic', key)
  if (read(transaction, 'heuristic', key)) return false
  write(transaction, 'heuristic', key, {
    id: String(id),
    participant: String(participant),
    home: String(home),
    kind: String(kind),
  })
  return true
}

/** sql/operator/judge_forced.sql */
function* judgeForced(transaction: Transaction, id: string, decision: string): Generator<Pause, number> {
  if (decision !== 'committed' && decision !== 'aborted') return 0
  const { database } = transaction
  const rows = scan(transaction, 'forced').filter((row) => row.id === id)
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
    yield* lock(transaction, 'forced', row.gid)
    const done = read(transaction, 'evidence', id) ? 'committed' : 'rolled back'
    write(transaction, 'forced', row.gid, { ...row, decision, done })
    count += 1
  }
  return count
}

/** sql/recovery/stamp_recovery.sql */
function stampRecovery(transaction: Transaction): void {
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

export interface GidParts {
  readonly home: string
  readonly id: string
  readonly xid: string
  readonly participant: string
}

/** sql/transaction/decode_gid.sql */
export function decodeGid(gid: string): GidParts | undefined {
  const [, home, id, xid, participant] = gidPattern.exec(gid) ?? []
  if (home === undefined || id === undefined || xid === undefined || participant === undefined)
    return undefined
  return { home, id, xid, participant }
}

/** sql/transaction/branch.sql: of this database only, and only those of the list. */
function branchesOf(database: SimulatedDatabase): (GidParts & { gid: string; owner: string; at: number })[] {
  const branches = []
  for (const { gid, owner, at, valid, transaction } of database.server.prepared.values()) {
    if (!valid || transaction.database !== database) continue
    const parts = decodeGid(gid)
    if (parts) branches.push({ ...parts, gid, owner, at })
  }
  return branches
}

function listOf(literal: unknown): string[] {
  const inner = String(literal).slice(1, -1)
  return inner === '' ? [] : inner.split(',')
}

const byTime = (one: GlobalRow, other: GlobalRow) =>
  one.decidedAt - other.decidedAt || (one.id < other.id ? -1 : 1)

function decisionColumns({ id, participants, homes }: GlobalRow) {
  return { id, names: participants.join(','), identities: homes.join(',') }
}

// ---------------------------------------------------------------------------------------------------
// Texts

/** Statements of one step or several that run inside a transaction, their own if there is no other. */
const plain: Record<string, readonly [Kind, Run]> = {
  'select once.schema_version() as version, once.home_id()::text as home, pg_is_in_recovery() as standby': [
    'identify',
    ({ database }) => select({ version: 1, home: database.identity, standby: false }),
  ],
  'select 1; select 1': ['several', () => select({ '?column?': 1 })],
  'call once.open($1::uuid, $2::int, $3::int)': [
    'open',
    (transaction, session, [id, lockTimeout, idleTimeout]) =>
      open(transaction, session, String(id), Number(lockTimeout), Number(idleTimeout)),
  ],
  'select pg_catalog.pg_current_xact_id_if_assigned()::text as xid': [
    'note xid',
    ({ xid }) => select({ xid: xid === 0 ? null : String(xid) }),
  ],
  'select once.check_open($1::uuid)': [
    'check open',
    (transaction, session, [id]) => {
      checkOpen(transaction, session, String(id))
      return select({ check_open: '' })
    },
  ],
  'select once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)::text as xid': [
    'begin global',
    function* (transaction, session, values) {
      return select({ xid: yield* beginGlobal(transaction, session, values) })
    },
  ],
  'select from once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)': [
    'begin global',
    function* (transaction, session, values) {
      yield* beginGlobal(transaction, session, values)
      return select({})
    },
  ],
  'select once.vote($1::uuid, $2::uuid, $3, $4::uuid) as wrote': [
    'vote',
    function* (transaction, session, values) {
      return select({ wrote: yield* vote(transaction, session, values) })
    },
  ],
  "select pg_catalog.current_setting('role') as role": [
    'tell role',
    (_, { role, login }) => select({ role: role === login ? 'none' : role }),
  ],
  "select pg_catalog.set_config('role', $1::text, false)": [
    'take role again',
    (_, session, [role]) => {
      session.role = role === 'none' ? session.login : String(role)
      return select({ set_config: role })
    },
  ],
  'select once.check_home($1::uuid)': [
    'check home',
    (transaction, _, [home]) => {
      checkHome(transaction, String(home))
      return select({ check_home: '' })
    },
  ],
  'select once.narrow_global($1::uuid, $2::text[], $2::uuid[])': [
    'narrow global',
    (transaction, _, [id]) => {
      narrowGlobal(transaction, String(id), [], [])
      return select({ narrow_global: '' })
    },
  ],
  'select once.narrow_global($1::uuid, $2::text::text[], $3::text::uuid[])': [
    'narrow global',
    (transaction, _, [id, names, homes]) => {
      narrowGlobal(transaction, String(id), listOf(names), listOf(homes))
      return select({ narrow_global: '' })
    },
  ],
  'select from once.find_evidence(array[$1::uuid])': [
    'find own evidence',
    (transaction, _, [id]) => select(...(read(transaction, 'evidence', String(id)) ? [{}] : [])),
  ],
  'select once.outcome($1::uuid, $2::uuid, $3::text::xid8) as outcome': [
    'outcome',
    function* (transaction, _, [home, id, xid]) {
      return select({ outcome: yield* outcome(transaction, String(home), String(id), String(xid)) })
    },
  ],
  [`select d.gid, d.transaction_id::text as id, d.home::text as home, d.home_xid as xid, d.owner,
           case when d.owner <> current_user and not r.rolsuper then d.owner end as role, d.can_finish as allowed
      from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
     where (d.ours or d.owner is null and d.transaction_id is not null) and d.age >= $1::int * interval '1 millisecond'
     order by d.prepared_at`]: [
    'list in doubt',
    ({ database }, { role }, [settle]) =>
      select(
        ...branchesOf(database)
          .filter(({ at }) => database.server.now() - at >= Number(settle))
          .sort((one, other) => one.at - other.at)
          .map(({ gid, id, home, xid, owner }) => ({
            gid,
            id,
            home,
            xid,
            owner,
            role: owner !== role && role !== superuser ? owner : null,
            allowed: true,
          })),
      ),
  ],
  [`select i.id, i.xid, once.decide($1::uuid, i.id::uuid, i.xid::xid8) as decision
      from unnest($2::text::text[], $3::text::text[]) i (id, xid)`]: [
    'decide',
    function* (transaction, _, [home, ids, xids]) {
      const rows = []
      const xid = listOf(xids)
      for (const [index, id] of listOf(ids).entries()) {
        const asked = xid[index] as string
        rows.push({ id, xid: asked, decision: yield* decide(transaction, String(home), id, asked) })
        yield pause(transaction)
      }
      return select(...rows)
    },
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.participant_homes, ',') as identities, to_json(d.decided_at) #>> '{}' as at
      from once.unproven($1::int, coalesce($2::text::timestamptz, '-infinity'),
                         coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`]: [
    'unproven',
    (transaction, _, [size, at, id]) =>
      select(
        ...scan(transaction, 'global')
          .filter((row) => row.provenAt === undefined)
          .filter(
            (row) =>
              at === null ||
              row.decidedAt > Number(at) ||
              (row.decidedAt === Number(at) && row.id > String(id)),
          )
          .sort(byTime)
          .slice(0, Number(size))
          .map((row) => ({ ...decisionColumns(row), at: String(row.decidedAt) })),
      ),
  ],
  'select d.transaction_id::text as id from once.branch d where d.transaction_id is not null': [
    'list prepared',
    ({ database }) => select(...branchesOf(database).map(({ id }) => ({ id }))),
  ],
  'select e::text as id from once.find_evidence($1::text::uuid[]) e': [
    'find evidence',
    (transaction, _, [ids]) =>
      select(
        ...listOf(ids)
          .filter((id) => {
            if (read(transaction, 'evidence', id) === undefined) return false
            transaction.database.server.observer.seen(transaction.database, id)
            return true
          })
          .map((id) => ({ id })),
      ),
  ],
  'select once.mark_proven($1::text::uuid[])::text as n': [
    'mark proven',
    function* (transaction, _, [ids]) {
      return select({ n: String(yield* markProven(transaction, listOf(ids))) })
    },
  ],
  'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d where not d.proven': [
    'find decisions',
    (transaction, _, [ids]) => {
      checkHome(transaction, transaction.database.identity)
      return select(
        ...listOf(ids)
          .filter((id) => isUnproven(read(transaction, 'global', id)))
          .map((id) => ({ id })),
      )
    },
  ],
  'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d': [
    'find decisions',
    (transaction, _, [ids]) => {
      checkHome(transaction, transaction.database.identity)
      return select(
        ...listOf(ids)
          .filter((id) => read(transaction, 'global', id))
          .map((id) => ({ id })),
      )
    },
  ],
  'select once.record_heuristic($1::uuid, $2, $3::uuid, $4) as new': [
    'record heuristic',
    function* (transaction, _, values) {
      return select({ new: yield* recordHeuristic(transaction, values as string[]) })
    },
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.participant_homes, ',') as identities, to_json(d.proven_at) #>> '{}' as at
      from once.proven($1::int, $4::int * interval '1 millisecond', coalesce($2::text::timestamptz, '-infinity'),
                       coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`]: [
    'proven',
    (transaction, _, [size, at, id, keep]) =>
      select(
        ...pageBy(
          'provenAt',
          scan(transaction, 'global').filter(
            (row) =>
              isUnconfirmed(row) && Number(row.provenAt) <= transaction.database.server.now() - Number(keep),
          ),
          [size, at, id],
        ),
      ),
  ],
  'select once.mark_confirmed($1::text::uuid[])::text as n': [
    'mark confirmed',
    function* (transaction, _, [ids]) {
      return select({ n: String(yield* markConfirmed(transaction, listOf(ids))) })
    },
  ],
  'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d where not d.confirmed': [
    'find decisions',
    (transaction, _, [ids]) => {
      checkHome(transaction, transaction.database.identity)
      return select(
        ...listOf(ids)
          .filter((id) => {
            const row = read(transaction, 'global', id)
            return row !== undefined && row.confirmedAt === undefined
          })
          .map((id) => ({ id })),
      )
    },
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.participant_homes, ',') as identities, to_json(d.confirmed_at) #>> '{}' as at
      from once.confirmed($1::int, $4::int * interval '1 millisecond', coalesce($2::text::timestamptz, '-infinity'),
                          coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`]: [
    'confirmed',
    (transaction, _, [size, at, id, keep]) =>
      select(
        ...pageBy(
          'confirmedAt',
          scan(transaction, 'global').filter(
            ({ confirmedAt }) =>
              confirmedAt !== undefined && confirmedAt <= transaction.database.server.now() - Number(keep),
          ),
          [size, at, id],
        ),
      ),
  ],
  'select once.delete_evidence($2::uuid, $1::text::uuid[])::text as n': [
    'delete evidence',
    function* (transaction, _, [ids, home]) {
      return select({ n: String(yield* deleteEvidence(transaction, String(home), listOf(ids))) })
    },
  ],
  'select once.forget_proven($1::text::uuid[])::text as n': [
    'forget proven',
    function* (transaction, _, [ids]) {
      return select({ n: String(yield* forgetProven(transaction, listOf(ids))) })
    },
  ],
  "select once.stamp_recovery('pgonce')": [
    'stamp recovery',
    (transaction) => {
      stampRecovery(transaction)
      return select({ stamp_recovery: '' })
    },
  ],
  [`select e.transaction_id::text as id, e.home::text as home, e.participant
      from once.evidence_page($1::int, coalesce($2::text::uuid, '00000000-0000-0000-0000-000000000000')) e`]:
    [
      'page evidence',
      (transaction, _, [size, after]) =>
        select(
          ...scan(transaction, 'evidence')
            .filter(({ id }) => after === null || id > String(after))
            .sort((one: EvidenceRow, other: EvidenceRow) => (one.id < other.id ? -1 : 1))
            .slice(0, Number(size))
            .map(({ id, home, participant }) => ({ id, home, participant })),
        ),
    ],
  [`select f.transaction_id::text as id, f.home::text as home, f.home_xid::text as xid
      from once.forced f where f.judged_at is null limit $1::int`]: [
    'list forced',
    (transaction, _, [size]) =>
      select(
        ...scan(transaction, 'forced')
          .filter(({ done }) => done === undefined)
          .slice(0, Number(size))
          .map(({ id, home, xid }) => ({ id, home, xid })),
      ),
  ],
  'select once.decide($1::uuid, $2::uuid, $3::text::xid8) as decision': [
    'decide forced',
    function* (transaction, _, [home, id, xid]) {
      return select({ decision: yield* decide(transaction, String(home), String(id), String(xid)) })
    },
  ],
  'select once.judge_forced($1::uuid, $2)': [
    'judge forced',
    function* (transaction, _, [id, decision]) {
      const judged = yield* judgeForced(transaction, String(id), String(decision))
      return select({ judge_forced: String(judged) })
    },
  ],

  // What handlers do; see test/simulation/conformance.test.ts for the tables.
  'insert into effect (id) values ($1::int)': [
    'work',
    function* (transaction, _, [id]) {
      yield* lock(transaction, 'effect', String(id))
      if (read(transaction, 'effect', String(id)))
        throw refuse('23505', 'duplicate key value violates effect_pkey')
      write(transaction, 'effect', String(id), {})
      return { rows: [], command: 'INSERT', count: 1 }
    },
  ],
  'select add_effect($1::int)': [
    'work',
    function* (transaction, _, [id]) {
      yield* lock(transaction, 'effect', String(id))
      if (read(transaction, 'effect', String(id)))
        throw refuse('23505', 'duplicate key value violates effect_pkey')
      write(transaction, 'effect', String(id), {})
      return select({ add_effect: null })
    },
  ],
  'update account set n = n + 1 where id = $1::int': [
    'work',
    function* (transaction, _, [id]) {
      const key = String(id)
      if (read(transaction, 'account', key) === undefined) return { rows: [], command: 'UPDATE', count: 0 }
      yield* lock(transaction, 'account', key)
      const row = read(transaction, 'account', key) as { n: number }
      write(transaction, 'account', key, { n: row.n + 1 })
      return { rows: [], command: 'UPDATE', count: 1 }
    },
  ],
  'select count(*)::int as n from effect': [
    'work',
    (transaction) => select({ n: scan(transaction, 'effect').length }),
  ],
  'select 1/0': [
    'work',
    () => {
      throw refuse('22012', 'division by zero')
    },
  ],
  'insert into deferred_child (id) values (0)': [
    'work',
    (transaction) => {
      assignXid(transaction)
      transaction.deferred = '23503'
      return { rows: [], command: 'INSERT', count: 1 }
    },
  ],
  'create temp table scratch ()': [
    'work',
    (transaction) => {
      assignXid(transaction)
      transaction.unpreparable = true
      return tag('CREATE TABLE')
    },
  ],
  // What conflicts under serializable shows at the end.
  "select 'write skew'": [
    'work',
    (transaction) => {
      if (transaction.isolation === 'serializable') transaction.deferred = '40001'
      return select({ '?column?': 'write skew' })
    },
  ],
}

const normal = (text: string) => text.replace(/\s+/g, ' ').trim()

const known = new Map<string, Statement>()
for (const [text, [kind, run]] of Object.entries(plain)) known.set(normal(text), inTransaction(kind, run))

/** Inside the transaction block if there is one; else as a transaction of its own. */
function inTransaction(kind: Kind, run: Run): Statement {
  return {
    kind,
    *run(session, values, flushed) {
      const block = session.transaction
      if (block?.failed) throw refuse('25P02', 'current transaction is aborted')
      const transaction = block ?? beginTransaction(session.database)
      try {
        const started = run(transaction, session, values)
        const answer = 'next' in started ? yield* started : started
        if (block === undefined) yield* commitTransaction(transaction, flushed)
        return answer
      } catch (error) {
        abort(transaction)
        transaction.failed = true
        throw error
      }
    },
  }
}

function control(
  kind: Kind,
  run: (session: SessionState, values: Values, flushed: Flushed) => Answer | Generator<Pause, Answer>,
): Statement {
  return {
    kind,
    *run(session, values, flushed) {
      const started = run(session, values, flushed)
      return 'next' in started ? yield* started : started
    },
  }
}

function* endBlock(session: SessionState, flushed: Flushed): Generator<Pause, Answer> {
  const { transaction } = session
  if (transaction === undefined) return tag('COMMIT')
  session.transaction = undefined
  if (transaction.failed) return tag('ROLLBACK')
  yield* commitTransaction(transaction, flushed)
  return tag('COMMIT')
}

known.set(
  'commit',
  control('commit', (session, _, flushed) => endBlock(session, flushed)),
)
// RESET ROLE is refused in a failed transaction, and then nothing is committed.
known.set(
  'reset role; commit',
  control('commit', (session, _, flushed) => {
    if (session.transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
    session.role = session.login
    return endBlock(session, flushed)
  }),
)
known.set(
  'rollback; reset role',
  control('rollback', (session) => {
    if (session.transaction && !session.transaction.failed) abort(session.transaction)
    session.transaction = undefined
    session.role = session.login
    return tag('RESET')
  }),
)
known.set(
  'rollback',
  control('rollback', (session) => {
    if (session.transaction && !session.transaction.failed) abort(session.transaction)
    session.transaction = undefined
    return tag('ROLLBACK')
  }),
)

const isolations = ['read committed', 'repeatable read', 'serializable', 'read uncommitted']

function begin(isolation: string | undefined): Statement {
  return control('begin', (session) => {
    if (session.transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
    session.transaction ??= beginTransaction(session.database, isolation)
    return tag('BEGIN')
  })
}
known.set('begin', begin(undefined))
for (const isolation of isolations) known.set(`begin isolation level ${isolation}`, begin(isolation))

const beginAndOpen =
  /^begin(?: isolation level ([a-z ]+))?; call once\.open\('([0-9a-f-]{36})', (\d+), (\d+)\)$/
const checkAndCommit = /^select once\.check_open\('([0-9a-f-]{36})'\); commit$/
const prepare = /^prepare transaction '((?:[^']|'')*)'$/
const lookForPrepared = /^select from pg_prepared_xacts where gid = '((?:[^']|'')*)'$/
const finish = /^(commit|rollback) prepared '((?:[^']|'')*)'$/
const setRole = /^set role "((?:[^"]|"")*)"$/

/** @throws UnknownStatement */
export function statementOf(text: string): Statement {
  const found = known.get(text)
  if (found) return found
  const begun = beginAndOpen.exec(text)
  if (begun) {
    const [, isolation, id, lockTimeout, idleTimeout] = begun
    return control('open', (session) => {
      if (session.transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
      session.transaction ??= beginTransaction(session.database, isolation)
      return open(session.transaction, session, String(id), Number(lockTimeout), Number(idleTimeout))
    })
  }
  const prepared = prepare.exec(text)
  if (prepared) {
    const gid = String(prepared[1]).replaceAll("''", "'")
    return control('prepare', function* (session, _, flushed) {
      const { transaction } = session
      session.transaction = undefined
      // Outside a block there is nothing to prepare, and Postgres only warns.
      if (transaction === undefined || transaction.failed) return tag('ROLLBACK')
      yield* prepareTransaction(transaction, gid, session.role, flushed)
      return tag('PREPARE TRANSACTION')
    })
  }
  const finished = finish.exec(text)
  if (finished) {
    const commit = finished[1] === 'commit'
    const gid = String(finished[2]).replaceAll("''", "'")
    return control(commit ? 'commit prepared' : 'rollback prepared', function* (session, _, flushed) {
      if (session.transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
      if (session.transaction) {
        fail(session)
        throw refuse('25001', 'cannot run inside a transaction block')
      }
      yield* finishPrepared(session.database, gid, commit, session.role, flushed)
      return tag(commit ? 'COMMIT PREPARED' : 'ROLLBACK PREPARED')
    })
  }
  const checked = checkAndCommit.exec(text)
  if (checked) {
    return control('check and commit', function* (session, _, flushed) {
      if (session.transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
      try {
        checkOpen(session.transaction ?? beginTransaction(session.database), session, String(checked[1]))
      } catch (error) {
        fail(session)
        throw error
      }
      return yield* endBlock(session, flushed)
    })
  }
  const looked = lookForPrepared.exec(text)
  if (looked) {
    const gid = String(looked[1]).replaceAll("''", "'")
    return inTransaction('look for prepared', ({ database }) =>
      select(...(database.server.prepared.get(gid)?.valid ? [{}] : [])),
    )
  }
  const role = setRole.exec(text)
  if (role) {
    return inTransaction('set role', (_, session) => {
      session.role = String(role[1]).replaceAll('""', '"')
      return tag('SET')
    })
  }
  const again = normal(text)
  if (again === text)
    throw new UnknownStatement(`The simulated Postgres does not know this statement: ${text}`)
  const statement = statementOf(again)
  known.set(text, statement)
  return statement
}

function fail(session: SessionState): void {
  if (session.transaction === undefined) return
  abort(session.transaction)
  session.transaction.failed = true
}
