/**
 * The statements that the client sends, by their exact text, and what a database with schema `once` answers. A
 * text that is not here is an error of the simulation, never an answer.
 */
import type { Kind } from '../points.ts'
import {
  assertBranch,
  beginGlobal,
  listOf,
  narrowGlobal,
  open,
  outcome,
  type SessionState,
  type Values,
  vote,
} from './once.ts'
import { answer, apply, ask } from './recovery.ts'
import {
  type Answer,
  abort,
  assignXid,
  beginTransaction,
  commitTransaction,
  type Flushed,
  finishPrepared,
  lock,
  type Pause,
  prepareTransaction,
  read,
  refuse,
  scan,
  type Transaction,
  write,
} from './server.ts'

type Run = (
  transaction: Transaction,
  session: SessionState,
  values: Values,
) => Answer | Generator<Pause, Answer>

/** What a text means: which purpose it has in the flow, and how it runs. */
export interface Statement {
  readonly kind: Kind
  /** What a message of a recovery is about stands in it. */
  kindOf?(values: Values): Kind
  run(session: SessionState, values: Values, flushed: Flushed): Generator<Pause, Answer>
}

/** The simulation does not know what the client wants: somebody must teach it. */
class UnknownStatement extends Error {}

const select = (...rows: object[]): Answer => ({ rows, command: 'SELECT', count: rows.length })
const tag = (command: string): Answer => ({ rows: [], command })

function* addEffect(transaction: Transaction, id: unknown): Generator<Pause, void> {
  const key = String(id)
  yield* lock(transaction, 'effect', key)
  if (read(transaction, 'effect', key)) throw refuse('23505', 'duplicate key value violates effect_pkey')
  write(transaction, 'effect', key, {})
}

/** Statements of one step or several that run inside a transaction, their own if there is no other. */
const plain: Record<string, readonly [Kind, Run]> = {
  'select once.schema_version() as version, once.database_id()::text as home, pg_is_in_recovery() as standby':
    ['identify', ({ database }) => select({ version: 1, home: database.databaseId, standby: false })],
  'select 1; select 1': ['several', () => select({ '?column?': 1 })],
  'call once.open($1::uuid, $2::int, $3::int)': [
    'open',
    (transaction, session, [id, lockTimeout, idleTimeout]) => {
      open(transaction, session, String(id), Number(lockTimeout), Number(idleTimeout))
      return tag('CALL')
    },
  ],
  'select pg_catalog.pg_current_xact_id_if_assigned()::text as xid': [
    'note xid',
    ({ xid }) => select({ xid: xid === 0 ? null : String(xid) }),
  ],
  'select once.assert_branch($1::uuid)': [
    'assert branch',
    (transaction, session, [id]) => {
      assertBranch(transaction, session, String(id))
      return select({ assert_branch: '' })
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
  'select once.ask($1)': [
    'ask finish',
    function* (transaction, _, [request]) {
      const rows = yield* ask(transaction, String(request))
      return select(...rows.map((row) => ({ ask: row })))
    },
  ],
  'select once.answer($1)': [
    'answer finish',
    function* (transaction, _, [question]) {
      return select({ answer: yield* answer(transaction, String(question)) })
    },
  ],
  'select once.apply($1)': [
    'apply finish',
    function* (transaction, session, [answers]) {
      const rows = yield* apply(transaction, session, String(answers))
      return select(...rows.map((row) => ({ apply: row })))
    },
  ],

  // What handlers do; see test/proof/simulation/conformance.test.ts for the tables.
  'insert into effect (id) values ($1::int)': [
    'work',
    function* (transaction, _, [id]) {
      yield* addEffect(transaction, id)
      return { rows: [], command: 'INSERT', count: 1 }
    },
  ],
  'select add_effect($1::int)': [
    'work',
    function* (transaction, _, [id]) {
      yield* addEffect(transaction, id)
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

/** What is compared with a real Postgres: test/proof/simulation/conformance.test.ts. */
export const plainTexts: readonly string[] = Object.keys(plain)

const normal = (text: string) => text.replace(/\s+/g, ' ').trim()

const known = new Map<string, Statement>()
for (const [text, [kind, run]] of Object.entries(plain)) known.set(normal(text), inTransaction(kind, run))
for (const does of ['ask', 'answer', 'apply'] as const) {
  const statement = known.get(`select once.${does}($1)`) as Statement
  statement.kindOf = ([message]) => {
    const [, step] = /"steps?": ?\[?"([a-z]+)"/.exec(String(message)) ?? []
    return `${does} ${step}` as Kind
  }
}

/** Inside the transaction block if there is one; else as a transaction of its own. */
function inTransaction(kind: Kind, run: Run): Statement {
  return {
    kind,
    *run(session, values, flushed) {
      const block = session.transaction
      refuseIfFailed(session)
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

function refuseIfFailed({ transaction }: SessionState): void {
  if (transaction?.failed) throw refuse('25P02', 'current transaction is aborted')
}

// ---------------------------------------------------------------------------------------------------
// What begins and ends transactions

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

function begin(session: SessionState, isolation: string | undefined): Transaction {
  refuseIfFailed(session)
  session.transaction ??= beginTransaction(session.database, isolation)
  return session.transaction
}

function* commit(session: SessionState, flushed: Flushed): Generator<Pause, Answer> {
  const { transaction } = session
  if (transaction === undefined) return tag('COMMIT')
  session.transaction = undefined
  if (transaction.failed) return tag('ROLLBACK')
  yield* commitTransaction(transaction, flushed)
  return tag('COMMIT')
}

function rollBack(session: SessionState): Answer {
  if (session.transaction && !session.transaction.failed) abort(session.transaction)
  session.transaction = undefined
  return tag('ROLLBACK')
}

/** A statement of the block has failed: all that is left is to end it. */
function fail({ transaction }: SessionState): void {
  if (transaction === undefined) return
  abort(transaction)
  transaction.failed = true
}

for (const isolation of [undefined, 'read committed', 'repeatable read', 'serializable', 'read uncommitted'])
  known.set(
    isolation === undefined ? 'begin' : `begin isolation level ${isolation}`,
    control('begin', (session) => {
      begin(session, isolation)
      return tag('BEGIN')
    }),
  )
known.set(
  'commit',
  control('commit', (session, _, flushed) => commit(session, flushed)),
)
// RESET ROLE is refused in a failed transaction, and then nothing is committed.
known.set(
  'reset role; commit',
  control('commit', (session, _, flushed) => {
    refuseIfFailed(session)
    session.role = session.login
    return commit(session, flushed)
  }),
)
known.set('rollback', control('rollback', rollBack))
known.set(
  'rollback; reset role',
  control('rollback', (session) => {
    rollBack(session)
    session.role = session.login
    return tag('RESET')
  }),
)

const finish = (does: 'commit' | 'rollback') =>
  control(`${does} prepared`, function* (session, [gid], flushed) {
    refuseIfFailed(session)
    if (session.transaction) {
      fail(session)
      throw refuse('25001', 'cannot run inside a transaction block')
    }
    yield* finishPrepared(session.database, unquoted(gid), does === 'commit', session.role, flushed)
    return tag(does === 'commit' ? 'COMMIT PREPARED' : 'ROLLBACK PREPARED')
  })

/** What a literal says, or an identifier, by what stands between its quotes. */
function unquoted(inner: unknown, quote = "'"): string {
  return String(inner).replaceAll(quote + quote, quote)
}

/**
 * Texts that say what is a parameter elsewhere: the groups are the values. One generator function for all of a kind:
 * each that is called leaves something behind, with all that it closes over, until the next full collection.
 */
const patterns: readonly (readonly [RegExp, Statement])[] = [
  [
    /^begin(?: isolation level ([a-z ]+))?; call once\.open\('([0-9a-f-]{36})', (\d+), (\d+)\)$/,
    control('open', (session, [isolation, id, lockTimeout, idleTimeout]) => {
      open(
        begin(session, isolation as string | undefined),
        session,
        String(id),
        Number(lockTimeout),
        Number(idleTimeout),
      )
      return tag('CALL')
    }),
  ],
  [
    /^prepare transaction '((?:[^']|'')*)'$/,
    control('prepare', function* (session, [gid], flushed) {
      const { transaction } = session
      session.transaction = undefined
      // Outside a block there is nothing to prepare, and Postgres only warns.
      if (transaction === undefined || transaction.failed) return tag('ROLLBACK')
      yield* prepareTransaction(transaction, unquoted(gid), session.role, flushed)
      return tag('PREPARE TRANSACTION')
    }),
  ],
  [/^commit prepared '((?:[^']|'')*)'$/, finish('commit')],
  [/^rollback prepared '((?:[^']|'')*)'$/, finish('rollback')],
  [
    /^select once\.assert_branch\('([0-9a-f-]{36})'\); commit$/,
    control('check and commit', (session, [id], flushed) => {
      refuseIfFailed(session)
      try {
        assertBranch(session.transaction ?? beginTransaction(session.database), session, String(id))
      } catch (error) {
        fail(session)
        throw error
      }
      return commit(session, flushed)
    }),
  ],
  [
    /^select from pg_prepared_xacts where gid = '((?:[^']|'')*)'$/,
    inTransaction('look for prepared', ({ database }, _, [gid]) =>
      select(...(database.server.prepared.get(unquoted(gid))?.valid ? [{}] : [])),
    ),
  ],
  [
    /^set role "((?:[^"]|"")*)"$/,
    inTransaction('set role', (_, session, [role]) => {
      session.role = unquoted(role, '"')
      return tag('SET')
    }),
  ],
]

/** @throws UnknownStatement */
export function statementOf(text: string): Statement {
  const found = known.get(text)
  if (found) return found
  for (const [pattern, { kind, run }] of patterns) {
    const groups = pattern.exec(text)
    if (groups) return { kind, run: (session, _, flushed) => run(session, groups.slice(1), flushed) }
  }
  const again = normal(text)
  if (again === text)
    throw new UnknownStatement(`The simulated Postgres does not know this statement: ${text}`)
  const statement = statementOf(again)
  known.set(text, statement)
  return statement
}
