/**
 * A Postgres server, as far as the protocol can tell it from a real one: transactions whose xid is assigned with
 * the first write, a write-ahead log of which only the flushed part outlives a crash, prepared transactions,
 * snapshots, row locks, and what `pg_xact_status` says.
 *
 * What takes a server several moments is a generator here, and others run between two of its steps.
 *
 * @see https://github.com/postgres/postgres/blob/master/src/backend/access/transam/twophase.c
 * @see https://github.com/postgres/postgres/blob/master/src/backend/access/transam/xact.c
 */
import type { Random } from '../../rig/random.ts'

/** A row is never changed, only replaced. */
interface Tables {
  readonly global: Map<string, GlobalRow>
  readonly evidence: Map<string, EvidenceRow>
  readonly loss: Map<string, LossRow>
  readonly heuristic: Map<string, HeuristicRow>
  /** One row. */
  readonly database: Map<string, { readonly purgedXid: number }>
  readonly recovery: Map<string, { readonly recoveredAt: number }>
  /** `once.sequence`: what a producer's messages have claimed. */
  readonly sequence: Map<string, readonly string[]>
  /** What the application does: rows that nobody else touches, and rows that everybody wants. */
  readonly effect: Map<string, object>
  readonly account: Map<string, { readonly n: number }>
}

type TableName = keyof Tables

export interface GlobalRow {
  readonly id: string
  readonly xid: number
  readonly participants: readonly string[]
  readonly databaseIds: readonly string[]
  readonly decidedAt: number
  readonly provenAt: number | undefined
  readonly confirmedAt: number | undefined
}

export interface EvidenceRow {
  readonly id: string
  readonly home: string
  readonly participant: string
}

interface LossRow {
  readonly id: string
  readonly participant: string
  readonly home: string
  readonly kind: string
}

interface HeuristicRow {
  readonly gid: string
  readonly id: string
  readonly home: string
  readonly xid: string
  readonly owner: string
  readonly decided: string | undefined
  readonly done: string | undefined
}

interface Write {
  readonly table: TableName
  readonly key: string
  readonly row: object | undefined
}

export interface Transaction {
  readonly database: SimulatedDatabase
  /** 0: nothing written yet. */
  xid: number
  readonly writes: Write[]
  /** The newest of its writes by table and key. */
  readonly own: Map<string, object | undefined>
  readonly locks: string[]
  isolation: string
  readOnly: boolean
  /** When a branch of the protocol began with it. */
  begunAt: number | undefined
  /** The session's settings from before the first that was set for longer than the transaction. */
  before: SessionSettings | undefined
  /** The frozen view of repeatable read and above. */
  snapshot: Tables | undefined
  /** In a transaction block: a statement has failed, and all that is left is to end it. */
  failed: boolean
  /** `once.transaction` */
  mark: string
  /** `once.probe` */
  probe: string | undefined
  synchronousCommit: string
  lockTimeout: number
  idleTimeout: number
  /** A deferred constraint is violated. */
  deferred: string | undefined
  /** A deferred trigger waits that makes commits asynchronous. */
  softens: boolean
  /** Fails only at the end: a serialization failure. */
  conflict: string | undefined
  /** Open cursors, and how many rows each has given. */
  cursors: Map<string, number> | undefined
  /** Touched what cannot be prepared. */
  unpreparable: boolean
  waitingFor: Transaction | undefined
  readonly waiters: Set<() => void>
}

/** What outlives a transaction; undefined: as the server has it. */
export interface SessionSettings {
  readonly role: string
  readonly synchronousCommit: string | undefined
  readonly defaultReadOnly: boolean | undefined
  /** There is a temporary table. */
  readonly temp: boolean
}

export interface Prepared {
  readonly gid: string
  readonly owner: string
  readonly transaction: Transaction
  readonly at: number
  /** In `pg_prepared_xacts`. */
  valid: boolean
  /** Somebody is preparing or finishing it. */
  busy: boolean
  /** Its rows and locks as its state file has them. */
  readonly image: Pick<Transaction, 'writes' | 'locks'>
}

export interface SimulatedDatabase {
  readonly name: string
  readonly server: Server
  /** `once.database` */
  readonly databaseId: string
  tables: Tables
  readonly locks: Map<string, Transaction>
}

export type LogRecord =
  | { readonly type: 'write'; readonly xid: number }
  | { readonly type: 'commit'; readonly xid: number; readonly transaction: Transaction }
  | { readonly type: 'prepare'; readonly xid: number; readonly prepared: Prepared }
  | { readonly type: 'finish'; readonly xid: number; readonly gid: string; readonly commit: boolean }

interface ServerSettings {
  /** 0: switched off. */
  readonly maxPrepared: number
  /** As the role has them. */
  readonly synchronousCommit: string
  readonly isolation: string
  /** How many xids back `pg_xact_status` still knows. */
  readonly statusReach: number
  /** Milliseconds. */
  readonly lockTimeout?: number
  /** How many rows `once.ask` lists at once: few, so that there is a next page. */
  readonly page: number
}

/** What the oracle wants to know at the moment when it happens. */
export interface Observer {
  /** A transaction's rows have become visible. */
  committed(transaction: Transaction, durable: boolean): void
  prepared(prepared: Prepared): void
  /** Somebody reads the evidence of a transaction, and it is there. */
  seen(database: SimulatedDatabase, id: string): void
  /** A handler's row is written, by whatever transaction. */
  wrote(database: SimulatedDatabase, effect: string): void
  /** A session begins a transaction of the protocol that is not as a new one would be. */
  tainted(what: string): void
  /** COMMIT PREPARED or ROLLBACK PREPARED takes effect. */
  finished(prepared: Prepared, commit: boolean, server: Server): void
  /** A standby takes over that never received these. */
  lostTail(server: Server, records: readonly LogRecord[]): void
}

export interface Server {
  readonly number: number
  readonly settings: ServerSettings
  readonly databases: SimulatedDatabase[]
  readonly observer: Observer
  readonly random: Random
  /** Milliseconds. */
  readonly now: () => number
  readonly later: (milliseconds: number, task: () => void) => void
  up: boolean
  /** `default_transaction_read_only`, by ALTER SYSTEM; since when. */
  fencedAt: number | undefined
  nextXid: number
  readonly prepared: Map<string, Prepared>
  /** Xids in progress, with those of prepared transactions. */
  readonly running: Map<number, Transaction>
  readonly committed: Set<number>
  log: LogRecord[]
  /** How many records of the log are on disk. */
  flushed: number
  flushing: boolean
  /** Counts crashes. */
  epoch: number
}

/** Between two steps: let others run for a while, or wait until a lock is let go. */
export type Pause = number | Transaction

export interface Answer {
  /** What handlers and recovery read, by column; to a statement by name one text a row, or null. */
  readonly rows: readonly (object | string | null)[]
  readonly command: string
  readonly count?: number
}

export class PgError extends Error {
  readonly code: string
  readonly severity: string
  /** As drivers have them. */
  readonly routine?: string
  readonly schema_name?: string
  readonly column_name?: string

  constructor(code: string, message: string, severity = 'ERROR') {
    super(message)
    this.name = 'PostgresError'
    this.code = code
    this.severity = severity
  }
}

// Nobody looks at where a simulated server was when it refused, and to find out is dear.
export function refuse(
  code: string,
  message: string,
  severity = 'ERROR',
  fields?: Pick<PgError, 'routine' | 'schema_name' | 'column_name'>,
): PgError {
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = 0
  const error = new PgError(code, message, severity)
  Error.stackTraceLimit = limit
  return fields === undefined ? error : Object.assign(error, fields)
}

export function createServer(
  number: number,
  settings: ServerSettings,
  observer: Observer,
  dice: Random,
  now: () => number,
  later: Server['later'],
): Server {
  return {
    number,
    settings,
    databases: [],
    observer,
    random: dice,
    now,
    later,
    up: true,
    fencedAt: undefined,
    nextXid: firstXid,
    prepared: new Map(),
    running: new Map(),
    committed: new Set(),
    log: [],
    flushed: 0,
    flushing: false,
    epoch: 0,
  }
}

const firstXid = 700

export function addDatabase(server: Server, name: string, databaseId: string): SimulatedDatabase {
  const database = { name, server, databaseId, tables: emptyTables(), locks: new Map() }
  server.databases.push(database)
  return database
}

function emptyTables(): Tables {
  return {
    global: new Map(),
    evidence: new Map(),
    loss: new Map(),
    heuristic: new Map(),
    database: new Map([['', { purgedXid: 0 }]]),
    recovery: new Map(),
    sequence: new Map(),
    effect: new Map(),
    account: new Map([
      ['1', { n: 0 }],
      ['2', { n: 0 }],
    ]),
  }
}

// ---------------------------------------------------------------------------------------------------
// Transactions

/** @param session whose settings it begins with; else as the server has them, for what is no client's */
export function beginTransaction(
  database: SimulatedDatabase,
  isolation?: string,
  session?: SessionSettings,
): Transaction {
  const { settings, fencedAt } = database.server
  return {
    database,
    xid: 0,
    writes: [],
    own: new Map(),
    locks: [],
    isolation: isolation ?? settings.isolation,
    readOnly: session !== undefined && (session.defaultReadOnly ?? fencedAt !== undefined),
    begunAt: undefined,
    before: undefined,
    snapshot: undefined,
    failed: false,
    mark: '',
    probe: undefined,
    synchronousCommit: session?.synchronousCommit ?? settings.synchronousCommit,
    lockTimeout: settings.lockTimeout ?? 0,
    idleTimeout: 0,
    deferred: undefined,
    softens: false,
    conflict: undefined,
    cursors: undefined,
    unpreparable: false,
    waitingFor: undefined,
    waiters: new Set(),
  }
}

/** Xids are given with the first write, and a crash gives those again of which nothing was flushed. */
export function assignXid(transaction: Transaction): number {
  if (transaction.xid === 0) {
    const { server } = transaction.database
    transaction.xid = server.nextXid
    server.nextXid += 1
    server.running.set(transaction.xid, transaction)
    append(server, { type: 'write', xid: transaction.xid })
  }
  return transaction.xid
}

/** What this statement sees. */
function viewOf(transaction: Transaction): Tables {
  const { database, isolation } = transaction
  if (isolation === 'read committed') return database.tables
  transaction.snapshot ??= Object.fromEntries(
    Object.entries(database.tables).map(([name, table]) => [name, new Map(table)]),
  ) as unknown as Tables
  return transaction.snapshot
}

type RowOf<Name extends TableName> = Tables[Name] extends Map<string, infer Row> ? Row : never

export function read<Name extends TableName>(
  transaction: Transaction,
  table: Name,
  key: string,
): RowOf<Name> | undefined {
  const name = `${table}/${key}`
  if (transaction.own.has(name)) return transaction.own.get(name) as RowOf<Name> | undefined
  return (viewOf(transaction)[table] as Map<string, RowOf<Name>>).get(key)
}

/** All rows that a transaction sees. */
export function scan<Name extends TableName>(transaction: Transaction, table: Name): RowOf<Name>[] {
  const seen = viewOf(transaction)[table] as Map<string, RowOf<Name>>
  if (transaction.own.size === 0) return [...seen.values()]
  const merged = new Map(seen)
  for (const write of transaction.writes) {
    if (write.table !== table) continue
    if (write.row === undefined) merged.delete(write.key)
    else merged.set(write.key, write.row as RowOf<Name>)
  }
  return [...merged.values()]
}

/** What every statement that changes something asks first. */
export function refuseReadOnly({ readOnly }: Transaction): void {
  if (readOnly) throw refuse('25006', 'cannot execute this in a read-only transaction')
}

/** Takes a row's lock, until the transaction ends; it waits for whoever holds it. */
export function* lock(transaction: Transaction, table: TableName, key: string): Generator<Pause, void> {
  refuseReadOnly(transaction)
  const name = `${table}/${key}`
  const { locks } = transaction.database
  for (;;) {
    const holder = locks.get(name)
    if (holder === transaction) return
    if (holder === undefined) break
    for (let next: Transaction | undefined = holder; next !== undefined; next = next.waitingFor) {
      if (next.waitingFor === transaction) throw refuse('40P01', 'deadlock detected')
    }
    transaction.waitingFor = holder
    try {
      yield holder
    } finally {
      transaction.waitingFor = undefined
    }
  }
  locks.set(name, transaction)
  transaction.locks.push(name)
  const { snapshot, database } = transaction
  if (snapshot !== undefined && snapshot[table].get(key) !== database.tables[table].get(key)) {
    throw refuse('40001', 'could not serialize access due to concurrent update')
  }
}

/** The row must be locked. */
export function write<Name extends TableName>(
  transaction: Transaction,
  table: Name,
  key: string,
  row: RowOf<Name> | undefined,
): void {
  assignXid(transaction)
  transaction.writes.push({ table, key, row: row as object | undefined })
  transaction.own.set(`${table}/${key}`, row as object | undefined)
}

export function abort(transaction: Transaction): void {
  const { server } = transaction.database
  if (transaction.xid !== 0) server.running.delete(transaction.xid)
  transaction.writes.length = 0
  transaction.own.clear()
  letGo(transaction)
}

function letGo(transaction: Transaction): void {
  for (const name of transaction.locks) transaction.database.locks.delete(name)
  transaction.locks.length = 0
  if (transaction.waiters.size === 0) return
  const waiters = [...transaction.waiters]
  transaction.waiters.clear()
  for (const waiter of waiters) waiter()
}

/** Between the flush and the effect: the caller reports the point. */
export type Flushed = () => void

/** COMMIT of a plain transaction. Nothing interrupts it once its record is in the log. */
export function* commitTransaction(transaction: Transaction, flushed: Flushed): Generator<Pause, void> {
  const { server } = transaction.database
  const problem = whyNotCommitted(transaction)
  if (problem !== undefined) {
    abort(transaction)
    throw refuse(problem, 'the transaction cannot commit')
  }
  if (transaction.xid === 0) return letGo(transaction)
  const at = append(server, { type: 'commit', xid: transaction.xid, transaction })
  const durable = transaction.synchronousCommit !== 'off'
  if (durable) {
    yield flushTime(server)
    flush(server, at)
    flushed()
    yield momentOf(server)
  }
  makeVisible(transaction)
  server.observer.committed(transaction, durable)
}

/** Deferred triggers run at the end at the latest, and what they set is in force for it. */
function whyNotCommitted(transaction: Transaction): string | undefined {
  if (transaction.softens) transaction.synchronousCommit = 'off'
  return transaction.deferred ?? transaction.conflict
}

function makeVisible(transaction: Transaction): void {
  const { database, xid } = transaction
  apply(database, transaction.writes)
  database.server.running.delete(xid)
  database.server.committed.add(xid)
  letGo(transaction)
}

function apply(database: SimulatedDatabase, writes: readonly Write[]): void {
  for (const { table, key, row } of writes) {
    const rows = database.tables[table] as Map<string, object>
    if (row === undefined) rows.delete(key)
    else rows.set(key, row)
  }
}

export function* prepareTransaction(
  transaction: Transaction,
  gid: string,
  owner: string,
  flushed: Flushed,
): Generator<Pause, void> {
  const { server } = transaction.database
  const problem = whyNotPrepared(transaction, gid)
  if (problem !== undefined) {
    abort(transaction)
    throw problem
  }
  assignXid(transaction)
  const image = { writes: [...transaction.writes], locks: [...transaction.locks] }
  const prepared: Prepared = { gid, owner, transaction, at: server.now(), valid: false, busy: true, image }
  server.prepared.set(gid, prepared)
  const at = append(server, { type: 'prepare', xid: transaction.xid, prepared })
  yield flushTime(server)
  flush(server, at)
  flushed()
  yield momentOf(server)
  prepared.valid = true
  server.observer.prepared(prepared)
  yield momentOf(server)
  prepared.busy = false
}

function whyNotPrepared(transaction: Transaction, gid: string): PgError | undefined {
  const { server } = transaction.database
  const problem = whyNotCommitted(transaction)
  if (problem !== undefined) return refuse(problem, 'the transaction cannot commit')
  if (transaction.unpreparable) return refuse('0A000', 'cannot PREPARE a transaction that did this')
  if (gid.length > 199) return refuse('22023', 'transaction identifier is too long')
  if (server.settings.maxPrepared === 0) return refuse('55000', 'prepared transactions are disabled')
  if (server.prepared.has(gid)) return refuse('42710', 'transaction identifier is already in use')
  if (server.prepared.size >= server.settings.maxPrepared)
    return refuse('53200', 'maximum number of prepared transactions reached')
  return undefined
}

/** COMMIT PREPARED or ROLLBACK PREPARED. */
export function* finishPrepared(
  database: SimulatedDatabase,
  gid: string,
  commit: boolean,
  role: string,
  flushed: Flushed,
): Generator<Pause, void> {
  const { server } = database
  const prepared = server.prepared.get(gid)
  if (!prepared?.valid) throw refuse('42704', 'prepared transaction does not exist')
  if (prepared.busy) throw refuse('55000', 'prepared transaction is busy')
  if (role !== superuser && role !== prepared.owner)
    throw refuse('42501', 'permission denied to finish prepared transaction')
  if (prepared.transaction.database !== database)
    throw refuse('0A000', 'prepared transaction belongs to another database')
  prepared.busy = true
  const { transaction } = prepared
  const at = append(server, { type: 'finish', xid: transaction.xid, gid, commit })
  yield flushTime(server)
  flush(server, at)
  flushed()
  yield momentOf(server)
  server.observer.finished(prepared, commit, server)
  if (commit) makeVisible(transaction)
  else abort(transaction)
  // It leaves the list after its effects have become visible.
  yield momentOf(server)
  server.prepared.delete(gid)
}

export const superuser = 'postgres'

/** @throws 22023 for an xid that was not given out yet */
export function statusOf(server: Server, xid: number): string | null {
  if (xid >= server.nextXid) throw refuse('22023', `transaction ID ${xid} is in the future`)
  if (server.running.has(xid)) return 'in progress'
  if (xid < 3 || xid < server.nextXid - server.settings.statusReach) return null
  return server.committed.has(xid) ? 'committed' : 'aborted'
}

// ---------------------------------------------------------------------------------------------------
// The log, crashes, and standbys that take over

function append(server: Server, record: LogRecord): number {
  server.log.push(record)
  if (!server.flushing) {
    // The WAL writer comes by, for those who do not wait.
    server.flushing = true
    const { epoch } = server
    server.later(server.random.between(1, 600), () => {
      if (server.epoch !== epoch) return
      server.flushing = false
      server.flushed = server.log.length
    })
  }
  return server.log.length
}

/** Up to a record, and with it all before it. */
function flush(server: Server, upTo: number): void {
  server.flushed = Math.max(server.flushed, upTo)
}

function flushTime(server: Server): number {
  return server.random.between(0.02, 1)
}

function momentOf(server: Server): number {
  return server.random.between(0.001, 0.2)
}

/** Power off: what was not flushed never was. Sessions are the caller's to end. */
export function crash(server: Server): void {
  server.up = false
  server.epoch += 1
  server.flushing = false
  server.log = server.log.slice(0, server.flushed)
}

/** A standby takes over that has received all but the last records. */
export function failOver(server: Server, lost: number): void {
  crash(server)
  const tail = server.log.splice(Math.max(0, server.log.length - lost))
  server.flushed = server.log.length
  server.observer.lostTail(server, tail)
}

/** Replays the log from the beginning. */
export function restart(server: Server): void {
  server.prepared.clear()
  server.running.clear()
  server.committed.clear()
  server.nextXid = firstXid
  for (const database of server.databases) {
    database.tables = emptyTables()
    database.locks.clear()
  }
  for (const record of server.log) {
    server.nextXid = Math.max(server.nextXid, record.xid + 1)
    if (record.type === 'commit') {
      apply(record.transaction.database, record.transaction.writes)
      server.committed.add(record.xid)
    } else if (record.type === 'prepare') {
      const { image, transaction: before } = record.prepared
      const transaction = beginTransaction(before.database)
      transaction.xid = record.xid
      transaction.writes.push(...image.writes)
      transaction.locks.push(...image.locks)
      const prepared = { ...record.prepared, transaction, valid: true, busy: false }
      server.prepared.set(prepared.gid, prepared)
      server.running.set(record.xid, prepared.transaction)
    } else if (record.type === 'finish') {
      const prepared = server.prepared.get(record.gid)
      server.prepared.delete(record.gid)
      server.running.delete(record.xid)
      if (record.commit && prepared) {
        apply(prepared.transaction.database, prepared.transaction.writes)
        server.committed.add(record.xid)
      }
    }
  }
  for (const { transaction } of server.prepared.values()) {
    for (const name of transaction.locks) transaction.database.locks.set(name, transaction)
  }
  server.up = true
}
