/**
 * What the handlers of the simulation say, by text; for the tables see test/proof/simulation/conformance.test.ts. All
 * of these are the application's own words, of which the code under test knows nothing.
 */
import {
  assignXid,
  beginTransaction,
  lock,
  type Pause,
  read,
  refuse,
  refuseReadOnly,
  scan,
  type Transaction,
  write,
} from './server.ts'
import { type Run, rollback, type SessionState, select, set, tag } from './session.ts'

const transactionOf = (session: SessionState) => session.transaction as Transaction

export function* addEffect(transaction: Transaction, id: unknown): Generator<Pause, void> {
  const key = String(id)
  yield* lock(transaction, 'effect', key)
  if (read(transaction, 'effect', key)) throw refuse('23505', 'duplicate key value violates effect_pkey')
  write(transaction, 'effect', key, {})
  transaction.database.server.observer.wrote(transaction.database, key)
}

/** What waits for the end of the transaction. */
const deferring =
  (wait: (transaction: Transaction) => void): Run =>
  (session) => {
    const transaction = transactionOf(session)
    refuseReadOnly(transaction)
    assignXid(transaction)
    wait(transaction)
    return { rows: [], command: 'INSERT', count: 1 }
  }

const streamed = 'select id from effect'
export const streamText = streamed

export const workTexts: Readonly<Record<string, Run>> = {
  *'insert into effect (id) values ($1::int)'(session, [id]) {
    yield* addEffect(transactionOf(session), id)
    return { rows: [], command: 'INSERT', count: 1 }
  },
  *'select add_effect($1::int)'(session, [id]) {
    yield* addEffect(transactionOf(session), id)
    return select({ add_effect: null })
  },
  *'update account set n = n + 1 where id = $1::int'(session, [id]) {
    const transaction = transactionOf(session)
    const key = String(id)
    refuseReadOnly(transaction)
    if (read(transaction, 'account', key) === undefined) return { rows: [], command: 'UPDATE', count: 0 }
    yield* lock(transaction, 'account', key)
    const row = read(transaction, 'account', key) as { n: number }
    write(transaction, 'account', key, { n: row.n + 1 })
    return { rows: [], command: 'UPDATE', count: 1 }
  },
  'select count(*)::int as n from effect': (session) =>
    select({ n: scan(transactionOf(session), 'effect').length }),
  'select 1/0': () => {
    throw refuse('22012', 'division by zero')
  },
  'insert into deferred_child (id) values (0)': deferring((transaction) => {
    transaction.deferred = '23503'
  }),
  // A deferred trigger that makes the commit asynchronous.
  'insert into deferred_trigger (id) values (0)': deferring((transaction) => {
    transaction.softens = true
  }),
  'create temp table scratch ()': (session) => {
    const transaction = transactionOf(session)
    refuseReadOnly(transaction)
    if (session.temp) throw refuse('42P07', 'relation "scratch" already exists')
    assignXid(transaction)
    transaction.unpreparable = true
    set(session, { temp: true })
    return tag('CREATE TABLE')
  },
  // What conflicts under serializable shows at the end.
  "select 'write skew'": (session) => {
    const transaction = transactionOf(session)
    if (transaction.isolation === 'serializable') transaction.conflict = '40001'
    return select({ '?column?': 'write skew' })
  },
  'set synchronous_commit = off': (session) => {
    set(session, { synchronousCommit: 'off' })
    return tag('SET')
  },
  'set local synchronous_commit = off': (session) => {
    transactionOf(session).synchronousCommit = 'off'
    return tag('SET')
  },
  'set role keeper': (session) => {
    set(session, { role: 'keeper' })
    return tag('SET')
  },
  'select from pg_advisory_lock_shared(7)': (session) => {
    session.advisory += 1
    return select({})
  },
}

/** What handlers must not say: it may not even be sent. */
export const endings = [
  '/* by hand */ commit',
  'rollback -- by hand',
  "prepare transaction 'by hand'",
  'select 1; commit',
  'start transaction',
] as const

/**
 * Stands for whatever ends a transaction and begins another, and looks like neither: the lexer finds all that is
 * known. What holds even so: what a global transaction commits it commits everywhere.
 */
export const smuggled = "do 'the end of the transaction and the beginning of another'"

export const ended: Run = ({ database }) => {
  database.server.observer.tainted('what ends the transaction was sent')
  return tag('COMMIT')
}

export const smuggle: Run = (session) => {
  const { isolation } = transactionOf(session)
  rollback(session)
  session.transaction = beginTransaction(session.database, isolation, session)
  session.transaction.readOnly = false
  return tag('DO')
}

/** Cursors, by whatever name the client gives them. */
export const cursorTexts: readonly (readonly [RegExp, Run])[] = [
  [
    /^declare (pgonce_\w+) no scroll cursor for select id from effect$/,
    (session, [name]) => {
      if (session.implicit) throw refuse('25P01', 'DECLARE CURSOR can only be used in transaction blocks')
      const transaction = transactionOf(session)
      transaction.cursors ??= new Map()
      if (transaction.cursors.has(String(name))) throw refuse('42P03', 'cursor already exists')
      transaction.cursors.set(String(name), 0)
      return tag('DECLARE CURSOR')
    },
  ],
  [
    /^fetch (\d+) from (pgonce_\w+)$/,
    (session, [count, name]) => {
      const transaction = transactionOf(session)
      const from = transaction.cursors?.get(String(name))
      if (from === undefined) throw refuse('34000', 'cursor does not exist')
      const rows = scan(transaction, 'effect').slice(from, from + Number(count))
      transaction.cursors?.set(String(name), from + rows.length)
      return { rows: rows.map(() => ({ id: 0 })), command: 'FETCH', count: rows.length }
    },
  ],
  [
    /^close (pgonce_\w+)$/,
    (session, [name]) => {
      if (!transactionOf(session).cursors?.delete(String(name)))
        throw refuse('34000', 'cursor does not exist')
      return tag('CLOSE CURSOR')
    },
  ],
]
