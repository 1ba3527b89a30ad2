/**
 * Every message of every flow, lost in every way. A clean run through the proxies is recorded, so the list of
 * messages is the flow's own, whatever it becomes; then each message of either direction, on either side, is the
 * one at which
 *
 *     kill     both ends are cut off, just after it has passed
 *     cancel   the server is asked to cancel what the backend runs
 *     stall    the connection stands still for longer than anybody has patience for, and then goes on
 *     lose     it does not arrive, nor anything behind it, and the connection breaks later
 *
 * Afterwards, by way of connections of its own, recovery converges, both databases agree, what the client was told
 * is true, nothing is in doubt, lost or left over, and the client's next transaction succeeds.
 *
 * Time runs faster for the client, so that its ten seconds of patience are a part of one.
 */
import test from 'ava'
import {
  type Direction,
  type MessageName,
  startProxy,
  type Proxy as TcpProxy,
} from '../../../proof/rig/proxy/index.ts'
import { environment, replaceEnvironment } from '../../../src/environment.ts'
import { OutcomeUnknownError, type Pgonce, pgonce, type TransactionOptions } from '../../../src/index.ts'
import { kyselyOnPg } from '../../support/client.ts'
import { fileContext } from '../../support/database.ts'
import { type Effects, type EffectsDatabase, effectsDatabase, insertEffect } from '../../support/effects.ts'
import { leaveBehind } from '../../support/orphan.ts'

type Name = 'a' | 'b'
type Client = Pgonce<{ a: Effects; b: Effects }>

/** The client's milliseconds in one of ours. */
const speed = 20
const ours = { ...environment }
replaceEnvironment({
  ...ours,
  now: () => ours.now() * speed,
  after: (milliseconds, task) => ours.after(milliseconds / speed, task),
  sleep: (milliseconds, signal) => ours.sleep(milliseconds / speed, signal),
})

/** In our milliseconds: longer than the client's ten seconds of patience; shorter; and for what must not fail. */
const stallTime = 750
const loseTime = 100
const options: TransactionOptions = { retries: 0, home: 'a', timeout: 10_000 }
/** Connecting takes longer than a transaction. */
const unhurried: TransactionOptions = { ...options, timeout: 100_000 }
const patient: TransactionOptions = { ...options, timeout: 400_000 }

const actions = { kill: 'kill', cancel: 'cancel', stall: 'stall', lose: 'drop' } as const
type Fault = keyof typeof actions

interface Recorded {
  readonly side: Name
  readonly direction: Direction
  /** Its number among those of its side and direction, from 1. */
  readonly nth: number
  readonly name: MessageName
  readonly statement: string | undefined
}

interface Flow {
  readonly title: string
  readonly faults: readonly Fault[]
  readonly driver: 'postgres.js' | 'pg'
  /** Each cell with a client of its own, so that connecting is a part of it. */
  readonly cold?: true
  /** What is there before, from connections of its own. */
  prepare?(stage: Stage, id: number): Promise<void>
  /** Ends well only if the effects are there, or as `expected` says. */
  run(once: Client, id: number, options: TransactionOptions): Promise<unknown>
  /** The databases that have an effect, or none has. */
  readonly effects: readonly Name[]
  /** What became of it before it was run, in flows that do not decide. */
  readonly expected?: 'committed' | 'aborted'
}

/** Two databases on two clusters, with proxies before them; one cell at a time. */
interface Stage {
  readonly databases: Readonly<Record<Name, EffectsDatabase>>
  readonly proxies: Readonly<Record<Name, TcpProxy>>
  /** Without proxies, and with nothing in common with the client. */
  readonly direct: Client
  /** The messages since this was emptied. */
  readonly seen: Recorded[]
  nextId: number
}

const names: readonly Name[] = ['a', 'b']
const everything: readonly Fault[] = ['kill', 'cancel', 'stall', 'lose']

const write =
  (id: number, sides: readonly Name[]) => async (tx: Parameters<Parameters<Client['transaction']>[0]>[0]) => {
    for (const side of sides) await tx[side].insertInto('effect').values({ id }).execute()
  }

const flows: readonly Flow[] = [
  {
    title: 'Two phases, with the votes travelling with PREPARE',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a', 'b'],
    run: (once, id, own) => once.transaction(write(id, ['a', 'b']), own),
  },
  {
    title: 'Two phases, with the votes asked for first',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a', 'b'],
    run: (once, id, own) =>
      once.transaction(async (tx) => {
        await write(id, ['a'])(tx)
        // What this writes does not show in its tag, so the participant has to be asked.
        await tx.b
          .with('written', (db) => db.insertInto('effect').values({ id }).returning('id'))
          .selectFrom('written')
          .select('id')
          .execute()
      }, own),
  },
  {
    title: 'Two databases, of which one was only read',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a'],
    run: (once, id, own) =>
      once.transaction(async (tx) => {
        await tx.b.selectFrom('effect').select('id').where('id', '=', id).execute()
        await write(id, ['a'])(tx)
      }, own),
  },
  {
    title: 'One phase',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a'],
    run: (once, id, own) => once.transaction(write(id, ['a']), own),
  },
  {
    title: 'One phase, recorded',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a'],
    run: (once, id, own) => once.transaction(write(id, ['a']), { ...own, record: true }),
  },
  {
    title: 'A message with its claim',
    faults: everything,
    driver: 'postgres.js',
    effects: ['a', 'b'],
    run: (once, id, { home: _, ...own }) =>
      once.process('a', { producer: 'p', sequence: id }, (_trx, tx) => write(id, ['a', 'b'])(tx), own),
  },
  ...(['committed', 'aborted'] as const).map(
    (outcome): Flow => ({
      title: `A recovery that finds a branch in doubt, ${outcome}`,
      faults: outcome === 'committed' ? everything : ['kill'],
      driver: 'postgres.js',
      effects: ['a', 'b'],
      expected: outcome,
      prepare: ({ databases }, id) =>
        leaveBehind(
          databases.a,
          { b: databases.b },
          { outcome, effect: insertEffect(id), atHome: insertEffect(id) },
        ).then(() => {}),
      run: (once) => once.recovery.run({ keep: 0 }),
    }),
  ),
  {
    title: 'Two phases from the first connection on',
    faults: ['kill'],
    driver: 'postgres.js',
    cold: true,
    effects: ['a', 'b'],
    run: (once, id, own) => once.transaction(write(id, ['a', 'b']), own),
  },
  {
    title: 'Two phases through Kysely on pg',
    faults: ['kill', 'lose'],
    driver: 'pg',
    effects: ['a', 'b'],
    run: (once, id, own) => once.transaction(write(id, ['a', 'b']), own),
  },
]

// ---------------------------------------------------------------------------------------------------
// The stages

const file = fileContext(test.after.always)
const stages: Stage[] = []

test.before(async () => {
  stages.push(...(await Promise.all(Array.from({ length: 10 }, makeStage))))
})

async function makeStage(): Promise<Stage> {
  const [a, b] = await Promise.all([effectsDatabase(file, 'a'), effectsDatabase(file, 'b')])
  const seen: Recorded[] = []
  const proxyTo = async ({ url }: EffectsDatabase, side: Name) => {
    const proxy = await startProxy({
      target: url,
      observe({ direction, name, statement }) {
        const nth = seen.filter((one) => one.side === side && one.direction === direction).length + 1
        seen.push({ side, direction, nth, name, statement })
      },
    })
    file.teardown(() => proxy.close())
    return proxy
  }
  const direct = pgonce<{ a: Effects; b: Effects }>({
    databases: { a: a.url, b: b.url },
    connectTimeout: 10_000 * speed,
  })
  file.teardown(() => direct.close())
  return {
    databases: { a, b },
    proxies: { a: await proxyTo(a, 'a'), b: await proxyTo(b, 'b') },
    direct,
    seen,
    nextId: 1,
  }
}

/** Through the proxies. */
function clientOf(
  { databases, proxies }: Stage,
  driver: Flow['driver'],
): { once: Client; close(): Promise<void> } {
  const teardowns: (() => unknown)[] = []
  const target = (name: Name) => {
    const url = proxies[name].url(databases[name].url)
    return driver === 'pg'
      ? kyselyOnPg<Effects>({ teardown: (fn) => teardowns.push(fn) }, url, { max: 2 })
      : url
  }
  const once = pgonce<{ a: Effects; b: Effects }>({
    databases: { a: target('a'), b: target('b') },
    maxConnections: 1,
    // Of the client's milliseconds: no fault here keeps anybody from connecting, but a busy machine may.
    connectTimeout: 10_000 * speed,
  })
  return {
    once,
    async close() {
      await once.close()
      for (const teardown of teardowns) await teardown()
    },
  }
}

/** Once a second of the client's a transaction also asks whether it is fenced: so that each one does. */
const untilFenceIsDue = () => ours.sleep(1_200 / speed)

/** A run without faults; what was said. */
async function recordRun(flow: Flow, stage: Stage, once: Client): Promise<Recorded[]> {
  const id = stage.nextId
  stage.nextId += 1
  await flow.prepare?.(stage, id)
  await untilFenceIsDue()
  stage.seen.length = 0
  await flow.run(once, id, patient)
  const messages = stage.seen.slice()
  const wanted = flow.expected === 'aborted' ? [] : flow.effects
  await eventually(`the effects are in ${wanted.join() || 'none'}, as without faults`, async () => {
    if ((await effectsOf(stage, id)).join() === wanted.join()) return true
    // On a machine that is busy the client may have left the end to recovery.
    await stage.direct.recovery.run()
    return false
  })
  return messages
}

const shape = (messages: readonly Recorded[]) =>
  names
    .map((side) =>
      (['client', 'server'] as const).map((direction) =>
        messages
          .filter((one) => one.side === side && one.direction === direction)
          .map(({ name }) => name)
          .join(),
      ),
    )
    .join('\n')

/** Runs until nothing is said for the first time any more: statements are parsed, types are known. */
async function warmUp(flow: Flow, stage: Stage, once: Client): Promise<Recorded[]> {
  let before = ''
  let messages: Recorded[] = []
  for (let attempt = 0; attempt < 8; attempt += 1) {
    messages = await recordRun(flow, stage, once)
    const now = shape(messages)
    if (now === before) return messages
    before = now
  }
  throw new Error(`the flow is not the same each time:\n${before}`)
}

async function effectsOf({ databases }: Stage, id: number): Promise<Name[]> {
  const found = await Promise.all(
    names.map((name) => databases[name].sql`select from effect where id = ${id}`),
  )
  return names.filter((_, index) => found[index]?.length === 1)
}

// ---------------------------------------------------------------------------------------------------
// A cell

interface Cell extends Recorded {
  readonly fault: Fault
}

const describe = ({ side, direction, nth, name, statement, fault }: Cell) =>
  `${fault} at ${side}, ${direction}'s message ${nth}, ${name}${statement ? ` of ${statement.slice(0, 40)}` : ''}`

/** With what changes each time left out. */
const sameText = (one: string | undefined, other: string | undefined) =>
  one?.replace(/[0-9a-f]{8}-[0-9a-f-]{27}|\d+/g, '') === other?.replace(/[0-9a-f]{8}-[0-9a-f-]{27}|\d+/g, '')

/** False if another message was met: the client gave up before, on a machine that is busy. */
async function runCell(
  flow: Flow,
  stage: Stage,
  once: Client,
  cell: Cell,
  problems: string[],
): Promise<boolean> {
  const expect = (holds: boolean, problem: () => string) => {
    if (!holds) problems.push(`${describe(cell)}: ${problem()}`)
  }
  const { direct, databases } = stage
  const id = stage.nextId
  stage.nextId += 1
  await flow.prepare?.(stage, id)
  await untilFenceIsDue()
  const rule = stage.proxies[cell.side].inject({
    when: { direction: cell.direction, nth: cell.nth },
    action: actions[cell.fault],
    milliseconds: cell.fault === 'stall' ? stallTime : loseTime,
  })
  const told = await flow.run(once, id, flow.cold ? unhurried : options).then(
    () => ({ error: undefined }),
    (error: unknown) => ({ error: error ?? new Error('no error') }),
  )
  rule.remove()
  const [hit] = rule.hits
  // Beside what goes on still.
  if (cell.fault === 'stall' || cell.fault === 'lose') await direct.recovery.run({ purge: false })
  await rule.over()
  for (const { pid, closed } of rule.hits)
    if (closed && pid !== undefined) await sessionEnded(databases[cell.side], pid)
  await converge(stage)

  const there = await effectsOf(stage, id)
  const happened = there.length > 0
  expect(!happened || there.join() === flow.effects.join(), () => `only ${there.join()} has the effect`)
  if (flow.expected) {
    expect(happened === (flow.expected === 'committed'), () => `it was ${flow.expected}, and is not any more`)
    expect(told.error === undefined, () => `the recovery failed: ${told.error}`)
  } else if (told.error === undefined) {
    expect(happened, () => 'a success was told, and there is no effect')
  } else if (told.error instanceof OutcomeUnknownError) {
    const { id: known } = told.error
    if (known !== null) {
      const outcome = await direct.outcome(known)
      expect(
        outcome === (happened ? 'committed' : 'aborted'),
        () => `the outcome is told as ${outcome}: ${happened}`,
      )
    }
  } else {
    expect(!happened, () => `a failure was told, and there is the effect: ${told.error}`)
  }
  await eventually('everything is proven and purged', async () => {
    await direct.recovery.run({ keep: 0 })
    const left = await Promise.all(
      names.map(
        (name) => databases[name].sql`
          select from once.evidence union all select from once.global_transaction`,
      ),
    )
    return left.every(({ length }) => length === 0)
  })
  const losses = await direct.recovery.audit()
  expect(losses.length === 0, () => `losses: ${JSON.stringify(losses)}`)
  for (const name of names)
    expect((await databases[name].count('once.loss')) === 0, () => `losses are recorded in ${name}`)
  return hit?.name === cell.name && sameText(hit.statement, cell.statement)
}

async function sessionEnded({ sql }: EffectsDatabase, pid: number): Promise<void> {
  await eventually(`session ${pid} has ended`, async () => {
    const rows = await sql`select from pg_stat_activity where pid = ${pid}`
    return rows.length === 0
  })
}

/** Until nothing runs, nothing is in doubt, and recovery has nothing to do. */
async function converge({ databases, direct }: Stage): Promise<void> {
  await eventually('recovery is through', async () => {
    for (const name of names) {
      const { sql } = databases[name]
      const busy = await sql`
        select from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'`
      if (busy.length > 0) return false
    }
    const { pending, unfinished, unreachable, committed, rolledBack } = await direct.recovery.run({
      purge: false,
    })
    if (pending + unfinished.length + unreachable.length + committed + rolledBack > 0) return false
    const prepared = await Promise.all(names.map((name) => databases[name].prepared()))
    return prepared.every((count) => count === 0)
  })
}

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`Waited in vain until ${what}`)
    await ours.sleep(5)
  }
}

// ---------------------------------------------------------------------------------------------------
// The matrix

/** Where a connection is part of the flow, of messages of one name in a row one is enough: parameters, mostly. */
const firsts = (messages: readonly Recorded[]) =>
  messages.filter(
    (one) =>
      messages.find(
        (other) => other.side === one.side && other.direction === one.direction && other.nth === one.nth - 1,
      )?.name !== one.name,
  )

for (const flow of flows) {
  test.serial(
    `${flow.title}: a fault at any message leaves all or nothing, and what was told is true`,
    async (t) => {
      t.timeout(300_000)
      const began = performance.now()
      const [first] = stages as [Stage]
      const recorder = clientOf(first, flow.driver)
      const messages = flow.cold
        ? firsts(await recordRun(flow, first, recorder.once))
        : await warmUp(flow, first, recorder.once)
      await recorder.close()
      const cells = flow.faults.flatMap((fault) => messages.map((message): Cell => ({ ...message, fault })))
      const waiting = cells.slice()
      const problems: string[] = []
      let ran = 0
      const play = async (stage: Stage) => {
        let client = clientOf(stage, flow.driver)
        if (!flow.cold) await warmUp(flow, stage, client.once)
        for (let cell = waiting.shift(); cell; cell = waiting.shift()) {
          try {
            let met = false
            for (let attempt = 0; attempt < 5 && !met; attempt += 1) {
              if (flow.cold) {
                await client.close()
                client = clientOf(stage, flow.driver)
              }
              met = await runCell(flow, stage, client.once, cell, problems)
              // The next transaction must succeed; and statements are parsed again.
              await recordRun(flow, stage, client.once)
            }
            if (!met) problems.push(`${describe(cell)}: the message was not said`)
          } catch (error) {
            problems.push(`${describe(cell)}: ${(error as Error).stack}`)
            await client.close()
            client = clientOf(stage, flow.driver)
            if (!flow.cold) await warmUp(flow, stage, client.once)
          }
          ran += 1
          // What is left behind would be found again and again.
          if (problems.length > 10) waiting.length = 0
        }
        await client.close()
      }
      for (const played of await Promise.allSettled(stages.map(play)))
        if (played.status === 'rejected') problems.push(String(played.reason?.stack))
      const seconds = ((performance.now() - began) / 1000).toFixed(1)
      t.log(`${messages.length} messages, ${ran} cells, ${seconds} s`)
      t.deepEqual(problems, [])
      t.is(ran, messages.length * flow.faults.length)
      for (const side of flow.effects)
        for (const direction of ['client', 'server'])
          t.true(messages.some((one) => one.side === side && one.direction === direction))
    },
  )
}
