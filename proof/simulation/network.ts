/**
 * Connections. Each statement and each answer is a message of its own on the wire: it can be late, be lost with
 * the connection, or arrive after its sender has died.
 */

import { type Random, random } from '../rig/random.ts'
import { pointsOf } from './points.ts'
import { type Backend, hangUp, openBackend, type Request, receive, terminate } from './postgres/backend.ts'
import { type Answer, PgError, type Server, type SimulatedDatabase } from './postgres/server.ts'
import { type Statement, statementOf } from './postgres/statements.ts'
import type { Process, Scheduler } from './scheduler.ts'

/** A coordinator, a recoverer. */
export interface ClientProcess extends Process {
  readonly number: number
  readonly login: string
  readonly wires: Set<Wire>
  wiresMade: number
}

export interface Wire {
  readonly process: ClientProcess
  readonly backend: Backend
  readonly random: Random
  /** Sent and not answered, in order. */
  readonly pending: Pending[]
  /** Nothing comes through any more, in either direction. */
  cut: boolean
  /** The client knows that it is closed. */
  closed: boolean
  readonly up: Direction
  readonly down: Direction
  onclose: ((error: Error) => void) | undefined
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
  /** Whose client is gone, or cut off: the faults over, they learn it. */
  readonly lost: Set<Backend>
  /** Whose client has hung up behind what may still be on its way. */
  readonly left: Set<Backend>
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
  database: SimulatedDatabase,
): Promise<Wire> {
  const { scheduler } = network
  process.wiresMade += 1
  const dice = random(network.seed, process.number * 1000 + process.wiresMade)
  return new Promise((resolve, reject) => {
    if (!process.alive) return
    scheduler.after(delayOn(network, dice), undefined, () => {
      if (!database.server.up) {
        scheduler.after(delayOn(network, dice), process, () =>
          reject(lossOf('ECONNREFUSED', 'connection refused')),
        )
        return
      }
      network.pids += 1
      const pid = network.pids
      const backend = openBackend(database, process.login, pid, (error) => {
        network.backends.delete(pid)
        tellEnd(network, wire, error)
      })
      network.backends.set(pid, backend)
      const wire: Wire = {
        process,
        backend,
        random: dice,
        pending: [],
        cut: false,
        closed: false,
        up: directionTo(undefined, scheduler),
        down: directionTo(process, scheduler),
        onclose: undefined,
      }
      if (!process.alive) return hangUp(backend, true)
      process.wires.add(wire)
      scheduler.after(delayOn(network, dice), process, () => {
        if (wire.closed) reject(lossOf('CONNECTION_CLOSED', 'the connection was closed'))
        else resolve(wire)
      })
    })
  })
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
export function send(
  network: Network,
  wire: Wire,
  text: string,
  values: readonly unknown[],
): Promise<Answer> {
  const { process, backend } = wire
  return new Promise((resolve, reject) => {
    if (wire.closed) return reject(lossOf('CONNECTION_CLOSED', 'the connection is closed'))
    const statement = known(network, text)
    const at = pointsOf(statement.kind)
    const pending = { resolve, reject }
    wire.pending.push(pending)
    const request: Request = {
      statement,
      values,
      refusal: undefined,
      flushed: () => void network.reach(at.flushed, process, wire, request),
      done(result) {
        network.note?.(
          () => `${backend.database.name} (${backend.pid}) did ${text.slice(0, 60)}: ${told(result)}`,
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
        `${process.name} sends to ${backend.database.name} (${backend.pid}): ${text.replace(/\s+/g, ' ')} ${values.length > 0 ? JSON.stringify(values) : ''}`,
    )
    const held = network.reach(at.send, process, wire, request)
    if (!process.alive || wire.cut) return
    post(network, wire.up, held + delayOn(network, wire.random), () => {
      if (wire.cut) return
      const late = network.reach(at.arrive, process, wire, request)
      if (wire.cut) return
      if (late === 0) return receive(backend, request)
      hold(network, wire.up, late, () => {
        if (!wire.cut) receive(backend, request)
      })
    })
  })
}

function known(network: Network, text: string): Statement {
  try {
    return statementOf(text)
  } catch (error) {
    network.broken ??= error
    throw error
  }
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
  network.lost.add(wire.backend)
  const { scheduler } = network
  wire.down.due = Math.max(wire.down.due, scheduler.now + clientNotices)
  scheduler.after(clientNotices, wire.process, () => close(network, wire))
  scheduler.after(serverNotices, undefined, () => hangUp(wire.backend, true))
}

/** The client closes the connection; what is under way still arrives. */
export function closeWire(network: Network, wire: Wire): void {
  if (wire.closed) return
  wire.closed = true
  wire.process.wires.delete(wire)
  network.left.add(wire.backend)
  const loss = lossOf('CONNECTION_CLOSED', 'the connection was closed')
  for (const { reject } of wire.pending.splice(0)) reject(loss)
  post(network, wire.up, delayOn(network, wire.random), () => hangUp(wire.backend, false))
  wire.onclose?.(loss)
}

/** Asks a server over another connection to end a backend. */
export function terminateFrom(network: Network, wire: Wire, pid: number): void {
  const { process } = wire
  if (!process.alive) return
  network.scheduler.after(delayOn(network, wire.random) * 3, undefined, () => {
    const backend = network.backends.get(pid)
    if (backend) terminate(backend)
  })
}

/** A process dies: its promises go no further, and its connections end one way or another. */
export function killProcess(network: Network, process: ClientProcess): void {
  if (!process.alive) return
  process.alive = false
  for (const wire of process.wires) {
    const { random: dice, backend } = wire
    // What is under way arrives, or some of it, or the whole machine is gone and nobody says goodbye.
    if (dice.chance(0.3)) wire.cut = true
    if (dice.chance(0.05)) continue
    const noticed = Math.max(wire.up.due - network.scheduler.now, 0) + dice.between(0.1, 3000)
    const lose = dice.chance(0.5)
    network.scheduler.after(noticed, undefined, () => hangUp(backend, lose))
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
