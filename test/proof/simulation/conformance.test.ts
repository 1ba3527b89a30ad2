/**
 * The simulated Postgres against a real one: the same scripts over three sessions and two databases, statement by
 * statement, and each answer compared: rows, command tag, or SQLSTATE.
 *
 * `PGONCE_CONFORMANCE_SCRIPTS` says how many (default 60), `PGONCE_CONFORMANCE_SEED` which.
 */
import test from 'ava'
import postgres from 'postgres'
import { type Random, random } from '../../../proof/rig/random.ts'
import { type Backend, openBackend, receive } from '../../../proof/simulation/postgres/backend.ts'
import {
  type Answer,
  addDatabase,
  crash,
  createServer,
  PgError,
  restart,
  type Server,
  type SimulatedDatabase,
} from '../../../proof/simulation/postgres/server.ts'
import {
  commandsOf,
  names,
  plainTexts,
  statementOf,
  textOf,
} from '../../../proof/simulation/postgres/statements.ts'
import { endings, smuggled, streamText } from '../../../proof/simulation/postgres/workload.ts'
import { scheduler } from '../../../proof/simulation/scheduler.ts'
import * as say from '../../../src/statements.ts'
import { installSchema, ownServer } from '../../support/database.ts'

const scripts = Number(process.env.PGONCE_CONFORMANCE_SCRIPTS ?? 60)
const firstSeed = Number(process.env.PGONCE_CONFORMANCE_SEED ?? 1)
const crashEvery = 20
/** Milliseconds; nobody may wait for somebody who is not asked. */
const lockTimeout = 50

/** What one side says to a statement. */
type Said = { readonly rows: readonly unknown[]; readonly command: string } | { readonly code: string }

/** A statement by name, or a text. */
type Words = say.Statement<unknown> | { readonly text: string; readonly values: readonly unknown[] }

interface Side {
  run(session: number, words: Words): Promise<Said>
  /** New sessions; after a crash, if there was one. */
  connect(crashes: boolean): Promise<void>
  /** The xid that this side gave last to whoever asked. */
  xid: string
}

// The tables that the handlers of the simulation write to.
const tables = `
  create table effect (id int primary key);
  create table account (id int primary key, n int not null);
  insert into account values (1, 0), (2, 0);
  create table deferred_parent (id int primary key);
  create table deferred_child (id int references deferred_parent deferrable initially deferred);
  create function add_effect(id int) returns void language sql as 'insert into public.effect values (id)';
  create table deferred_trigger (id int);
  create function soften() returns trigger language plpgsql as
    $$ begin perform set_config('synchronous_commit', 'off', true); return null; end $$;
  create constraint trigger soften after insert on deferred_trigger deferrable initially deferred
    for each row execute function soften();
  grant all on all tables in schema public to keeper;
  select once.grant_app('keeper');
  select once.grant_recover('keeper');
`

/** Sessions 0 and 1 are in the first database, session 2 in the other. */
const databaseOf = (session: number) => (session === 2 ? 1 : 0)

function simulatedSide(databaseIds: readonly string[]): Side {
  const clock = scheduler()
  const server: Server = createServer(
    0,
    {
      maxPrepared: 20,
      synchronousCommit: 'on',
      isolation: 'read committed',
      statusReach: 1_000_000,
      lockTimeout,
      page: 1000,
    },
    { committed() {}, prepared() {}, seen() {}, finished() {}, lostTail() {}, wrote() {}, tainted() {} },
    random(1),
    () => clock.now,
    (milliseconds, task) => void clock.after(milliseconds, undefined, task),
  )
  const databases = databaseIds.map((databaseId, index) => addDatabase(server, `d${index}`, databaseId))
  let backends: Backend[] = []
  return {
    xid: '5',
    async run(session, words) {
      let said: Answer | PgError | undefined
      receive(backends[session] as Backend, {
        statement: 'name' in words ? statementOf(words) : textOf(words.text, words.values),
        refusal: undefined,
        flushed() {},
        done: (result) => {
          said = result
        },
      })
      if (!clock.runUntil(() => said !== undefined, clock.now + 60_000))
        throw new Error(`No answer to ${words.text}`)
      // Times differ, and rows must not have the same.
      clock.after(1, undefined, () => {})
      clock.runUntil(() => false, clock.now + 1)
      if (said instanceof PgError) return { code: said.code }
      const { rows, command } = said as Answer
      return { rows, command }
    },
    async connect(crashes) {
      if (crashes) {
        crash(server)
        restart(server)
      }
      backends = [0, 1, 2].map((session) =>
        openBackend(databases[databaseOf(session)] as SimulatedDatabase, 'postgres', session, () => {}),
      )
    },
  }
}

function realSide(
  urls: readonly string[],
  restartServer: () => Promise<void>,
): Side & { end(): Promise<unknown> } {
  let sessions: postgres.Sql[] = []
  const side = {
    xid: '5',
    async run(session: number, words: Words): Promise<Said> {
      const sql = sessions[session] as postgres.Sql
      const isNamed = 'name' in words
      const values = isNamed && words.isScript ? [] : words.values
      try {
        const query = sql.unsafe(words.text, [...values] as never[], { prepare: false })
        const result = await (isNamed && !words.isSeveral ? query.values() : query)
        const last = (result.at(-1) as { command?: string } | undefined)?.command ? result.at(-1) : result
        const { command } = last as unknown as { command: string }
        const rows = Array.from(last as unknown as unknown[])
        return { rows: isNamed ? rows.map((row) => (row as unknown[])[0]) : rows, command }
      } catch (error) {
        return { code: String((error as { code?: string }).code ?? error) }
      }
    },
    end: () => Promise.all(sessions.map((sql) => sql.end({ timeout: 1 }))),
    async connect(crashes: boolean) {
      await side.end()
      if (crashes) await restartServer()
      sessions = [0, 1, 2].map((session) =>
        postgres(urls[databaseOf(session)] as string, {
          max: 1,
          onnotice: () => {},
          idle_timeout: 0,
          connection: { lock_timeout: lockTimeout },
        }),
      )
    },
  }
  return side
}

/** One statement of a script; the xid is the one that each side has given last. */
interface Step {
  readonly session: number
  readonly words: (xid: string) => Words
}

/** What couriers carry, and what else recovery says. */
function recoveryWords(
  dice: Random,
  xid: string,
  databaseIds: readonly string[],
  home: string,
  ids: readonly string[],
): Words[] {
  const text = (words: string): Words => ({ text: words, values: [] })
  const xids = ids.map(() => dice.pick([xid, xid, '4611686018427387904']))
  const [asking = '', asked = ''] = dice.chance(0.9) ? [home, home] : databaseIds
  const step = dice.pick(['finish', 'prove', 'confirm', 'purge', 'audit', 'judge'])
  const answered = {
    ...{ step, asking, asked, ids, xids },
    outcomes: ids.map(() => dice.pick(['committed', 'aborted', 'pending'])),
    evident: ids.filter(() => dice.chance(0.5)),
    missing: ids.filter(() => dice.chance(0.3)),
  }
  return [
    ...Array.from({ length: 3 }, () => say.ask(JSON.stringify({ steps: [step], keep: '0 ms' }))),
    ...Array.from({ length: 3 }, () => say.answer(JSON.stringify({ step, asking, asked, ids, xids }))),
    ...Array.from({ length: 3 }, () => say.apply(JSON.stringify([answered]))),
    text('set role "keeper"'),
    text('reset role'),
    text('rollback'),
    text("select pg_catalog.set_config('role', 'keeper', false)"),
  ]
}

/** What handlers say. */
function workWords(dice: Random, effect: number): Words[] {
  const text = (words: string, ...values: unknown[]): Words => ({ text: words, values })
  const cursor = `pgonce_0_${dice.below(2)}`
  return [
    text('insert into effect (id) values ($1::int)', effect),
    text('insert into effect (id) values ($1::int)', effect + 1),
    text('select add_effect($1::int)', effect + 2),
    text('update account set n = n + 1 where id = $1::int', dice.below(3)),
    text('select 1/0'),
    text('select count(*)::int as n from effect'),
    text('insert into deferred_child (id) values (0)'),
    text('insert into deferred_trigger (id) values (0)'),
    text('create temp table scratch ()'),
    text('set synchronous_commit = off'),
    text('set local synchronous_commit = off'),
    text('set role keeper'),
    text('select from pg_advisory_lock_shared(7)'),
    text(`declare ${cursor} no scroll cursor for ${streamText}`),
    text(`fetch 2 from ${cursor}`),
    text(`close ${cursor}`),
  ]
}

/** Every statement that has a name. */
function namedWords(
  dice: Random,
  xid: string,
  home: string,
  own: string,
  ids: readonly string[],
): Record<string, say.Statement<unknown>> {
  const id = dice.pick(ids)
  const global = { home, transactionId: id, homeXid: xid }
  const participant = { name: 'p', databaseId: own }
  const gid = `once:1:${home}:${id}:${xid}:p`
  const isolationLevel = dice.pick([undefined, undefined, 'read committed', 'repeatable read'])
  const options = { lockTimeout, idleTimeout: 60_000, isolationLevel }
  const others = [{ name: 'p', databaseId: own }]
  const direct = { isDirect: true, isOwn: true, durability: 'on' }
  const shared = { isDirect: false, isOwn: true, durability: 'on' }
  const foreign = { isDirect: false, isOwn: false, durability: undefined }
  const unfenced = { epoch: 0, strict: false, startAt: null }
  return {
    hello: say.hello(false),
    second_net: say.secondNet(),
    fence: say.fence(),
    probe: say.probe(),
    probe_several: say.probeSeveral(),
    read_probe: say.readProbe(),
    identify: say.identify(),
    tell_role: say.tellRole(),
    set_role: say.setRole(dice.pick(['none', 'keeper'])),
    begin_read_committed: say.beginReadCommitted(),
    begin_read_committed_direct: say.beginReadCommitted(true),
    ask: say.ask(JSON.stringify({ steps: ['finish'], keep: '0 ms' })),
    answer: say.answer(JSON.stringify({ step: 'prove', asking: home, asked: own, ids })),
    apply: say.apply(JSON.stringify([{ step: 'prove', asking: own, asked: home, ids, evident: [] }])),
    end: say.end(),
    open_direct: say.openDirect(options),
    begin: say.begin(isolationLevel),
    open: say.open(id, options),
    note_xid: say.noteXid(),
    commit_direct: say.commit(direct, id),
    commit: say.commit(foreign, id),
    commit_shared: say.commit(shared, id),
    prepare_direct: say.prepare(direct, global, participant, gid),
    prepare: say.prepare(foreign, global, participant, gid),
    prepare_shared: say.prepare(shared, global, participant, gid),
    decide_direct: say.decide(direct, { ...global, home: own }, others),
    decide: say.decide(foreign, { ...global, home: dice.chance(0.8) ? own : home }, others),
    decide_shared: say.decide(shared, { ...global, home: dice.chance(0.8) ? own : home }, others),
    rollback_direct: say.rollbackDirect(),
    rollback: say.rollback(),
    finish: say.finish(dice.pick(['commit', 'rollback']), gid),
    find_evidence: say.findEvidence(id),
    outcome: say.outcome(global),
    claim_sequence: say.claimSequence('p', 1n, unfenced),
    claim_sequence_with_effects: say.withEffects(say.claimSequence('p', 1n, unfenced))([]),
  }
}

function* scriptOf(dice: Random, seed: number, databaseIds: readonly string[]): Generator<Step> {
  const digits = (index: number) => (seed * 10 + index).toString(16).padStart(12, '0')
  const ids = [0, 1].map((index) => `00000000-0000-4000-8000-${digits(index)}`)
  const inBlock = [false, false, false]
  /** Recovery never has the second net, and is not asked what it would say there. */
  const hasNet = [false, false, false]
  /** What stands there the texts of a commit use, so mostly it does. */
  const isPrepared = [false, false, false]
  let effect = seed * 1000
  const beginnings = [
    'open_direct',
    'open_direct',
    'open_direct',
    'begin',
    'begin_read_committed',
    'begin_read_committed_direct',
  ]
  const alone = [
    ...['finish', 'finish', 'finish', 'second_net', 'second_net', 'hello', 'identify', 'fence', 'probe'],
    ...[
      'commit_direct',
      'prepare_direct',
      'decide_direct',
      'commit',
      'prepare',
      'decide',
      'rollback_direct',
      'commit_shared',
    ],
    ...[
      'rollback',
      'end',
      'tell_role',
      'set_role',
      'find_evidence',
      'outcome',
      'probe_several',
      'read_probe',
    ],
    ...['note_xid', 'open'],
  ]
  const inside = [
    ...['open', 'open', 'note_xid', 'note_xid', 'find_evidence', 'outcome'],
    ...['finish', 'probe_several', 'read_probe', 'hello', 'set_role', 'tell_role', 'second_net'],
  ]
  const ends = [
    ...['commit_direct', 'commit_direct', 'commit', 'commit', 'prepare_direct', 'prepare_direct', 'prepare'],
    ...[
      'prepare',
      'decide_direct',
      'decide_direct',
      'decide',
      'decide',
      'rollback_direct',
      'rollback',
      'end',
    ],
    ...['commit_shared', 'prepare_shared', 'prepare_shared', 'decide_shared', 'decide_shared'],
  ]
  // What it writes depends on how long ago the last one was, so nobody may look at its xid, or refuse it.
  yield {
    session: 0,
    words: () => say.ask(JSON.stringify({ steps: ['finish'], keep: '0 ms', recoverer: 'pgonce' })),
  }
  for (let step = 0; step < 50; step += 1) {
    const session = dice.below(3)
    const own = databaseIds[databaseOf(session)] as string
    const home = dice.chance(0.8) ? (databaseIds[0] as string) : (databaseIds[1] as string)
    const believed = dice.chance(0.9) ? own : (databaseIds[1 - databaseOf(session)] as string)
    const stream = dice.below(1_000_000)
    const named = (name: string): Step => {
      if (/^(second_net|.*_direct)$/.test(name)) hasNet[session] = true
      return {
        session,
        words: (xid) => {
          const statement = namedWords(random(seed, stream), xid, home, believed, ids)[name]
          if (statement === undefined) throw new Error(`There is no statement ${name}`)
          return name === 'find_evidence' && stream % 2 === 0
            ? say.guarded(statement, ids[0] as string)
            : statement
        },
      }
    }
    const among = (list: (dice: Random, xid: string) => Words[]): Step => {
      const index = dice.below(list(random(seed, stream), '5').length)
      return { session, words: (xid) => list(random(seed, stream), xid)[index] as Words }
    }
    const work = () => among((own_) => workWords(own_, effect))
    const recovery = () =>
      hasNet[session] ? work() : among((own_, xid) => recoveryWords(own_, xid, databaseIds, home, ids))
    effect += 3
    if (!inBlock[session]) {
      if (dice.chance(0.6)) {
        inBlock[session] = true
        const how = dice.pick(beginnings)
        if (how === 'open_direct' && !isPrepared[session] && dice.chance(0.9)) {
          isPrepared[session] = true
          yield named('second_net')
        }
        yield named(how)
        if (how === 'begin') yield named('open')
        continue
      }
      yield dice.chance(0.5) ? named(dice.pick(alone)) : dice.chance(0.75) ? recovery() : work()
      continue
    }
    if (dice.chance(0.25)) {
      inBlock[session] = false
      yield named(dice.pick(ends))
      // What fails before COMMIT in one text leaves the block open, and failed.
      if (dice.chance(0.8)) yield named('rollback')
    } else yield dice.chance(0.5) ? work() : dice.chance(0.7) ? named(dice.pick(inside)) : recovery()
  }
  for (const session of [0, 1, 2]) yield { session, words: () => say.rollback() }
  for (const id of ids)
    for (const home of databaseIds)
      for (const session of [0, 2])
        yield { session, words: (xid) => say.finish('rollback', `once:1:${home}:${id}:${xid}:p`) }
}

/** Where the two may differ: xids and times, process ids, and the order of rows that nobody orders. */
function comparable(words: Words, said: Said): unknown {
  if ('code' in said) return said
  const { command } = said
  if ('name' in words) {
    // Of several statements nobody reads the rows.
    if (words.isSeveral) return { command }
    const rows = said.rows.map((value) => {
      if (words.name === 'hello') {
        const [, fence, durability] = JSON.parse(String(value))
        return [fence, durability]
      }
      // A setting of ours that was in force once is empty, not null, for the rest of the session.
      if (words.name === 'read_probe') return value || null
      if (['ask', 'answer', 'apply'].includes(words.name)) return inOrder(JSON.parse(String(value)))
      return words.name === 'note_xid' && value !== null ? 'some' : value
    })
    return { command, rows: words.name === 'hello' ? rows : rows.map((row) => JSON.stringify(row)).sort() }
  }
  const rows = (said.rows as Record<string, unknown>[]).map((row) =>
    Object.fromEntries(
      Object.entries(row).map(([column, value]) => [
        column,
        column === 'xid' || column === 'at' || column === 'gid' ? (value === null ? null : 'some') : value,
      ]),
    ),
  )
  // Which rows come first is nobody's promise.
  if (words.text.startsWith('fetch')) return { command, count: rows.length }
  return { command, rows: rows.map((row) => JSON.stringify(row)).sort() }
}

/** A message, without times and xids; what stands in a list has no order. */
function inOrder(said: unknown): unknown {
  if (Array.isArray(said))
    return said
      .map(inOrder)
      .map((one) => JSON.stringify(one))
      .sort()
  if (typeof said === 'string') return said.replaceAll(/(once:1:[^:]*:[^:]*):[0-9]+:/g, '$1:some:')
  if (typeof said !== 'object' || said === null) return said
  return Object.entries(said)
    .filter(([name]) => name !== 'xids')
    .map(([name, value]) => [name, inOrder(value)])
    .sort()
}

/** What no script says, and why. */
const notReplayed: ReadonlyMap<string, string> = new Map([
  ["select 'write skew'", 'stands for statements whose conflict Postgres finds, and is none itself'],
  [smuggled, 'stands for what ends a transaction unseen, and is none itself'],
  ...endings.map((text) => [text, 'must never be sent'] as const),
  ['claim_sequence', 'the ledger has tests of its own; here it is only what is claimed once'],
  ['claim_sequence_with_effects', 'the same'],
])

test('Every statement that the simulated Postgres knows is replayed on a real one', (t) => {
  const said = new Set<string>()
  for (let seed = 1; seed <= 100; seed += 1) {
    for (const { words } of scriptOf(random(seed), seed, ['home', 'other'])) {
      const one = words('5')
      said.add('name' in one ? one.name : one.text)
    }
  }
  const missing = [...plainTexts, ...names].filter((one) => !said.has(one))
  t.deepEqual(missing.sort(), [...notReplayed.keys()].sort())
})

test('Of each statement by name the simulated Postgres runs the commands that its text has', (t) => {
  const known = namedWords(random(1), '5', 'home', 'own', ['id'])
  t.deepEqual(Object.keys(known).sort(), [...names].sort())
  for (const [name, { text }] of Object.entries(known)) {
    const commands = commandsOf(name)
    const parts = text.split('; ')
    t.is(parts.length, commands.length, text)
    parts.forEach((part, index) => {
      t.true(part.startsWith(commands[index] as string), `${name}: ${part} is not ${commands[index]}`)
    })
  }
})

test('The simulated Postgres answers as the real one does', async (t) => {
  t.timeout(600_000)
  const server = await ownServer(t)
  await using admin = disposable(server.url())
  const urls = ['one', 'two'].map((name) => server.url(name))
  const databaseIds: string[] = []
  await admin.sql`create role keeper`
  await admin.sql`grant postgres to keeper`
  for (const [index, name] of ['one', 'two'].entries()) {
    await admin.sql.unsafe(`create database ${name}`)
    const url = urls[index] as string
    await installSchema(url)
    await using session = disposable(url)
    await session.sql.unsafe(tables)
    const [row] = await session.sql`select once.database_id()::text as id`
    databaseIds.push(row?.id)
  }
  const real = realSide(urls, () => server.restart('immediate'))
  t.teardown(() => real.end())
  const simulated = simulatedSide(databaseIds)
  let compared = 0
  const codes = new Set<string>()
  for (let seed = firstSeed; seed < firstSeed + scripts; seed += 1) {
    const dice = random(seed)
    const told: string[] = []
    const crashes = seed % crashEvery === 0
    await Promise.all([real.connect(crashes), simulated.connect(crashes)])
    // One from before a crash may be given again.
    real.xid = simulated.xid = '5'
    for (const { session, words } of scriptOf(dice, seed, databaseIds)) {
      const [there, here] = await Promise.all(
        [real, simulated].map(async (side) => {
          const mine = words(side.xid)
          const said = await side.run(session, mine)
          if ('name' in mine && mine.name === 'note_xid' && 'rows' in said && said.rows[0] != null)
            side.xid = String(said.rows[0])
          return comparable(mine, said)
        }),
      )
      const { text } = words(real.xid)
      told.push(`${session}: ${text.slice(0, 200)}\n     ${JSON.stringify(there)}`)
      compared += 1
      if (there && typeof there === 'object' && 'code' in there) codes.add(String(there.code))
      if (JSON.stringify(there) === JSON.stringify(here)) continue
      t.deepEqual(here, there, `Seed ${seed}:\n${told.slice(-25).join('\n')}`)
      return
    }
  }
  t.log(`${compared} answers compared; refusals among them: ${[...codes].sort().join(', ')}`)
  t.true(compared > scripts * 40)
})

function disposable(url: string) {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  return { sql, [Symbol.asyncDispose]: () => sql.end({ timeout: 1 }) }
}
