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
import { plainTexts, statementOf } from '../../../proof/simulation/postgres/statements.ts'
import { scheduler } from '../../../proof/simulation/scheduler.ts'
import { installSchema, ownServer } from '../../support/database.ts'

const scripts = Number(process.env.PGONCE_CONFORMANCE_SCRIPTS ?? 60)
const firstSeed = Number(process.env.PGONCE_CONFORMANCE_SEED ?? 1)
const crashEvery = 20

/** What one side says to a statement. */
type Said = { readonly rows: unknown; readonly command: string } | { readonly code: string }

interface Side {
  run(session: number, text: string, values: readonly unknown[]): Promise<Said>
  crash(): Promise<void>
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
`

const recoverySteps = ['finish', 'prove', 'confirm', 'purge', 'audit', 'judge'] as const

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
      page: 1000,
    },
    { committed() {}, prepared() {}, seen() {}, finished() {}, lostTail() {} },
    random(1),
    () => clock.now,
    (milliseconds, task) => void clock.after(milliseconds, undefined, task),
  )
  const databases = databaseIds.map((databaseId, index) => addDatabase(server, `d${index}`, databaseId))
  const open = (): Backend[] =>
    [0, 1, 2].map((session) =>
      openBackend(databases[databaseOf(session)] as SimulatedDatabase, 'postgres', session, () => {}),
    )
  let backends = open()
  const side: Side = {
    xid: '5',
    async run(session, text, values) {
      let said: Answer | PgError | undefined
      receive(backends[session] as Backend, {
        statement: statementOf(text),
        values,
        refusal: undefined,
        flushed() {},
        done: (result) => {
          said = result
        },
      })
      if (!clock.runUntil(() => said !== undefined, clock.now + 60_000))
        throw new Error(`No answer to ${text}`)
      // Times differ, and rows must not have the same.
      clock.after(1, undefined, () => {})
      clock.runUntil(() => false, clock.now + 1)
      if (said instanceof PgError) return { code: said.code }
      const { rows, command } = said as Answer
      return { rows, command }
    },
    async crash() {
      crash(server)
      restart(server)
      backends = open()
    },
  }
  return side
}

/** One statement of a script; `{xid}` stands for the xid that each side has given last. */
interface Step {
  readonly session: number
  readonly text: string
  readonly values: readonly unknown[]
}

function* scriptOf(dice: Random, seed: number, databaseIds: readonly string[]): Generator<Step> {
  const digits = (index: number) => (seed * 10 + index).toString(16).padStart(12, '0')
  const ids = [0, 1].map((index) => `00000000-0000-4000-8000-${digits(index)}`)
  const gids = ids.flatMap((id) => databaseIds.map((home) => `once:1:${home}:${id}:{xid}:p`))
  const inBlock = [false, false, false]
  let effect = seed * 1000
  for (let step = 0; step < 40; step += 1) {
    const session = dice.below(3)
    const id = dice.pick(ids)
    const home = dice.chance(0.8) ? (databaseIds[0] as string) : (databaseIds[1] as string)
    const gid = dice.pick(gids)
    const own = databaseIds[databaseOf(session)]
    const believed = dice.chance(0.9) ? own : dice.pick([null, databaseIds[1 - databaseOf(session)]])
    const say = (text: string, ...values: unknown[]): Step => ({ session, text, values })
    const askFor = (one: string, recoverer?: string) =>
      say('select once.ask($1)', JSON.stringify({ steps: [one], keep: '0 ms', recoverer }))
    const [asking = '', asked = ''] = dice.chance(0.9) ? [home, home] : databaseIds
    const xids = ids.map(() => dice.pick(['{xid}', '{xid}', '4611686018427387904']))
    const answerTo = (one: string) =>
      say('select once.answer($1)', JSON.stringify({ step: one, asking, asked, ids, xids }))
    const applyTo = (one: string) =>
      say(
        'select once.apply($1)',
        JSON.stringify([
          {
            ...{ step: one, asking, asked, ids, xids },
            outcomes: ids.map(() => dice.pick(['committed', 'aborted', 'pending'])),
            evident: ids.filter(() => dice.chance(0.5)),
            missing: ids.filter(() => dice.chance(0.3)),
          },
        ]),
      )
    if (!inBlock[session]) {
      if (dice.chance(0.55)) {
        inBlock[session] = true
        const isolation = dice.chance(0.8)
          ? ''
          : ` isolation level ${dice.pick(['read committed', 'repeatable read'])}`
        if (dice.chance(0.8)) yield say(`begin${isolation}; call once.open('${id}', 50, 60000)`)
        else {
          yield say(`begin${isolation}`)
          yield say('call once.open($1::uuid, $2::int, $3::int)', id, 50, 60000)
        }
        continue
      }
      const alone: Step[] = [
        say(`commit prepared '${gid}'`),
        say(`commit prepared '${gid}'`),
        say(`rollback prepared '${gid}'`),
        say(`prepare transaction '${gid}'`),
        say('commit'),
        say('rollback'),
        say('select 1; select 1'),
        say(`select once.assert_branch('${id}'); commit`),
        say('reset role; commit'),
        say('rollback; reset role'),
        say("select pg_catalog.current_setting('role') as role"),
        say("select pg_catalog.set_config('role', $1::text, false)", 'none'),
        // What it writes depends on how long ago the last one was, so nobody may look at its xid.
        askFor('finish', 'pgonce'),
        ...recoverySteps.map((one) => askFor(one)),
        ...recoverySteps.map((one) => answerTo(one)),
        ...recoverySteps.map((one) => applyTo(one)),
      ]
      yield dice.pick(alone)
      continue
    }
    const within: Step[] = [
      say('insert into effect (id) values ($1::int)', effect++),
      say('insert into effect (id) values ($1::int)', effect++),
      say('select add_effect($1::int)', effect++),
      say('update account set n = n + 1 where id = $1::int', dice.below(3)),
      say('select 1/0'),
      say(textOf('from effect')),
      say('insert into deferred_child (id) values (0)'),
      say('select pg_catalog.pg_current_xact_id_if_assigned()::text as xid'),
      say('select once.assert_branch($1::uuid)', id),
      say(
        'select once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)::text as xid',
        id,
        '{p}',
        `{${databaseIds[1]}}`,
        believed,
      ),
      say(
        'select from once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)',
        id,
        '{p}',
        `{${databaseIds[1]}}`,
        believed,
      ),
      say('select once.vote($1::uuid, $2::uuid, $3, $4::uuid) as wrote', id, home, 'p', believed),
      say('select once.vote($1::uuid, $2::uuid, $3, $4::uuid) as wrote', id, home, 'p', believed),
      say('select once.narrow_global($1::uuid, $2::text::text[], $3::text::uuid[])', id, '{}', '{}'),
      say(
        'select once.narrow_global($1::uuid, $2::text::text[], $3::text::uuid[])',
        id,
        '{q}',
        `{${databaseIds[1]}}`,
      ),
      say('begin'),
      say(`commit prepared '${gid}'`),
    ]
    const ends: Step[] = [
      say('commit'),
      say('commit'),
      say('rollback'),
      say(`prepare transaction '${gid}'`),
      say(`prepare transaction '${gid}'`),
      say(`select once.assert_branch('${id}'); commit`),
      say('reset role; commit'),
      say('rollback; reset role'),
    ]
    const reads: Step[] = [
      askFor(dice.pick(recoverySteps)),
      answerTo(dice.pick(['finish', 'prove', 'audit', 'judge'])),
      say('select once.outcome($1::uuid, $2::uuid, $3::text::xid8) as outcome', home, id, '{xid}'),
      say('select from once.find_evidence(array[$1::uuid])', id),
      say(`select from pg_prepared_xacts where gid = '${gid}'`),
      say(textOf('once.schema_version()')),
    ]
    const chosen = dice.chance(0.3)
      ? dice.pick(ends)
      : dice.chance(0.3)
        ? dice.pick(reads)
        : dice.pick(within)
    if (ends.includes(chosen)) inBlock[session] = false
    // A temporary table that is committed would stay with its session.
    if (chosen.text.startsWith('prepare ') && dice.chance(0.1)) yield say('create temp table scratch ()')
    yield chosen
    // What fails before COMMIT in one text leaves the block open, and failed.
    if (chosen.text.endsWith('; commit')) yield say('rollback')
  }
  for (const session of [0, 1, 2]) yield { session, text: 'rollback', values: [] }
  for (const gid of gids)
    for (const session of [0, 2]) yield { session, text: `rollback prepared '${gid}'`, values: [] }
}

/** The text that contains this, as the client sends it. */
function textOf(part: string): string {
  const [text, ...others] = plainTexts.filter((one) => one.includes(part))
  if (text === undefined || others.length > 0) throw new Error(`Expected one text with ${part}`)
  return text
}

/** Where the two may differ: xids and times, and the order of rows and lists that nobody orders. */
function comparable(said: Said): unknown {
  if ('code' in said) return said
  const rows = (said.rows as Record<string, unknown>[]).map((row) =>
    Object.fromEntries(
      Object.entries(row).map(([column, value]) => [
        column,
        column === 'xid'
          ? value === null
            ? null
            : 'some'
          : messages.has(column)
            ? inOrder(JSON.parse(String(value)))
            : value,
      ]),
    ),
  )
  return { command: said.command, rows: rows.map((row) => JSON.stringify(row)).sort() }
}

const messages: ReadonlySet<string> = new Set(['ask', 'answer', 'apply'])

function inOrder(said: unknown): unknown {
  if (Array.isArray(said))
    return said
      .map(inOrder)
      .map((one) => JSON.stringify(one))
      .sort()
  if (typeof said === 'string') return said.replaceAll(/^(once:1:[^:]*:[^:]*):[0-9]+:/g, '$1:some:')
  if (typeof said !== 'object' || said === null) return said
  return Object.entries(said)
    .filter(([name]) => name !== 'xids')
    .map(([name, value]) => [name, inOrder(value)])
    .sort(([one], [other]) => (String(one) < String(other) ? -1 : 1))
}

/** What no script says, and why. */
const notReplayed: ReadonlyMap<string, string> = new Map([
  ["select 'write skew'", 'stands for statements whose conflict Postgres finds, and is none itself'],
])

test('Every statement that the simulated Postgres knows is replayed on a real one', (t) => {
  const said = new Set<string>()
  for (let seed = 1; seed <= 50; seed += 1)
    for (const { text } of scriptOf(random(seed), seed, ['home', 'other'])) said.add(text)
  const missing = plainTexts.filter((text) => !said.has(text))
  t.deepEqual(missing, [...notReplayed.keys()])
})

test('The simulated Postgres answers as the real one does', async (t) => {
  t.timeout(600_000)
  const server = await ownServer(t)
  await using admin = disposable(server.url())
  const urls = ['one', 'two'].map((name) => server.url(name))
  const databaseIds: string[] = []
  for (const [index, name] of ['one', 'two'].entries()) {
    await admin.sql.unsafe(`create database ${name}`)
    const url = urls[index] as string
    await installSchema(url)
    await using session = disposable(url)
    await session.sql.unsafe(tables)
    const [row] = await session.sql`select once.database_id()::text as id`
    databaseIds.push(row?.id)
  }
  const connect = () =>
    [0, 1, 2].map((session) =>
      postgres(urls[databaseOf(session)] as string, { max: 1, onnotice: () => {}, idle_timeout: 0 }),
    )
  let sessions = connect()
  t.teardown(() => Promise.all(sessions.map((sql) => sql.end({ timeout: 1 }))))
  const real: Side = {
    xid: '5',
    async run(session, text, values) {
      try {
        const result = await (sessions[session] as postgres.Sql).unsafe(text, [...values] as never[], {
          prepare: false,
        })
        const last = (Array.isArray(result[0]) ? result.at(-1) : result) as unknown as {
          command: string
        } & unknown[]
        return { rows: Array.from(last), command: last.command }
      } catch (error) {
        return { code: String((error as { code?: string }).code ?? error) }
      }
    },
    async crash() {
      await Promise.all(sessions.map((sql) => sql.end({ timeout: 0 })))
      await server.restart('immediate')
      sessions = connect()
    },
  }
  const simulated = simulatedSide(databaseIds)
  let compared = 0
  const codes = new Set<string>()
  for (let seed = firstSeed; seed < firstSeed + scripts; seed += 1) {
    const dice = random(seed)
    const told: string[] = []
    for (const step of scriptOf(dice, seed, databaseIds)) {
      const [there, here] = await Promise.all(
        [real, simulated].map(async (side) => {
          const fill = (text: string) => text.replaceAll('{xid}', side.xid)
          const said = await side.run(
            step.session,
            fill(step.text),
            step.values.map((value) => (typeof value === 'string' ? fill(value) : value)),
          )
          const xid = 'rows' in said ? (said.rows as { xid?: unknown }[])[0]?.xid : undefined
          if (typeof xid === 'string') side.xid = xid
          // Of several statements postgres.js gives the rows of all; nobody reads them.
          return comparable('rows' in said && step.text.includes(';') ? { ...said, rows: [] } : said)
        }),
      )
      told.push(`${step.session}: ${step.text} ${JSON.stringify(step.values)}\n     ${JSON.stringify(there)}`)
      compared += 1
      if (there && typeof there === 'object' && 'code' in there) codes.add(String(there.code))
      if (JSON.stringify(there) === JSON.stringify(here)) continue
      t.deepEqual(here, there, `Seed ${seed}:\n${told.slice(-25).join('\n')}`)
      return
    }
    if (seed % crashEvery === 0) await Promise.all([real.crash(), simulated.crash()])
  }
  t.log(`${compared} answers compared; refusals among them: ${[...codes].sort().join(', ')}`)
  t.true(compared > scripts * 40)
})

function disposable(url: string) {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  return { sql, [Symbol.asyncDispose]: () => sql.end({ timeout: 1 }) }
}
