/**
 * The statements that the client sends, by their exact text, and what a database with schema `once` answers. A
 * text that is not here is an error of the simulation, never an answer.
 */
import type { Kind } from '../points.ts'
import {
  assertBranch,
  assertHome,
  beginGlobal,
  branchesOf,
  branchOutcome,
  deleteEvidence,
  isUnconfirmed,
  isUnproven,
  judgeHeuristic,
  listOf,
  markConfirmed,
  markProven,
  narrowGlobal,
  open,
  outcome,
  pageBy,
  pause,
  purge,
  recordLoss,
  type SessionState,
  stampRecovery,
  type Values,
  vote,
} from './once.ts'
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
  scan,
  superuser,
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
  run(session: SessionState, values: Values, flushed: Flushed): Generator<Pause, Answer>
}

/** The simulation does not know what the client wants: somebody must teach it. */
class UnknownStatement extends Error {}

const select = (...rows: object[]): Answer => ({ rows, command: 'SELECT', count: rows.length })
const tag = (command: string): Answer => ({ rows: [], command })

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
  'select once.assert_home($1::uuid)': [
    'assert home',
    (transaction, _, [home]) => {
      assertHome(transaction, String(home))
      return select({ assert_home: '' })
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
