/**
 * The world that a plan describes: servers and databases, processes over them, and the network in between, where
 * faults strike.
 */

import type { Context } from '../../src/commit/coordinator.ts'
import { Database } from '../../src/connection/database.ts'
import type { RunningRecovery } from '../../src/recovery/recovery.ts'
import { type Random, random } from '../rig/random.ts'
import { type DriverPlan, openSimulated, type SimulatedPool } from './drivers.ts'
import type { ClientProcess, Network, Wire } from './network.ts'
import { createOracle, type Oracle } from './oracle.ts'
import { type Action, type Fault, nameOf, type Plan } from './plan.ts'
import { pointOf } from './points.ts'
import type { Request } from './postgres/backend.ts'
import {
  addDatabase,
  createServer,
  type Observer,
  type Server,
  type SimulatedDatabase,
} from './postgres/server.ts'
import { type Process, scheduler } from './scheduler.ts'

export interface Running extends ClientProcess {
  readonly databases: readonly Database[]
  readonly pools: SimulatedPool[]
  readonly context: Context
  readonly random: Random
  recovery: RunningRecovery | undefined
  /** It is a backend of this server's, and ends with it. */
  host: Server | undefined
}

export interface World extends Network {
  readonly plan: Plan
  readonly servers: Server[]
  readonly databases: SimulatedDatabase[]
  readonly processes: Running[]
  readonly oracle: Oracle
  readonly struck: Struck[]
  readonly random: Random
  /** Whose recoveries have not settled, and must in the end. */
  readonly open: Set<{ readonly process: Process }>
  effects: number
  hash: number
}

/** A fault that has struck, and where. */
export interface Struck {
  readonly action: Action
  readonly point: number
}

/** @returns milliseconds that the message at hand is held up */
export type Strike = (
  here: World,
  fault: Fault,
  point: number,
  process: Running,
  wire: Wire,
  request: Request | undefined,
) => number

/**
 * @param reached counts the points that are passed
 * @param trace gets every event as a line
 */
export function createWorld(
  plan: Plan,
  reached: Uint32Array | undefined,
  trace: ((line: string) => void) | undefined,
  strike: Strike,
): World {
  const clock = scheduler()
  const databases: SimulatedDatabase[] = []
  const lost = new Set<Wire>()
  const oracle = createOracle(
    databases,
    lost,
    plan.faults.every(({ action }) => action === 'fence'),
  )
  const dice = random(plan.seed, 1)
  const servers = plan.servers.map((settings, number) =>
    createServer(
      number,
      { ...settings, page: 2 },
      oracle as Observer,
      random(plan.seed, 2 + number),
      () => clock.now,
      (milliseconds, task) => void clock.after(milliseconds, undefined, task),
    ),
  )
  plan.databases.forEach((server, number) => {
    const databaseId = `00000000-0000-4000-8000-00000000000${number + 1}`
    databases.push(addDatabase(servers[server] as Server, nameOf(number), databaseId))
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
    note: trace && ((text) => trace(`${clock.now.toFixed(3).padStart(12)}  ${text()}`)),
  }
  for (const { drivers, maxConnections } of plan.processes)
    addProcess(created, `coordinator ${created.processes.length + 1}`, 'app', drivers, maxConnections)
  return created
}

export function addProcess(
  here: World,
  name: string,
  login: string,
  drivers: readonly DriverPlan[],
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
    redirected: new Map(),
    databases,
    pools,
    random: random(here.plan.seed, 100 + number),
    recovery: undefined,
    host: undefined,
    context: {
      databases: new Map(),
      background: new Set(),
      poke: () => process.recovery?.poke(),
    },
  }
  const byName = process.context.databases as Map<string, Database>
  const fault = (what: string) => here.oracle.violate('drivers are asked what they can do', what)
  here.databases.forEach((database, order) => {
    const place = { network: here, process, database, pools }
    const open = openSimulated(place, drivers[order] ?? 'own', maxConnections, fault)
    const one = new Database(database.name, open, { maxConnections, connectTimeout: 5_000 })
    databases.push(one)
    byName.set(database.name, one)
  })
  here.processes.push(process)
  return process
}
