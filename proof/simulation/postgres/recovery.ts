/**
 * What recovery and its audits say, by text, and the functions behind it, each modelled after its file in `sql/`.
 */
import type { Kind } from '../points.ts'
import { assertHome, branchesOf, branchOutcome, listOf, makeDurable, pause } from './once.ts'
import {
  type Answer,
  type EvidenceRow,
  type GlobalRow,
  lock,
  type Pause,
  read,
  scan,
  superuser,
  type Transaction,
  write,
} from './server.ts'
import { type SessionState, select, type Values } from './session.ts'

type Run = (
  transaction: Transaction,
  session: SessionState,
  values: Values,
) => Answer | Generator<Pause, Answer>

/** sql/recovery/mark_proven.sql */
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

/** A page of decisions by the time at which they were made, proven, or confirmed. */
function pageBy(
  time: 'decidedAt' | 'provenAt' | 'confirmedAt',
  rows: readonly GlobalRow[],
  [size, at, id]: readonly (string | null | undefined)[],
) {
  return rows
    .filter(
      (row) =>
        at === null || Number(row[time]) > Number(at) || (row[time] === Number(at) && row.id > String(id)),
    )
    .toSorted((one, other) => Number(one[time]) - Number(other[time]) || (one.id < other.id ? -1 : 1))
    .slice(0, Number(size))
    .map((row) => ({
      id: row.id,
      names: row.participants.join(','),
      ids: row.databaseIds.join(','),
      at: String(row[time]),
    }))
}

/** sql/recovery/mark_confirmed.sql */
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

/** sql/recovery/delete_evidence.sql */
function* deleteEvidence(
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
function* purge(transaction: Transaction, ids: readonly string[]): Generator<Pause, number> {
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
function* recordLoss(
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
function* judgeHeuristic(transaction: Transaction, id: string, decided: string): Generator<Pause, number> {
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

/** Of a list of ids, the decisions that are there, as somebody wants them. */
const findDecisions =
  (isWanted: (row: GlobalRow) => boolean): Run =>
  (transaction, _, [ids]) => {
    assertHome(transaction, transaction.database.databaseId)
    const found = listOf(ids).filter((id) => {
      const row = read(transaction, 'global', id)
      return row !== undefined && isWanted(row)
    })
    return select(...found.map((id) => ({ id })))
  }

/** Each runs inside the transaction that is open, or in one of its own. */
export const recoveryTexts: Record<string, readonly [Kind, Run]> = {
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
  [`select i.id, i.xid, once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
      from unnest($2::text::text[], $3::text::text[]) i (id, xid)`]: [
    'branch outcome',
    function* (transaction, _, [home, ids, xids]) {
      const rows = []
      const xid = listOf(xids)
      for (const [index, id] of listOf(ids).entries()) {
        const asked = xid[index] as string
        rows.push({ id, xid: asked, outcome: yield* branchOutcome(transaction, String(home), id, asked) })
        yield pause(transaction)
      }
      return select(...rows)
    },
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.database_ids, ',') as ids, to_json(d.decided_at) #>> '{}' as at
      from once.unproven($1::int, coalesce($2::text::timestamptz, '-infinity'),
                         coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`]: [
    'unproven',
    (transaction, _, page) =>
      select(...pageBy('decidedAt', scan(transaction, 'global').filter(isUnproven), page)),
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
    findDecisions(isUnproven),
  ],
  'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d': [
    'find decisions',
    findDecisions(() => true),
  ],
  'select once.record_loss($1::uuid, $2, $3::uuid, $4) as new': [
    'record loss',
    function* (transaction, _, values) {
      return select({ new: yield* recordLoss(transaction, values as string[]) })
    },
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.database_ids, ',') as ids, to_json(d.proven_at) #>> '{}' as at
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
    findDecisions(({ confirmedAt }) => confirmedAt === undefined),
  ],
  [`select d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
           array_to_string(d.database_ids, ',') as ids, to_json(d.confirmed_at) #>> '{}' as at
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
  'select once.purge($1::text::uuid[])::text as n': [
    'purge',
    function* (transaction, _, [ids]) {
      return select({ n: String(yield* purge(transaction, listOf(ids))) })
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
  [`select h.transaction_id::text as id, h.home::text as home, h.home_xid::text as xid
      from once.heuristic h where h.judged_at is null limit $1::int`]: [
    'list heuristics',
    (transaction, _, [size]) =>
      select(
        ...scan(transaction, 'heuristic')
          .filter(({ done }) => done === undefined)
          .slice(0, Number(size))
          .map(({ id, home, xid }) => ({ id, home, xid })),
      ),
  ],
  'select once.branch_outcome($1::uuid, $2::uuid, $3::text::xid8) as outcome': [
    'ask about a heuristic',
    function* (transaction, _, [home, id, xid]) {
      return select({ outcome: yield* branchOutcome(transaction, String(home), String(id), String(xid)) })
    },
  ],
  'select once.judge_heuristic($1::uuid, $2)': [
    'judge heuristic',
    function* (transaction, _, [id, decided]) {
      const judged = yield* judgeHeuristic(transaction, String(id), String(decided))
      return select({ judge_heuristic: String(judged) })
    },
  ],
}
