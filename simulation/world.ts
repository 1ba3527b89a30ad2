/**
 * One schedule: builds the world that a plan describes, runs the real coordinator and the real recovery in it, lets
 * faults strike, and then lets everything come to rest and looks.
 */
import { subscribe } from 'node:diagnostics_channel'
import { CompiledQuery } from 'kysely'
import { type Database, databaseOver } from '../src/database/database.ts'
import { replaceEnvironment } from '../src/environment.ts'
import { OutcomeUnknownError, PgonceError } from '../src/errors.ts'
import { audit } from '../src/transaction/audit.ts'
import type { StepEvent } from '../src/transaction/channels.ts'
import { readOutcome } from '../src/transaction/commit.ts'
import { type Context, type Handles, runTransaction } from '../src/transaction/coordinator.ts'
import { parseId } from '../src/transaction/gid.ts'
import { type RunningRecovery, startRecovery, sweep } from '../src/transaction/recovery.ts'
import { type DriverName, openSimulated, type SimulatedPool } from './drivers.ts'
import {
  type ClientProcess,
  cutWire,
  dropConnections,
  killProcess,
  type Network,
  type Wire,
} from './network.ts'
import { type Attempt, type Call, createOracle, type Oracle, type Violation } from './oracle.ts'
import {
  type Action,
  type Fault,
  nameOf,
  type Operation,
  type Plan,
  type RecovererPlan,
  type TransactionPlan,
} from './plan.ts'
import { pointOf, points } from './points.ts'
import { type Backend, hangUp, type Request, runInside, terminate } from './postgres/backend.ts'
import {
  abort as abortTransaction,
  addDatabase,
  assignXid,
  beginTransaction,
  commitTransaction,
  crash,
  createServer,
  failOver,
  finishPrepared,
  lock,
  type Observer,
  type Pause,
  PgError,
  type Prepared,
  prepareTransaction,
  restart,
  type Server,
  type SimulatedDatabase,
  superuser,
  write,
} from './postgres/server.ts'
import { decodeGid } from './postgres/statements.ts'
import { type Random, random } from './random.ts'
import { type Process, type Scheduler, scheduler } from './scheduler.ts'

export interface Outcome {
  readonly violations: readonly Violation[]
  /** A number that differs if any event did. */
  readonly hash: number
  readonly events: number
  /** Milliseconds of the simulated world. */
  readonly time: number
  /** Which faults have struck, by their index in the plan, and which kill at which point. */
  readonly struck: readonly { readonly action: Action; readonly point: number }[]
  /** How many calls ended how. */
  readonly ends: Readonly<Record<string, number>>
}

interface Running extends ClientProcess {
  readonly databases: readonly Database[]
  readonly pools: SimulatedPool[]
  readonly context: Context
  readonly random: Random
  recovery: RunningRecovery | undefined
}

interface World extends Network {
  readonly plan: Plan
  readonly servers: Server[]
  readonly databases: SimulatedDatabase[]
  readonly processes: Running[]
  readonly oracle: Oracle
  readonly struck: { action: Action; point: number }[]
  readonly random: Random
  /** Promises that must settle in the end. */
  readonly open: Set<Promise<unknown>>
  effects: number
  hash: number
}

/** The world that the ports and the tracing channels belong to at the moment; one at a time. */
let world: World | undefined

/** @param trace gets every event as a line */
export function runPlan(plan: Plan, reached?: Uint32Array, trace?: (line: string) => void): Outcome {
  // To find out where an error was made takes longer than most events; who looks at one schedule gets to know.
  const limit = Error.stackTraceLimit
  if (trace === undefined) Error.stackTraceLimit = 0
  const created = createWorld(plan, reached, trace)
  world = created
  try {
    const ends = runWorld(created)
    if (created.broken !== undefined) throw created.broken
    return {
      violations: created.oracle.violations,
      hash: created.hash,
      events: created.scheduler.events,
      time: created.scheduler.now,
      struck: created.struck,
      ends,
    }
  } finally {
    world = undefined
    Error.stackTraceLimit = limit
  }
}

// ---------------------------------------------------------------------------------------------------
// Building

function createWorld(
  plan: Plan,
  reached: Uint32Array | undefined,
  trace: ((line: string) => void) | undefined,
): World {
  const clock = scheduler()
  const databases: SimulatedDatabase[] = []
  const lost = new Set<Backend>()
  const oracle = createOracle(databases, lost)
  const dice = random(plan.seed, 1)
  const servers = plan.servers.map((settings, number) =>
    createServer(
      number,
      settings,
      oracle as Observer,
      random(plan.seed, 2 + number),
      () => clock.now,
      (milliseconds, task) => void clock.after(milliseconds, undefined, task),
    ),
  )
  plan.databases.forEach((server, number) => {
    const identity = `00000000-0000-4000-8000-00000000000${number + 1}`
    databases.push(addDatabase(servers[server] as Server, nameOf(number), identity))
  })
  const waiting = new Map<number, { fault: Fault; left: number }[]>()
  for (const fault of plan.faults) {
    const point = pointOf(fault.point)
    waiting.set(point, [...(waiting.get(point) ?? []), { fault, left: fault.passage }])
  }
  const created: World = {
    plan,
    scheduler: clock,
    seed: plan.seed,
    calm: false,
    delay: plan.delay,
    backends: new Map(),
    lost,
    left: new Set(),
    pids: 0,
    broken: undefined,
    servers,
    databases,
    processes: [],
    oracle,
    struck: [],
    random: dice,
    open: new Set(),
    effects: 0,
    hash: 0,
    reach(point, process, wire, request) {
      created.hash = Math.imul(created.hash ^ point ^ (clock.now * 1000), 0x01000193) ^ (created.hash >>> 15)
      if (created.calm) return 0
      if (reached) reached[point] = (reached[point] as number) + 1
      const faults = waiting.get(point)
      if (faults === undefined) return 0
      let held = 0
      for (const one of faults) {
        one.left -= 1
        if (one.left === 0) held += strike(created, one.fault, point, process as Running, wire, request)
      }
      return held
    },
    note(text) {
      trace?.(`${clock.now.toFixed(3).padStart(12)}  ${text()}`)
    },
  }
  for (const { drivers, maxConnections } of plan.processes)
    addProcess(created, `coordinator ${created.processes.length + 1}`, 'app', drivers, maxConnections)
  return created
}

function addProcess(
  here: World,
  name: string,
  login: string,
  drivers: readonly DriverName[],
  maxConnections: number,
): Running {
  const number = here.processes.length + 1
  const pools: SimulatedPool[] = []
  const databases: Database[] = []
  const process: Running = {
    name,
    number,
    login,
    alive: true,
    skew: 0,
    pausedUntil: 0,
    wires: new Set(),
    wiresMade: 0,
    databases,
    pools,
    random: random(here.plan.seed, 100 + number),
    recovery: undefined,
    context: {
      databases: new Map(),
      background: new Set(),
      poke: () => process.recovery?.poke(),
    },
  }
  const byName = process.context.databases as Map<string, Database>
  here.databases.forEach((database, order) => {
    const open = openSimulated(
      here,
      process,
      database,
      drivers[order] ?? 'postgres.js',
      maxConnections,
      pools,
    )
    const one = databaseOver(database.name, order, open, { maxConnections, connectTimeout: 5_000 })
    databases.push(one)
    byName.set(database.name, one)
  })
  here.processes.push(process)
  return process
}

// ---------------------------------------------------------------------------------------------------
// The ports

function running(): { scheduler: Scheduler; process: Running } {
  const process = world?.scheduler.current
  if (world === undefined || process === undefined) throw new Error('Something runs outside every process')
  return { scheduler: world.scheduler, process: process as Running }
}

replaceEnvironment({
  now() {
    const { scheduler: clock, process } = running()
    return clock.now + process.skew
  },
  sleep(milliseconds, signal) {
    const { scheduler: clock, process } = running()
    return new Promise((resolve, reject) => {
      const leave = () => {
        clock.cancel(event)
        reject(new DOMException('This operation was aborted', 'AbortError'))
      }
      const event = clock.after(milliseconds, process, () => {
        signal?.removeEventListener('abort', leave)
        resolve()
      })
      if (signal?.aborted) leave()
      else signal?.addEventListener('abort', leave, { once: true })
    })
  },
  after(milliseconds, task) {
    const { scheduler: clock, process } = running()
    const event = clock.after(milliseconds, process, task)
    return () => clock.cancel(event)
  },
  soon(task) {
    const { scheduler: clock, process } = running()
    clock.after(0, process, task)
  },
  random: () => running().process.random.next(),
  randomUUID() {
    const { random: dice } = running().process
    const digits = () =>
      Math.floor(dice.next() * 0x100000000)
        .toString(16)
        .padStart(8, '0')
    const [one, two, three, four] = [digits(), digits(), digits(), digits()]
    return `${one}-${two.slice(0, 4)}-4${two.slice(5)}-a${three.slice(1, 4)}-${three.slice(4)}${four}`
  },
})

for (const step of ['begin', 'vote', 'prepare', 'decide', 'finish', 'recover']) {
  const start = pointOf(`step ${step}: start`)
  const pass = (point: number) => (event: unknown) => {
    const process = world?.scheduler.current as Running | undefined
    if (world === undefined || process === undefined || !process.alive) return
    const { database } = event as StepEvent
    const wire = [...process.wires].find(({ backend }) => backend.database.name === database)
    if (wire) world.reach(point, process, wire, undefined)
  }
  subscribe(`tracing:pgonce:${step}:start`, pass(start))
  subscribe(`tracing:pgonce:${step}:asyncEnd`, pass(start + 1))
}

// ---------------------------------------------------------------------------------------------------
// Faults

function strike(
  here: World,
  fault: Fault,
  point: number,
  process: Running,
  wire: Wire,
  request: Request | undefined,
): number {
  const { scheduler: clock, random: dice, oracle } = here
  const { database } = wire.backend
  const { server } = database
  const { action, time } = fault
  here.note(() => `FAULT ${action} at ${points[point]} (${process.name}, ${database.name})`)
  const count = () => here.struck.push({ action, point })
  switch (action) {
    case 'kill':
      if (process.alive) count()
      killProcess(here, process)
      return 0
    case 'crash':
      if (server.up) count()
      crashServer(here, server, time)
      return 0
    case 'fail over':
      if (!server.up) return 0
      count()
      failOver(server, fault.lost)
      dropConnections(here, server, here.processes)
      restartLater(here, server, time)
      return 0
    case 'cut':
      count()
      cutWire(here, wire, dice.between(0.1, time), dice.between(0.1, time))
      return 0
    case 'stall':
      count()
      return request === undefined ? 0 : time
    case 'pause':
      count()
      process.pausedUntil = Math.max(process.pausedUntil, clock.now + time)
      return 0
    case 'jump':
      count()
      process.skew += time
      return 0
    case 'terminate':
      count()
      // Not in the middle of a step of its own.
      clock.after(0, undefined, () => terminate(wire.backend))
      return 0
    case 'refuse':
      if (request === undefined || point % 5 > 1) return 0
      count()
      request.refusal = dice.pick(['57014', '40001', '53200', 'XX000'])
      return 0
    case 'sweep':
      count()
      recoverOnce(here, addProcess(here, `recoverer ${here.processes.length + 1}`, 'app', [], 2), {
        forgets: dice.chance(0.5),
        keep: isGrave(here.plan) ? 600_000 : 0,
        audits: false,
      })
      return 0
    case 'roll back by hand':
    case 'commit by hand': {
      const ours = everyPrepared(here).filter(
        ({ valid, busy, gid }) => valid && !busy && decodeGid(gid) && !oracle.forged.has(gid),
      )
      const [one] = ours
      if (one === undefined) return 0
      count()
      const commit = action === 'commit by hand'
      oracle.byHand.set(one.gid, commit ? 'commit' : 'rollback')
      runInside(
        one.transaction.database.server,
        finishPrepared(one.transaction.database, one.gid, commit, superuser, () => {}),
      )
      return 0
    }
    case 'force': {
      const [one] = everyPrepared(here).filter(
        ({ gid, valid, busy }) => valid && !busy && decodeGid(gid) && !oracle.forged.has(gid),
      )
      if (one === undefined) return 0
      count()
      const commit = dice.chance(0.5)
      oracle.byHand.set(one.gid, commit ? 'commit' : 'rollback')
      runInside(one.transaction.database.server, force(one.transaction.database, one.gid, one.owner, commit))
      return 0
    }
    case 'forge': {
      const [one] = everyPrepared(here).filter(({ gid }) => decodeGid(gid) && !oracle.forged.has(gid))
      const parts = one && decodeGid(one.gid)
      if (one === undefined || parts === undefined) return 0
      count()
      // The UUID of another transaction, under an xid of its own choice.
      const gid = `once:1:${parts.home}:${parts.id}:${Number(parts.xid) - 1 - dice.below(3)}:${parts.participant}`
      if (one.transaction.database.server.prepared.has(gid)) return 0
      oracle.forged.add(gid)
      runInside(one.transaction.database.server, forge(one.transaction.database, gid))
      return 0
    }
    case 'fill slots': {
      count()
      for (let slot = server.prepared.size; slot < Math.min(server.settings.maxPrepared, 64); slot += 1)
        runInside(server, fillSlot(database, `stranger-${here.effects++}`, time))
      return 0
    }
  }
}

function everyPrepared(here: World): Prepared[] {
  return here.servers.flatMap(({ up, prepared }) => (up ? [...prepared.values()] : []))
}

/** What a failover loses is younger than what is forgotten; see the guarantees. */
function isGrave({ faults }: Plan): boolean {
  return faults.some(
    ({ action }) => action === 'fail over' || action === 'force' || action.endsWith('by hand'),
  )
}

function crashServer(here: World, server: Server, downTime: number): void {
  if (!server.up) return
  crash(server)
  dropConnections(here, server, here.processes)
  restartLater(here, server, downTime)
}

function restartLater(here: World, server: Server, downTime: number): void {
  here.scheduler.after(downTime, undefined, () => {
    if (server.up) return
    startServer(here, server)
  })
}

/** After a crash strangers get the xids that were lost. */
function startServer(here: World, server: Server): void {
  restart(server)
  here.note(() => `server ${server.number} is up`)
  for (let count = server.random.below(4); count > 0; count -= 1) {
    const database = server.databases[server.random.below(server.databases.length)]
    if (database) runInside(server, stranger(database, server.random))
  }
}

function* stranger(database: SimulatedDatabase, dice: Random): Generator<Pause, void> {
  yield dice.between(0.1, 50)
  const transaction = beginTransaction(database)
  assignXid(transaction)
  yield dice.between(0.1, 300)
  if (dice.chance(0.7)) yield* commitTransaction(transaction, () => {})
  else abortTransaction(transaction)
}

function* forge(database: SimulatedDatabase, gid: string): Generator<Pause, void> {
  const transaction = beginTransaction(database)
  yield* lock(transaction, 'effect', gid)
  write(transaction, 'effect', gid, {})
  yield* prepareTransaction(transaction, gid, 'app', () => {})
}

/** As once.force: notes the branch, and then the line is typed. */
function* force(
  database: SimulatedDatabase,
  gid: string,
  owner: string,
  commit: boolean,
): Generator<Pause, void> {
  const parts = decodeGid(gid)
  if (parts === undefined) return
  const transaction = beginTransaction(database)
  yield* lock(transaction, 'forced', gid)
  write(transaction, 'forced', gid, { ...parts, gid, owner, decision: undefined, done: undefined })
  yield* commitTransaction(transaction, () => {})
  yield* finishPrepared(database, gid, commit, superuser, () => {})
}

function* fillSlot(database: SimulatedDatabase, gid: string, time: number): Generator<Pause, void> {
  const transaction = beginTransaction(database)
  assignXid(transaction)
  yield* prepareTransaction(transaction, gid, 'stranger', () => {})
  yield time
  yield* finishPrepared(database, gid, false, 'stranger', () => {})
}

// ---------------------------------------------------------------------------------------------------
// Running

/** No call may take longer than this for each millisecond of its timeout, and this besides. */
const longestFactor = 3
const longestBesides = 120_000

function runWorld(here: World): Record<string, number> {
  const { plan, scheduler: clock, oracle } = here
  plan.transactions.forEach((transaction, number) => {
    const process = here.processes[transaction.process]
    if (process) startCall(here, process, transaction, number)
  })
  plan.processes.forEach(({ recovers }, number) => {
    const process = here.processes[number]
    if (recovers && process) clock.after(0, process, () => startRunning(here, process))
  })
  plan.recoverers.forEach((recoverer) => {
    const drivers = here.databases.map(() => recoverer.driver)
    const process = addProcess(here, `recoverer ${here.processes.length + 1}`, recoverer.login, drivers, 2)
    for (let turn = 0; turn < recoverer.sweeps; turn += 1)
      clock.after(recoverer.at + turn * recoverer.every, process, () => recoverOnce(here, process, recoverer))
  })

  const isSettled = ({ settledAt, plan: { process } }: Call) =>
    settledAt !== undefined || here.processes[process]?.alive === false
  // Recovery is to be at work while faults still strike: the last sweep has begun, and is waited for like a call.
  const lastSweep =
    1 + Math.max(0, ...plan.recoverers.map(({ at, every, sweeps }) => at + (sweeps - 1) * every))
  clock.after(lastSweep, undefined, () => {})
  const isQuiet = () =>
    oracle.calls.length === plan.transactions.length &&
    clock.now >= lastSweep &&
    oracle.calls.every(isSettled) &&
    ![...here.open].some(isAlive)
  clock.runUntil(isQuiet, 7_200_000)
  heal(here)
  if (!clock.runUntil(() => oracle.calls.every(isSettled), clock.now + 7_200_000))
    oracle.violate(
      'every call settles',
      `after ${clock.now} ms there is no end of call ${oracle.calls.find((call) => !isSettled(call))?.number}`,
    )
  for (const call of oracle.calls) {
    if (call.settledAt === undefined) continue
    const pauses = plan.faults.reduce((sum, { action, time }) => (action === 'pause' ? sum + time : sum), 0)
    const took = call.settledAt - call.startedAt
    if (took > longestFactor * call.plan.options.timeout + longestBesides + pauses)
      oracle.violate(
        'every call settles in time',
        `call ${call.number} took ${took} ms, its timeout is ${call.plan.options.timeout}`,
      )
  }
  rest(here)
  recoverAll(here)
  const ends: Record<string, number> = {}
  for (const call of oracle.calls) {
    const end = endOf(call)
    ends[end] = (ends[end] ?? 0) + 1
  }
  return ends
}

function endOf({ settledAt, result, error }: Call): string {
  if (settledAt === undefined) return 'died'
  if (result) return 'committed'
  const code = typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : 'handler'
  return code
}

class HandlerGaveUp extends Error {}

function startCall(here: World, process: Running, plan: TransactionPlan, number: number): void {
  const { scheduler: clock, oracle } = here
  clock.after(plan.at, process, () => {
    const call: Call = {
      number,
      plan,
      attempts: [],
      startedAt: clock.now,
      settledAt: undefined,
      result: undefined,
      error: undefined,
    }
    oracle.calls.push(call)
    const controller = plan.abortAt === undefined ? undefined : new AbortController()
    if (controller) clock.after(plan.abortAt as number, process, () => controller.abort())
    runTransaction(
      process.context,
      { ...plan.options, ...(controller ? { signal: controller.signal } : {}) },
      (handles, _, transactionId) => {
        const attempt: Attempt = { id: transactionId, call, effects: new Map() }
        call.attempts.push(attempt)
        oracle.attempts.set(transactionId, attempt)
        return handle(here, plan.operations, handles, attempt)
      },
    )
      .then(
        (result) => {
          call.result = result
        },
        (error: unknown) => {
          call.error = error
          // A driver that tells the loss of its connection in words of its own is the caller's choice.
          const isDriversOwn = error instanceof Error && 'code' in error && error.code === ''
          const isKnown =
            isDriversOwn ||
            error instanceof PgonceError ||
            error instanceof PgError ||
            error instanceof HandlerGaveUp
          if (!isKnown)
            oracle.violate(
              'errors are told',
              `call ${number}: ${error instanceof Error ? error.stack : String(error)}`,
            )
        },
      )
      .then(() => {
        here.note(() => `call ${number} ends: ${endOf({ ...call, settledAt: 0 })}`)
        oracle.settled(call, clock.now)
      })
  })
}

async function handle(
  here: World,
  operations: readonly Operation[],
  handles: Handles,
  attempt: Attempt,
): Promise<void> {
  const aside: Promise<unknown>[] = []
  for (const operation of operations) {
    const done = carryOut(here, operation, handles, attempt)
    if (operation.aside) {
      aside.push(done)
      done.catch(() => {})
    } else await done.finally(() => Promise.allSettled(aside))
  }
  await Promise.all(aside)
}

async function carryOut(
  here: World,
  { database, does }: Operation,
  handles: Handles,
  attempt: Attempt,
): Promise<void> {
  const name = nameOf(database)
  const run = async (text: string, ...values: unknown[]) => {
    await handles[name]?.executeQuery(CompiledQuery.raw(text, values))
  }
  switch (does) {
    case 'insert':
    case 'call': {
      here.effects += 1
      const effect = here.effects
      await run(
        does === 'insert' ? 'insert into effect (id) values ($1::int)' : 'select add_effect($1::int)',
        effect,
      )
      attempt.effects.set(String(effect), here.databases[database] as SimulatedDatabase)
      return
    }
    case 'update':
      return await run('update account set n = n + 1 where id = $1::int', 1 + (here.effects % 2))
    case 'miss':
      return await run('update account set n = n + 1 where id = $1::int', 0)
    case 'read':
      return await run('select count(*)::int as n from effect')
    case 'defer':
      return await run('insert into deferred_child (id) values (0)')
    case 'skew':
      return await run("select 'write skew'")
    case 'temp':
      return await run('create temp table scratch ()')
    case 'fail':
      return await run('select 1/0')
    case 'swallow':
      return await run('select 1/0').catch(() => {})
    case 'throw':
      throw new HandlerGaveUp('the handler gave up')
  }
}

function startRunning(here: World, process: Running): void {
  process.recovery = startRecovery(process.databases, { interval: 250 })
  // Not for as long as calls may wait: a thousand sweeps would tell no more.
  here.scheduler.after(800, process, () => track(here, process.recovery?.stop()))
}

function recoverOnce(
  here: World,
  process: Running,
  { keep, forgets, audits }: Pick<RecovererPlan, 'keep' | 'forgets' | 'audits'>,
): void {
  here.scheduler.after(0, process, () => {
    track(
      here,
      sweep(process.databases, { keep, forget: forgets }).then(async () => {
        if (audits) await audit(process.databases)
      }),
    )
  })
}

function track(here: World, promise: Promise<unknown> | undefined): void {
  if (promise === undefined) return
  const process = here.scheduler.current as Process
  const tracked: Promise<unknown> = promise
    .catch((error: unknown) => {
      here.oracle.violate(
        'recovery does not throw',
        `${process.name}: ${error instanceof Error ? error.stack : String(error)}`,
      )
    })
    .then(() => here.open.delete(tracked))
  Object.assign(tracked, { process })
  here.open.add(tracked)
}

// ---------------------------------------------------------------------------------------------------
// Coming to rest

/** The faults are over: servers are up, messages arrive, and the dead are known to be dead. */
function heal(here: World): void {
  here.note(() => 'the faults are over')
  here.calm = true
  for (const server of here.servers) if (!server.up) startServer(here, server)
  for (const backend of [...here.lost, ...here.left]) hangUp(backend, true)
  // What is held up for longer is given up by TCP.
  for (const process of here.processes) {
    for (const wire of process.wires) {
      const latest = Math.max(wire.up.due, wire.down.due)
      if (latest > here.scheduler.now + 1_000) cutWire(here, wire, 0.1, 0.1)
    }
  }
}

/** Whether a promise that is tracked belongs to a process that lives. */
function isAlive(promise: Promise<unknown>): boolean {
  return (promise as unknown as { process: Process }).process.alive
}

function rest(here: World): void {
  const { scheduler: clock, oracle } = here
  const busy = () =>
    [...here.open].some(isAlive) ||
    here.processes.some(
      ({ alive, context, recovery }) =>
        alive && (context.background.size > 0 || recovery === undefined) && context.background.size > 0,
    )
  for (const process of here.processes) {
    if (process.alive && process.recovery)
      clock.after(0, process, () => track(here, process.recovery?.stop()))
  }
  clock.runUntil(() => false, clock.now + 1)
  if (!clock.runUntil(() => !busy(), clock.now + 3_600_000))
    oracle.violate('everything settles', 'a recovery or a finish in the background goes on for ever')
  // Who is dead is known to be dead now; what was given up is closed.
  for (const process of here.processes) {
    if (!process.alive) for (const { backend } of process.wires) hangUp(backend, true)
  }
  // What was held up comes late, and what waits for it after that; a statement may wait for a branch in doubt, which
  // is not finished yet, until the longest `lockTimeout`.
  const latest = here.processes.flatMap(({ pausedUntil, wires }) => [
    pausedUntil,
    ...[...wires].flatMap(({ up, down }) => [up.due, down.due]),
  ])
  clock.runUntil(() => false, Math.max(clock.now, ...latest) + 12_000)
  for (const process of here.processes) {
    if (!process.alive) continue
    for (const database of process.databases) {
      let free = 0
      while (database.permits.tryTake()) free += 1
      const { maxConnections = 2 } = here.plan.processes[process.number - 1] ?? {}
      if (free !== maxConnections)
        oracle.violate(
          'permits come back',
          `${process.name} has ${free} of ${maxConnections} for ${database.name}`,
        )
    }
    for (const { taken } of process.pools)
      if (taken() > 0)
        oracle.violate('connections come back', `${process.name} has ${taken()} connections left`)
  }
}

function recoverAll(here: World): void {
  const { scheduler: clock, oracle } = here
  const last = addProcess(here, 'the last recoverer', superuser, [], 2)
  const run = <T>(what: string, task: () => Promise<T>): T | undefined => {
    let result: T | undefined
    let done = false
    clock.after(0, last, () => {
      task().then(
        (value) => {
          result = value
          done = true
        },
        (error: unknown) => {
          done = true
          oracle.violate(
            'recovery does not throw',
            `${what}: ${error instanceof Error ? error.stack : String(error)}`,
          )
        },
      )
    })
    if (!clock.runUntil(() => done, clock.now + 600_000))
      oracle.violate('everything settles', `${what} does not end`)
    return result
  }
  const isOurs = (gid: string) => decodeGid(gid) !== undefined
  const orphans = () => here.servers.flatMap(({ prepared }) => [...prepared.keys()].filter(isOurs))
  for (let turn = 0; turn < 20 && orphans().length > 0; turn += 1) {
    const report = run('sweep', () => sweep(last.databases, { forget: false }))
    if (report === undefined) break
    if (report.unreachable.length > 0 || report.unfinished.length > 0)
      oracle.violate('recovery reaches everything', JSON.stringify(report))
    clock.runUntil(() => false, clock.now + 500)
  }
  for (const gid of orphans()) oracle.violate('no orphan remains', gid)

  for (const { error, attempts } of oracle.calls) {
    if (!(error instanceof OutcomeUnknownError) || error.id === null) continue
    const attempt = attempts.at(-1)
    const global = parseId(error.id)
    const home = last.databases[here.databases.findIndex(({ identity }) => identity === global.home)]
    if (home === undefined || attempt === undefined) continue
    const outcome = run('outcome', async () => {
      await home.identify()
      return await readOutcome(home, global)
    })
    const there = [...attempt.effects].filter(([effect, { tables }]) => tables.effect.has(effect)).length
    if (attempt.id !== global.transactionId) oracle.violate('the id is that of the transaction', error.id)
    if (attempt.effects.size === 0 || isGrave(here.plan)) continue
    if (
      outcome === 'pending' ||
      (outcome === 'committed' && there === 0) ||
      (outcome === 'aborted' && there > 0)
    )
      oracle.violate(
        'the outcome can be asked for',
        `${error.id} is ${outcome}, and ${there} effects are there`,
      )
  }

  // No server fails any more, so nothing that is seen now can be lost: it may be forgotten at once.
  const rows = () =>
    here.databases.flatMap(({ tables }) => [...tables.global.keys(), ...tables.evidence.keys()])
  const hasForced = here.databases.some(({ tables }) => tables.forced.size > 0)
  if (rows().length > 0 || hasForced) run('sweep', () => sweep(last.databases, { keep: 0, audit: true }))
  // What was lost, or forced against the decision, stands there for people to see.
  const lost = new Set(
    here.databases.flatMap(({ tables: { heuristic, forced } }) => [
      ...[...heuristic.values()].map(({ id }) => id),
      ...[...forced.values()].filter(({ decision, done }) => decision !== done).map(({ id }) => id),
    ]),
  )
  for (const id of rows()) if (!lost.has(id)) oracle.violate('everything is forgotten in the end', id)
  oracle.checkEffects()
  oracle.checkLosses()
}
