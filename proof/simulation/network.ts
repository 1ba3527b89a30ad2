/**
 * Connections. Each statement and each answer is a message of its own on the wire: it can be late, be lost with
 * the connection, or arrive after its sender has died. Behind a pooler each transaction may get another backend.
 */

import { type Random, random } from '../rig/random.ts'
import { pointsOf } from './points.ts'
import {
  type Backend,
  cancel,
  hangUp,
  lives,
  openBackend,
  type Request,
  receive,
} from './postgres/backend.ts'
import { type Answer, PgError, type Server, type SimulatedDatabase } from './postgres/server.ts'
import type { Refusal } from './postgres/session.ts'
import type { Statement } from './postgres/statements.ts'
import type { Process, Scheduler } from './scheduler.ts'

/** A coordinator, a recoverer. */
export interface ClientProcess extends Process {
  readonly number: number
  readonly login: string
  readonly wires: Set<Wire>
  wiresMade: number
  /** Databases whose address leads to another by now. */
  readonly redirected: Map<SimulatedDatabase, SimulatedDatabase>
}

export interface Wire {
  readonly process: ClientProcess
  /** The last that it had, behind a pooler. */
  backend: Backend
  readonly pooler: Pooler | undefined
  /** What the server said at the beginning; a pooler makes up its own. */
  readonly pid: number
  readonly random: Random
  /** Sent and not answered, in order. */
  readonly pending: Pending[]
  /** Nothing comes through any more, in either direction. */
  cut: boolean
  /** The client knows that it is closed. */
  closed: boolean
  /** The pooler knows. */
  gone: boolean
  readonly up: Direction
  readonly down: Direction
  onclose: ((error: Error) => void) | undefined
}

/** In transaction mode: a client has a backend for as long as a transaction. */
export interface Pooler {
  readonly free: Backend[]
  /** Who has which. */
  readonly owners: Map<Backend, Wire>
  /** What has arrived at the pooler and not gone on, by client. */
  readonly waiting: Map<Wire, Request[]>
}

export function newPooler(): Pooler {
  return { free: [], owners: new Map(), waiting: new Map() }
}

/** To the server, or to the client. No message overtakes another. */
interface Direction {
  /** Who gets the messages; nobody's process in a server. */
  readonly receiver: Process | undefined
  /** What each message does when it arrives. */
  readonly messages: (() => void)[]
  /** When the last of them does. */
  due: number
  /** Until when the message in front is held up, and all behind it. */
  heldUntil: number
  /** What is scheduled for each message: the one in front arrives. */
  readonly arrive: () => void
}

interface Pending {
  readonly resolve: (answer: Answer) => void
  readonly reject: (error: unknown) => void
}

/** What the network needs of the world around it. */
export interface Network {
  readonly scheduler: Scheduler
  readonly seed: number
  /** The faults are over: every message takes the same time. */
  calm: boolean
  /** Of most messages. */
  readonly delay: readonly [number, number]
  readonly backends: Map<number, Backend>
  /** Whose client is gone, or cut off: the faults over, the server learns it. */
  readonly lost: Set<Wire>
  /** Whose client has hung up behind what may still be on its way. */
  readonly left: Set<Wire>
  pids: number
  /**
   * A point is passed. Faults strike here.
   *
   * @returns milliseconds that the message is held up
   */
  reach(point: number, process: ClientProcess, wire: Wire, request: Request | undefined): number
  /** Gets every event as a line, if somebody looks. */
  readonly note: ((text: () => string) => void) | undefined
  /** The simulation itself is at fault; the schedule says nothing. */
  broken: unknown
}

interface ConnectionError extends Error {
  readonly code: string
}

export function lossOf(code: string, message: string): ConnectionError {
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = 0
  const error = Object.assign(new Error(message), { code })
  Error.stackTraceLimit = limit
  return error
}

function delayOn(network: Network, dice: Random): number {
  if (network.calm) return 0.1
  const [least, most] = network.delay
  return dice.chance(0.03) ? dice.between(most, most * 50) : dice.between(least, most)
}

/** Opens a connection. A server that is down refuses. */
export function connect(
  network: Network,
  process: ClientProcess,
  address: SimulatedDatabase,
  pooler?: Pooler,
): Promise<Wire> {
  const { scheduler } = network
  process.wiresMade += 1
  const dice = random(network.seed, process.number * 1000 + process.wiresMade)
  return new Promise((resolve, reject) => {
    if (!process.alive) return
    const database = process.redirected.get(address) ?? address
    scheduler.after(delayOn(network, dice), undefined, () => {
      if (!database.server.up) {
        scheduler.after(delayOn(network, dice), process, () =>
          reject(lossOf('ECONNREFUSED', 'connection refused')),
        )
        return
      }
      const backend = bear(network, process, database, pooler !== undefined, (error) => {
        if (pooler) forget(network, pooler, backend, error)
        else tellEnd(network, wire, error)
      })
      const wire: Wire = {
        process,
        backend,
        pooler,
        // A pooler makes up its own.
        pid: pooler ? -backend.pid : backend.pid,
        random: dice,
        pending: [],
        cut: false,
        closed: false,
        gone: false,
        up: directionTo(undefined, scheduler),
        down: directionTo(process, scheduler),
        onclose: undefined,
      }
      pooler?.free.push(backend)
      if (!process.alive) return hangUpWire(wire, true)
      process.wires.add(wire)
      scheduler.after(delayOn(network, dice), process, () => {
        if (wire.closed) reject(lossOf('CONNECTION_CLOSED', 'the connection was closed'))
        else resolve(wire)
      })
    })
  })
}

function bear(
  network: Network,
  { login }: ClientProcess,
  database: SimulatedDatabase,
  isPooled: boolean,
  onclose: (error: PgError | undefined) => void,
): Backend {
  network.pids += 1
  const pid = network.pids
  const backend = openBackend(
    database,
    login,
    pid,
    (error) => {
      network.backends.delete(pid)
      onclose(error)
    },
    isPooled,
  )
  network.backends.set(pid, backend)
  return backend
}

// ---------------------------------------------------------------------------------------------------
// Poolers

/** A backend of a pooler has ended: with it whoever had it, whose messages go nowhere any more, and nobody else. */
function forget(network: Network, pooler: Pooler, backend: Backend, error: PgError | undefined): void {
  const at = pooler.free.indexOf(backend)
  if (at >= 0) pooler.free.splice(at, 1)
  const owner = pooler.owners.get(backend)
  pooler.owners.delete(backend)
  if (owner === undefined) return
  owner.gone = true
  pooler.waiting.delete(owner)
  tellEnd(network, owner, error)
}

function hasBackend(wire: Wire): boolean {
  return wire.pooler === undefined || wire.pooler.owners.get(wire.backend) === wire
}

/** A message has come as far as the server, or its pooler. */
function enter(network: Network, wire: Wire, request: Request): void {
  const { pooler } = wire
  if (pooler === undefined) {
    receive(wire.backend, request)
    return
  }
  if (wire.gone) return
  const waiting = pooler.waiting.get(wire) ?? []
  pooler.waiting.set(wire, waiting)
  waiting.push(request)
  if (waiting.length === 1) passOn(network, pooler, wire, request)
}

function passOn(network: Network, pooler: Pooler, wire: Wire, request: Request): void {
  if (!hasBackend(wire)) {
    const { free } = pooler
    const { database } = wire.backend
    const fit = free.filter(lives)
    const spare = fit.length > 0 && !wire.random.chance(0.2) ? wire.random.pick(fit) : undefined
    if (spare) free.splice(free.indexOf(spare), 1)
    const backend =
      spare ?? bear(network, wire.process, database, true, (error) => forget(network, pooler, backend, error))
    pooler.owners.set(backend, wire)
    wire.backend = backend
  }
  const { backend } = wire
  receive(backend, {
    ...request,
    done(result) {
      if (backend.transaction === undefined && pooler.owners.get(backend) === wire) {
        pooler.owners.delete(backend)
        pooler.free.push(backend)
      }
      request.done(result)
      const waiting = pooler.waiting.get(wire)
      waiting?.shift()
      const [next] = waiting ?? []
      if (next) passOn(network, pooler, wire, next)
    },
  })
}

/** The client is gone; a pooler ends the backend whose transaction it leaves behind. */
export function hangUpWire(wire: Wire, loseQueue: boolean): void {
  const { pooler } = wire
  if (pooler === undefined) {
    hangUp(wire.backend, loseQueue)
    return
  }
  wire.gone = true
  pooler.waiting.delete(wire)
  if (!hasBackend(wire)) return
  pooler.owners.delete(wire.backend)
  hangUp(wire.backend, true)
}

function directionTo(receiver: Process | undefined, scheduler: Scheduler): Direction {
  const direction: Direction = {
    receiver,
    messages: [],
    due: 0,
    heldUntil: 0,
    arrive() {
      if (scheduler.now < direction.heldUntil) scheduler.at(direction.heldUntil, receiver, direction.arrive)
      else direction.messages.shift()?.()
    },
  }
  return direction
}

/** Puts a message on the wire, behind those that are on their way. */
function post({ scheduler }: Network, direction: Direction, delay: number, message: () => void): void {
  direction.messages.push(message)
  direction.due = Math.max(direction.due, scheduler.now + delay)
  scheduler.at(direction.due, direction.receiver, direction.arrive)
}

/** Holds up the message that is arriving, and with it those behind it. */
function hold({ scheduler }: Network, direction: Direction, milliseconds: number, goOn: () => void): void {
  direction.heldUntil = scheduler.now + milliseconds
  direction.due = Math.max(direction.due, direction.heldUntil)
  scheduler.at(direction.heldUntil, direction.receiver, goOn)
}

/** Sends a statement; the promise settles with its answer, or with the loss of the connection. */
export function send(network: Network, wire: Wire, statement: Statement, refusal?: Refusal): Promise<Answer> {
  const { process } = wire
  return new Promise((resolve, reject) => {
    if (wire.closed) return reject(lossOf('CONNECTION_CLOSED', 'the connection is closed'))
    const at = pointsOf(statement.kind)
    const pending = { resolve, reject }
    wire.pending.push(pending)
    const request: Request = {
      statement,
      refusal,
      flushed: () => void network.reach(at.flushed, process, wire, request),
      done(result) {
        network.note?.(
          () => `${wire.backend.database.name} (${wire.backend.pid}) did ${statement.kind}: ${told(result)}`,
        )
        const held = network.reach(at.done, process, wire, request)
        if (wire.cut) return
        post(network, wire.down, held + delayOn(network, wire.random), () => {
          if (wire.cut || wire.closed) return
          const late = network.reach(at.answer, process, wire, request)
          if (wire.cut || wire.closed || !process.alive) return
          const settle = () => {
            if (wire.closed) return
            const place = wire.pending.indexOf(pending)
            if (place < 0) return
            wire.pending.splice(place, 1)
            network.note?.(() => `${process.name} hears ${told(result)}`)
            if (result instanceof PgError) reject(result)
            else resolve(result)
          }
          if (late === 0) settle()
          else hold(network, wire.down, late, settle)
        })
      },
    }
    network.note?.(
      () =>
        `${process.name} sends to ${wire.backend.database.name} (${wire.backend.pid}): ${statement.told.replace(/\s+/g, ' ')} ${statement.values.length > 0 ? JSON.stringify(statement.values) : ''}`,
    )
    const held = network.reach(at.send, process, wire, request)
    if (!process.alive || wire.cut) return
    post(network, wire.up, held + delayOn(network, wire.random), () => {
      if (wire.cut) return
      const late = network.reach(at.arrive, process, wire, request)
      if (wire.cut) return
      if (late === 0) return enter(network, wire, request)
      hold(network, wire.up, late, () => {
        if (!wire.cut) enter(network, wire, request)
      })
    })
  })
}

function told(result: Answer | PgError): string {
  if (result instanceof PgError) return `${result.severity} ${result.code} ${result.message}`
  return `${result.command}${result.rows.length > 0 ? ` ${JSON.stringify(result.rows)}` : ''}`
}

/** The server has closed a connection, after a last word perhaps. */
function tellEnd(network: Network, wire: Wire, error: PgError | undefined): void {
  if (wire.cut || wire.closed) return
  post(network, wire.down, delayOn(network, wire.random), () => close(network, wire, error))
}

/** The client learns that its connection is gone. */
function close(network: Network, wire: Wire, last?: PgError): void {
  if (wire.closed) return
  wire.closed = true
  wire.cut = true
  wire.process.wires.delete(wire)
  if (!wire.process.alive) return
  network.note?.(() => `${wire.process.name} loses its connection to ${wire.backend.database.name}`)
  const pending = wire.pending.splice(0)
  const loss = lossOf('CONNECTION_CLOSED', 'the connection was closed')
  for (const [index, { reject }] of pending.entries()) reject(index === 0 && last ? last : loss)
  wire.onclose?.(last ?? loss)
}

/** The connection breaks. Each end notices in its own time. */
export function cutWire(network: Network, wire: Wire, clientNotices: number, serverNotices: number): void {
  if (wire.cut) return
  wire.cut = true
  network.lost.add(wire)
  const { scheduler } = network
  wire.down.due = Math.max(wire.down.due, scheduler.now + clientNotices)
  scheduler.after(clientNotices, wire.process, () => close(network, wire))
  scheduler.after(serverNotices, undefined, () => hangUpWire(wire, true))
}

/** The client closes the connection; what is under way still arrives. */
export function closeWire(network: Network, wire: Wire): void {
  if (wire.closed) return
  wire.closed = true
  wire.process.wires.delete(wire)
  network.left.add(wire)
  const loss = lossOf('CONNECTION_CLOSED', 'the connection was closed')
  for (const { reject } of wire.pending.splice(0)) reject(loss)
  post(network, wire.up, delayOn(network, wire.random), () => hangUpWire(wire, false))
  wire.onclose?.(loss)
}

/** Asks a server over another connection to cancel what it runs for this one. */
export function cancelFrom(network: Network, wire: Wire): void {
  const { process } = wire
  if (!process.alive) return
  network.scheduler.after(delayOn(network, wire.random) * 3, undefined, () => {
    if (hasBackend(wire)) cancel(wire.backend)
  })
}

/** A process dies: its promises go no further, and its connections end one way or another. */
export function killProcess(network: Network, process: ClientProcess): void {
  if (!process.alive) return
  process.alive = false
  for (const wire of process.wires) {
    const { random: dice } = wire
    // What is under way arrives, or some of it, or the whole machine is gone and nobody says goodbye.
    if (dice.chance(0.3)) wire.cut = true
    if (dice.chance(0.05)) continue
    const noticed = Math.max(wire.up.due - network.scheduler.now, 0) + dice.between(0.1, 3000)
    const lose = dice.chance(0.5)
    network.scheduler.after(noticed, undefined, () => hangUpWire(wire, lose))
  }
}

/** A server is down: its connections break, some of them silently until somebody says something. */
export function dropConnections(network: Network, server: Server, processes: Iterable<ClientProcess>): void {
  for (const [pid, backend] of network.backends) {
    if (backend.database.server === server) network.backends.delete(pid)
  }
  for (const process of processes) {
    for (const wire of process.wires) {
      if (wire.backend.database.server === server) cutWire(network, wire, wire.random.between(0.1, 500), 0)
    }
  }
}
