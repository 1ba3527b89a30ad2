/**
 * The messages of a recovery, and the functions behind them, each modelled after its file in `sql/recovery/`. As in
 * `once.ts`, one that reads twice does so in two steps.
 */
import { assertHome, branchesOf, branchOutcome, makeDurable, pause } from './once.ts'
import {
  type GlobalRow,
  lock,
  type Pause,
  read,
  refuse,
  refuseReadOnly,
  type SimulatedDatabase,
  scan,
  superuser,
  type Transaction,
  write,
} from './server.ts'
import type { SessionState } from './session.ts'

/** What a courier brings: see sql/recovery/read_messages.sql. */
interface Message {
  readonly step: string
  readonly asking: string
  readonly asked: string
  readonly ids: readonly string[]
  readonly xids?: readonly string[]
  readonly outcomes?: readonly string[]
  readonly evident?: readonly string[]
  readonly missing?: readonly string[]
}

interface Request {
  readonly steps: readonly string[]
  readonly settle?: string
  readonly keep?: string
  readonly recoverer?: string
  readonly after?: { readonly at?: string; readonly id?: string; readonly gid?: string }
}

interface Item {
  readonly at: number
  readonly id: string
  readonly asked: readonly string[]
  readonly xid?: string
}

const milliseconds = (interval: string | undefined, otherwise: number) =>
  interval === undefined ? otherwise : Number.parseFloat(interval)

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
  refuseReadOnly(transaction)
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

/** sql/recovery/ask.sql */
export function* ask(transaction: Transaction, text: string): Generator<Pause, string[]> {
  const { database } = transaction
  const request = JSON.parse(text) as Request
  const rows: object[] = [{ id: database.databaseId }]
  for (const step of request.steps) {
    rows.push(...(step === 'finish' ? askToFinish(database, request) : askFor(transaction, step, request)))
    yield pause(transaction)
  }
  if (request.recoverer !== undefined) stampRecovery(transaction)
  return rows.map((row) => JSON.stringify(row))
}

function askToFinish(database: SimulatedDatabase, request: Request): object[] {
  const { page } = database.server.settings
  const { databaseId: asking } = database
  const settle = milliseconds(request.settle, 0)
  const age = ({ at }: { at: number }) => database.server.now() - at
  const branches = branchesOf(database).filter(({ gid }) => gid > (request.after?.gid ?? ''))
  const listed = branches
    .filter((branch) => age(branch) >= settle)
    .sort((one, other) => (one.gid < other.gid ? -1 : 1))
    .slice(0, page)
  const rows: object[] = [...Map.groupBy(listed, ({ home }) => home)].map(([home, some]) => ({
    batch: `finish ${home}`,
    to: home,
    gids: some.map(({ gid }) => gid),
    question: {
      step: 'finish',
      asking,
      asked: home,
      ids: some.map(({ id }) => id),
      xids: some.map(({ xid }) => xid),
    },
  }))
  if (branches.some((branch) => age(branch) < settle)) rows.push({ again: true })
  if (listed.length === page)
    rows.push({ next: { ...request, steps: ['finish'], after: { gid: listed.at(-1)?.gid } } })
  return rows
}

function askFor(transaction: Transaction, step: string, request: Request): object[] {
  const { databaseId: asking, server } = transaction.database
  const { page } = server.settings
  const { at = '-Infinity', id = '' } = request.after ?? {}
  const items = itemsOf(transaction, step, server.now() - milliseconds(request.keep, 600_000) / 2)
    .filter((item) => step === 'judge' || item.at > Number(at) || (item.at === Number(at) && item.id > id))
    .sort((one, other) => one.at - other.at || (one.id < other.id ? -1 : 1))
    .slice(0, step === 'judge' ? undefined : page)
  const asked = items.flatMap((item) =>
    (item.asked.length === 0 ? [asking] : item.asked).map((to) => ({ ...item, to })),
  )
  const rows: object[] = [...Map.groupBy(asked, ({ to }) => to)].map(([to, some]) => ({
    batch: step === 'audit' || step === 'judge' ? `${step} ${to}` : step,
    to,
    question: {
      step,
      asking,
      asked: to,
      ids: some.map((item) => item.id),
      xids: some.flatMap(({ xid }) => xid ?? []),
    },
  }))
  const last = items.at(-1)
  if (step !== 'judge' && last !== undefined && items.length === page)
    rows.push({ next: { ...request, steps: [step], after: { at: String(last.at), id: last.id } } })
  return rows
}

/** @param before what was proven or confirmed by then */
function itemsOf(transaction: Transaction, step: string, before: number): Item[] {
  const itemOf = (row: GlobalRow, at: number | undefined): Item => ({
    at: at ?? 0,
    id: row.id,
    asked: row.databaseIds,
  })
  switch (step) {
    case 'prove':
      return scan(transaction, 'global')
        .filter(isUnproven)
        .map((row) => itemOf(row, row.decidedAt))
    case 'confirm':
      return scan(transaction, 'global')
        .filter((row) => isUnconfirmed(row) && Number(row.provenAt) <= before)
        .map((row) => itemOf(row, row.provenAt))
    case 'purge':
      return scan(transaction, 'global')
        .filter(({ confirmedAt }) => confirmedAt !== undefined && confirmedAt <= before)
        .map((row) => itemOf(row, row.confirmedAt))
    case 'audit':
      return scan(transaction, 'evidence').map(({ id, home }) => ({ at: -Infinity, id, asked: [home] }))
    case 'judge':
      return scan(transaction, 'heuristic')
        .filter(({ done }) => done === undefined)
        .map(({ id, home, xid }) => ({ at: -Infinity, id, asked: [home], xid }))
    default:
      throw refuse('ONARG', 'not a request of a recoverer')
  }
}

/** sql/recovery/answer.sql */
export function* answer(transaction: Transaction, text: string): Generator<Pause, string> {
  const { database } = transaction
  const { step, asking, asked, ids, xids = [] } = JSON.parse(text) as Message
  assertHome(transaction, asked)
  const header = { step, asking, asked }
  if (step === 'finish' || step === 'judge') {
    const outcomes = []
    for (const [index, id] of ids.entries()) {
      outcomes.push(yield* branchOutcome(transaction, asked, id, xids[index] as string))
      yield pause(transaction)
    }
    return JSON.stringify({ ...header, ids, xids, outcomes })
  }
  if (step === 'prove' || step === 'confirm') {
    const prepared = new Set(branchesOf(database).map(({ id }) => id))
    yield pause(transaction)
    const evident = evidentOf(transaction, ids)
    const missing = ids.filter((id) => !prepared.has(id) && !evident.includes(id))
    return JSON.stringify({ ...header, ids, evident, missing })
  }
  if (step === 'purge') {
    yield* deleteEvidence(transaction, asking, ids)
    return JSON.stringify({ ...header, ids })
  }
  if (step === 'audit') {
    const missing = ids.filter((id) => read(transaction, 'global', id) === undefined)
    return JSON.stringify({ ...header, ids, missing })
  }
  throw refuse('ONARG', `unknown question: ${step}`)
}

function evidentOf(transaction: Transaction, ids: readonly string[]): string[] {
  const { database } = transaction
  return ids.filter((id) => {
    if (read(transaction, 'evidence', id) === undefined) return false
    database.server.observer.seen(database, id)
    return true
  })
}

/** sql/recovery/apply.sql */
export function* apply(
  transaction: Transaction,
  session: SessionState,
  text: string,
): Generator<Pause, string[]> {
  const { database } = transaction
  const answers = JSON.parse(text) as Message[]
  const rows: object[] = []
  for (const answered of answers) {
    const { step, asking, asked, ids, xids = [], outcomes = [], missing = [] } = answered
    assertHome(transaction, asking)
    if (step === 'finish') rows.push(...finishStatements(database, session, answered))
    else if (step === 'judge') {
      for (const [index, id] of ids.entries()) {
        const known = scan(transaction, 'heuristic').some(
          (row) => row.id === id && row.home === asked && row.xid === xids[index],
        )
        if (known) yield* judgeHeuristic(transaction, id, String(outcomes[index]))
      }
    } else if (step === 'audit') {
      const still = missing.flatMap((id) => read(transaction, 'evidence', id) ?? [])
      for (const { id, participant } of still) {
        if (yield* recordLoss(transaction, [id, participant, asked, 'lost decision']))
          rows.push({ action: 'lost decision', subject: id, participant, home: asked, detail: '' })
      }
    }
  }
  const [first] = answers
  if (first && ['prove', 'confirm', 'purge'].includes(first.step))
    rows.push(...(yield* markAndRecord(transaction, first.step, answers)))
  return rows.map((row) => JSON.stringify(row))
}

/** Those that every participant has answered for are marked; what is missing and unmarked after that is lost. */
function* markAndRecord(
  transaction: Transaction,
  step: string,
  answers: readonly Message[],
): Generator<Pause, object[]> {
  const self = transaction.database.databaseId
  const rows: object[] = []
  const given = new Set(
    answers.flatMap(({ asked, ids, evident = [] }) =>
      (step === 'purge' ? ids : evident).map((id) => `${asked} ${id}`),
    ),
  )
  const complete = [...new Set(answers.flatMap(({ ids }) => ids))].filter((id) =>
    read(transaction, 'global', id)?.databaseIds.every((one) => given.has(`${one} ${id}`)),
  )
  yield pause(transaction)
  const mark = { prove: markProven, confirm: markConfirmed, purge }[step as 'prove' | 'confirm' | 'purge']
  const count = yield* mark(transaction, complete)
  if (count > 0 && step !== 'confirm') rows.push({ action: step === 'prove' ? 'proven' : 'purged', count })
  yield pause(transaction)
  for (const { asked, missing = [] } of answers) {
    for (const id of missing) {
      const row = read(transaction, 'global', id)
      if (row === undefined || (step === 'prove' ? !isUnproven(row) : row.confirmedAt !== undefined)) continue
      for (const [index, participant] of row.participants.entries()) {
        if (row.databaseIds[index] !== asked) continue
        if (yield* recordLoss(transaction, [id, participant, self, 'lost branch']))
          rows.push({ action: 'lost branch', subject: id, participant, home: self, detail: '' })
      }
    }
  }
  return rows
}

/** sql/recovery/finish_statements.sql */
function finishStatements(
  database: SimulatedDatabase,
  { role }: SessionState,
  { asked, ids, xids = [], outcomes = [] }: Message,
): object[] {
  const said = new Map(ids.map((id, index) => [`${id} ${xids[index]}`, outcomes[index]]))
  return branchesOf(database)
    .filter(({ home }) => home === asked)
    .sort((one, other) => one.at - other.at)
    .flatMap(({ gid, id, xid, owner }): object[] => {
      const outcome = said.get(`${id} ${xid}`)
      if (outcome === undefined) return []
      if (outcome === 'pending')
        return [{ action: 'pending', subject: gid, detail: "the home's transaction still runs" }]
      return [
        {
          action: 'run',
          statement: `${outcome === 'committed' ? 'commit' : 'rollback'} prepared '${gid}'`,
          role: owner !== role && role !== superuser ? owner : null,
          gid,
          id,
          outcome,
        },
      ]
    })
}
