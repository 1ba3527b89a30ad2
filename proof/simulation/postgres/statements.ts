/**
 * What the client says, by name, and what a database with schema `once` does: one command after the other, as they
 * stand in the text. What has no name is the application's or recovery's, and known by its text. What is not here is
 * an error of the simulation, never an answer.
 */
import type { Statement as Said } from '../../../src/statements.ts'
import type { Kind } from '../points.ts'
import {
  assertBranch,
  beginGlobal,
  claimSequence,
  insertDecision,
  insertEvidence,
  listOf,
  open,
  outcome,
  seal,
  vote,
} from './once.ts'
import { answer, apply, ask } from './recovery.ts'
import { assignXid, read, refuse, refuseReadOnly, type Transaction } from './server.ts'
import {
  alsoInFailed,
  begin,
  type Command,
  commit,
  finish,
  inFailed,
  isReadOnly,
  prepare,
  type Run,
  resetAll,
  rollback,
  type SessionState,
  savepoint,
  select,
  set,
  setConstraints,
  tag,
  type Values,
} from './session.ts'
import { addEffect, cursorTexts, ended, endings, smuggle, smuggled, workTexts } from './workload.ts'

/** What a backend gets: which purpose it has in the flow, and how it runs. */
export interface Statement {
  readonly kind: Kind
  readonly commands: readonly Command[]
  readonly values: Values
  /** For people. */
  readonly told: string
}

/** The simulation does not know what the client wants: somebody must teach it. */
class UnknownStatement extends Error {}

const transactionOf = (session: SessionState) => session.transaction as Transaction

// ---------------------------------------------------------------------------------------------------
// Commands that stand in several texts

const command = (text: string, run: Run): Command => ({ text, run })
const setLocal = (name: string, run: (transaction: Transaction, values: Values) => void): Command =>
  command(`set local ${name} = `, (session, values) => {
    run(transactionOf(session), values)
    return tag('SET')
  })

const unlockAll = command('select pg_catalog.pg_advisory_unlock_all()', (session) => {
  session.advisory = 0
  return select('')
})

const prepareUnlock = command('prepare once_unlock as ', (session) => {
  if (session.canUnlock) throw refuse('42P05', 'prepared statement "once_unlock" already exists')
  session.canUnlock = true
  return tag('PREPARE')
})
const executeUnlock = command('execute once_unlock', (session) => {
  if (!session.canUnlock) throw refuse('26000', 'prepared statement "once_unlock" does not exist')
  session.advisory = 0
  return select()
})

const constraints = command('set constraints all immediate', setConstraints)
const settings: readonly Command[] = [
  command('reset session authorization', (session) => {
    set(session, { role: session.login })
    return tag('RESET')
  }),
  command('reset all', resetAll),
]
const setNet = command('set default_transaction_read_only = on', (session) => {
  set(session, { defaultReadOnly: true })
  return tag('SET')
})

const settle = [constraints, ...settings, executeUnlock, setNet]

const tidy: readonly Command[] = [
  command('close all', (session) => {
    transactionOf(session).cursors?.clear()
    return tag('CLOSE CURSOR ALL')
  }),
  command('discard temp', (session) => {
    if (session.temp) set(session, { temp: false })
    return tag('DISCARD TEMP')
  }),
  command('unlisten *', () => tag('UNLISTEN')),
]

const durable = (place: number) =>
  setLocal('synchronous_commit', (transaction, values) => {
    const level = values[place]
    transaction.synchronousCommit =
      level === 'local' || level === 'remote_write' || level === 'remote_apply' ? level : 'on'
  })
const decisive = setLocal('synchronous_commit', (transaction) => {
  transaction.synchronousCommit = 'on'
})

const commitNow = [command('savepoint once', savepoint), command('commit', commit)]
const prepareNow = command(
  'prepare transaction ',
  prepare((values) => String(values[5])),
)

/** Null, and so refused, unless this is the database that it said it is. */
function refuseElsewhere(isHere: boolean): void {
  if (!isHere)
    throw refuse('23502', 'null value in column "transaction_id"', 'ERROR', {
      schema_name: 'once',
      column_name: 'transaction_id',
    })
}

const sealed = command('select once.seal(', (session, [id]) => {
  seal(transactionOf(session), session, String(id))
  return select('')
})
const voted = command('select once.vote(', function* (session, [id, home, , name, databaseId]) {
  yield* vote(transactionOf(session), session, String(id), String(home), String(name), String(databaseId))
  return select('t')
})
const begunGlobal = command('select once.begin_global(', function* (session, [id, home, xid, names, ids]) {
  yield* beginGlobal(transactionOf(session), session, String(id), listOf(names), listOf(ids), String(home))
  return select(xid ?? null)
})

/** A session of ours that begins a transaction must be as a new one is, whatever the handler before has left. */
function lookForTraces(session: SessionState): void {
  const { role, login, synchronousCommit, advisory, temp, implicit, database } = session
  const { tainted } = database.server.observer
  if (!implicit) tainted('a transaction is begun within another')
  else if (role !== login) tainted(`role ${role} is left`)
  else if (synchronousCommit !== undefined) tainted(`synchronous_commit ${synchronousCommit} is left`)
  else if (advisory > 0) tainted('an advisory lock is left')
  else if (temp) tainted('a temporary table is left')
}

const beginDirect = command(
  'begin',
  alsoInFailed((session, [, , isolation]) => {
    const { database, defaultReadOnly } = session
    lookForTraces(session)
    if (defaultReadOnly !== true) database.server.observer.tainted('the second net is not up')
    const transaction = transactionOf(session)
    if (transaction.failed) throw inFailed()
    transaction.begunAt = database.server.now()
    return begin(session, isolation, true)
  }),
)

// ---------------------------------------------------------------------------------------------------
// By name

interface Named {
  /** How many values it has; one more is the id of the transaction that it must be in. */
  readonly arity: number
  readonly commands: readonly Command[]
}

const named: Readonly<Record<string, Named>> = {
  hello: {
    arity: 0,
    commands: [
      command('select pg_catalog.json_build_array(', (session) => {
        const { synchronousCommit: durability } = transactionOf(session)
        return select(JSON.stringify([session.pid, isReadOnly(session) ? 'on' : 'off', durability, null]))
      }),
    ],
  },
  second_net: { arity: 0, commands: [setNet, prepareUnlock] },
  fence: {
    arity: 0,
    commands: [
      command('select s.reset_val from', ({ database }) =>
        select(database.server.fencedAt === undefined ? 'off' : 'on'),
      ),
    ],
  },
  probe: { arity: 1, commands: [command('select ', (_, [text]) => select(text ?? null))] },
  probe_several: {
    arity: 0,
    commands: ['one', 'two'].map((value) =>
      command(`select pg_catalog.set_config('once.probe', '${value}'`, (session) => {
        transactionOf(session).probe = value
        return select(value)
      }),
    ),
  },
  read_probe: {
    arity: 0,
    commands: [
      command("select pg_catalog.current_setting('once.probe'", (session) =>
        select(transactionOf(session).probe ?? null),
      ),
    ],
  },
  identify: {
    arity: 0,
    commands: [
      command('select pg_catalog.json_build_array(', ({ database }) =>
        select(`[1, "${database.databaseId}", false]`),
      ),
    ],
  },
  tell_role: {
    arity: 0,
    commands: [
      command("select pg_catalog.current_setting('role')", ({ role, login }) =>
        select(role === login ? 'none' : role),
      ),
    ],
  },
  set_role: {
    arity: 1,
    commands: [
      command('select pg_catalog.set_config(', (session, [role]) => {
        takeRole(session, String(role))
        return select(role ?? null)
      }),
    ],
  },
  begin_read_committed: {
    arity: 0,
    commands: [
      command('begin isolation level read committed', (session) => begin(session, 'read committed', false)),
    ],
  },
  begin_read_committed_direct: {
    arity: 0,
    commands: [
      command('begin isolation level read committed read write', (session) =>
        begin(session, 'read committed', true),
      ),
    ],
  },
  end: { arity: 0, commands: [command('commit', commit)] },
  open_direct: {
    arity: 3,
    commands: [
      beginDirect,
      setLocal('lock_timeout', (transaction, [lockTimeout]) => {
        transaction.lockTimeout = Number(lockTimeout)
      }),
      setLocal('idle_in_transaction_session_timeout', (transaction, [, idleTimeout]) => {
        transaction.idleTimeout = Number(idleTimeout)
      }),
    ],
  },
  begin: {
    arity: 1,
    commands: [
      command('begin', (session, [isolation]) => {
        if (session.isPooled) lookForTraces(session)
        return begin(session, isolation, false)
      }),
    ],
  },
  open: {
    arity: 3,
    commands: [
      command('call once.open(', (session, [id, lockTimeout, idleTimeout]) => {
        open(transactionOf(session), session, String(id), Number(lockTimeout), Number(idleTimeout))
        return tag('CALL')
      }),
    ],
  },
  note_xid: {
    arity: 0,
    commands: [
      command('select pg_catalog.pg_current_xact_id_if_assigned()', (session) => {
        const { xid } = transactionOf(session)
        return select(xid === 0 ? null : String(xid))
      }),
    ],
  },
  commit_direct: { arity: 1, commands: [...settle, ...tidy, durable(0), ...commitNow] },
  commit: { arity: 1, commands: [constraints, sealed, command('commit', commit)] },
  commit_shared: {
    arity: 2,
    commands: [constraints, sealed, ...settings, unlockAll, ...tidy, durable(1), command('commit', commit)],
  },
  prepare_direct: {
    arity: 6,
    commands: [
      ...settle,
      decisive,
      command('insert into once.evidence ', function* (session, [id, home, , name, databaseId]) {
        const transaction = transactionOf(session)
        refuseReadOnly(transaction)
        refuseElsewhere(session.database.databaseId === databaseId)
        yield* insertEvidence(transaction, String(id), String(home), String(name))
        return tag('INSERT')
      }),
      prepareNow,
    ],
  },
  prepare: { arity: 6, commands: [constraints, voted, prepareNow] },
  prepare_shared: { arity: 7, commands: [constraints, voted, ...settings, unlockAll, decisive, prepareNow] },
  decide_direct: {
    arity: 5,
    commands: [
      ...settle,
      ...tidy,
      decisive,
      command('insert into once.global_transaction ', function* (session, [id, home, xid, names, ids]) {
        const transaction = transactionOf(session)
        const isHome = session.database.databaseId === home
        refuseReadOnly(transaction)
        refuseElsewhere(isHome)
        refuseElsewhere(String(assignXid(transaction)) === xid)
        yield* insertDecision(transaction, String(id), listOf(names), listOf(ids))
        return tag('INSERT')
      }),
      ...commitNow,
    ],
  },
  decide: { arity: 5, commands: [constraints, begunGlobal, command('commit', commit)] },
  decide_shared: {
    arity: 6,
    commands: [
      constraints,
      begunGlobal,
      ...settings,
      unlockAll,
      ...tidy,
      decisive,
      command('commit', commit),
    ],
  },
  rollback_direct: { arity: 0, commands: [command('rollback', rollback), unlockAll] },
  rollback: { arity: 0, commands: [command('rollback', rollback)] },
  finish: { arity: 2, commands: [command('', finish)] },
  find_evidence: {
    arity: 1,
    commands: [
      command('select once.find_evidence(', (session, [id]) =>
        select(...(read(transactionOf(session), 'evidence', String(id)) ? [String(id)] : [])),
      ),
    ],
  },
  outcome: {
    arity: 3,
    commands: [
      command('select once.outcome(', function* (session, [home, id, xid]) {
        return select(yield* outcome(transactionOf(session), String(home), String(id), String(xid)))
      }),
    ],
  },
  ask: {
    arity: 1,
    commands: [
      command('select once.ask(', function* (session, [request]) {
        return select(...(yield* ask(transactionOf(session), String(request))))
      }),
    ],
  },
  answer: {
    arity: 1,
    commands: [
      command('select once.answer(', function* (session, [question]) {
        return select(yield* answer(transactionOf(session), String(question)))
      }),
    ],
  },
  apply: {
    arity: 1,
    commands: [
      command('select once.apply(', function* (session, [answers]) {
        return select(...(yield* apply(transactionOf(session), session, String(answers))))
      }),
    ],
  },
  claim_sequence_with_effects: {
    arity: 6,
    commands: [
      command('select once.take_effect(', function* (session, [producer, sequence, , , , effects]) {
        const transaction = transactionOf(session)
        const isNew = yield* claimSequence(transaction, String(producer), String(sequence))
        for (const [, id] of isNew ? String(effects).matchAll(/values \((\d+)\)/g) : [])
          yield* addEffect(transaction, id)
        return select(isNew ? 'claimed' : 'duplicate')
      }),
    ],
  },
  claim_sequence: {
    arity: 5,
    commands: [
      command('select once.claim(', function* (session, [producer, sequence]) {
        const isNew = yield* claimSequence(transactionOf(session), String(producer), String(sequence))
        return select(isNew ? 'claimed' : 'duplicate')
      }),
    ],
  },
}

/** What is compared with a real Postgres: test/proof/simulation/conformance.test.ts. */
export const names: readonly string[] = Object.keys(named)

/** The commands of a statement, as its text must have them. */
export const commandsOf = (name: string): readonly string[] =>
  (named[name]?.commands ?? []).map(({ text }) => text)

/** A mutant: `commit_direct: savepoint once` leaves this command out. */
const without = (process.env.PGONCE_SIMULATION_WITHOUT ?? '')
  .split('; ')
  .filter((one) => one !== '')
  .map((one) => one.split(': ') as [string, string])

/** A guarded statement asks before it does anything else, in one command. */
function guardedBy({ run }: Command): Command {
  return command('', function* (session, values, flushed) {
    assertBranch(transactionOf(session), session, String(values.at(-1)))
    const done = run(session, values, flushed)
    return 'next' in done ? yield* done : done
  })
}

const byName = new Map<string, Named & { readonly guarded: readonly Command[] }>()
for (const [name, { arity, commands }] of Object.entries(named)) {
  const left = without.filter(([where]) => where === name).map(([, text]) => text)
  for (const text of left) {
    if (!commands.some((one) => one.text.startsWith(text)))
      throw new Error(`${name} has no command that begins with ${text}`)
  }
  const kept = commands.filter(({ text }) => !left.some((one) => text.startsWith(one)))
  byName.set(name, { arity, commands: kept, guarded: kept.map(guardedBy) })
}
for (const [name] of without) if (!byName.has(name)) throw new Error(`There is no statement ${name}`)

/** What a message is about is said in it. */
function kindOf(name: string, first: string): Kind {
  if (name === 'finish') return `finish ${first}` as Kind
  // Whoever asks has connections apart, which have no second net.
  if (name === 'begin_read_committed_direct') return 'begin_read_committed'
  const step = /"steps?":\[?"([a-z]+)"/.exec(first)
  return (messages.has(name) && step ? `${name} ${step[1]}` : name) as Kind
}

const messages = new Set(['ask', 'answer', 'apply'])

/** @throws UnknownStatement */
export function statementOf({ name, values }: Pick<Said<unknown>, 'name' | 'values'>): Statement {
  const known = byName.get(name)
  if (known === undefined || (values.length !== known.arity && values.length !== known.arity + 1))
    throw new UnknownStatement(`The simulated Postgres does not know ${name} with ${values.length} values`)
  const kind = kindOf(name, values[0] ?? '')
  const isGuarded = values.length > known.arity
  return { kind, commands: isGuarded ? known.guarded : known.commands, values, told: kind }
}

// ---------------------------------------------------------------------------------------------------
// By text

function takeRole(session: SessionState, role: string): void {
  set(session, { role: role === 'none' ? session.login : role })
}

interface Text {
  readonly kind: Kind
  readonly commands: readonly Command[]
}

const single = (kind: Kind, text: string, run: Run): Text => ({ kind, commands: [command(text, run)] })

const normal = (text: string) => text.replace(/\s+/g, ' ').trim()

const texts = new Map<string, Text>()
for (const [text, run] of Object.entries(workTexts)) texts.set(text, single('work', text, run))
for (const text of endings) texts.set(text, single('work', text, ended))
texts.set(smuggled, single('work', smuggled, smuggle))
texts.set('rollback', single('rollback', 'rollback', rollback))
texts.set(
  'reset role',
  single('reset role', 'reset role', (session) => {
    takeRole(session, 'none')
    return tag('RESET')
  }),
)

/** Texts that say what is a parameter elsewhere: the groups are the values. */
const patterns: readonly (readonly [RegExp, Text])[] = [
  ...cursorTexts.map(([pattern, run]) => [pattern, single('work', '', run)] as const),
  [
    /^set role "([a-z]+)"$/,
    single('take role', 'set role', (session, [role]) => {
      takeRole(session, String(role))
      return tag('SET')
    }),
  ],
  [
    /^select pg_catalog\.set_config\('role', '([a-z]+)', false\)$/,
    single('set_role', 'select pg_catalog.set_config(', (session, [role]) => {
      takeRole(session, String(role))
      return select({ set_config: role })
    }),
  ],
]

/** What is compared with a real Postgres. */
export const plainTexts: readonly string[] = [...texts.keys()]

/** @throws UnknownStatement */
export function textOf(text: string, parameters: readonly unknown[]): Statement {
  const found = texts.get(text)
  if (found) {
    const values = parameters.map((value) => (value == null ? null : String(value)))
    return { ...found, values, told: text }
  }
  for (const [pattern, one] of patterns) {
    const groups = pattern.exec(text)
    if (groups) return { ...one, values: groups.slice(1), told: text }
  }
  const known = texts.get(normal(text))
  if (known === undefined)
    throw new UnknownStatement(`The simulated Postgres does not know this statement: ${text}`)
  texts.set(text, known)
  return textOf(text, parameters)
}
