/**
 * A TCP proxy before a Postgres server. It understands what passes through it, and loses, holds back or cuts off at any
 * message; and what it passes on may take its time.
 */
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import { cancelRequest, conversation, type Direction, type Message } from './protocol.ts'
import { type Injected, type InjectedRule, injectedRule, type Rule } from './rules.ts'

export interface ProxyOptions {
  /** The server: a database's URL, or a place that may move. */
  readonly target: string | Place
  /** @defaultValue any that is free */
  readonly port?: number
  /** Called with each message, before any rule. Connections are numbered from 1. */
  readonly observe?: (message: Message, connection: number) => void
  /** For rules with a probability: at least 0, less than 1. @defaultValue Math.random */
  readonly random?: () => number
  /** Passes on each piece in its own time, those of one side in their order. @defaultValue at once */
  readonly carry?: (piece: Piece) => void
  /** Nothing that passes is looked at: cheaper, and no rule matches. @defaultValue false */
  readonly blind?: boolean
}

/** What has arrived from one side at once. */
export interface Piece {
  readonly direction: Direction
  /** Those that are complete with it; none where the side has hung up. */
  readonly messages: readonly Message[]
  pass(): void
}

interface Place {
  readonly host: string
  readonly port: number
}

export interface Proxy extends AsyncDisposable {
  readonly port: number
  /** A database's URL, through the proxy. @defaultValue that of the target */
  url(u?: string): string
  inject(rule: Rule): InjectedRule
  /** From now on nothing that a side says passes, on any connection, until {@link Proxy.cutAll}. */
  drop(direction: Direction): void
  /** Hangs up on everybody; new connections work as at first. */
  cutAll(): void
  /** Hangs up on everybody, and on whoever comes until {@link Proxy.accept}. */
  refuse(): void
  accept(): void
  close(): Promise<void>
}

export async function startProxy(options: ProxyOptions): Promise<Proxy> {
  const { target, random = Math.random } = options
  const place = typeof target === 'string' ? placeOf(target) : target
  const network: Network = {
    ...options,
    place,
    connections: new Set(),
    rules: new Set(),
    dropped: new Set(),
    partitions: { client: 0, server: 0 },
    timers: new Map(),
    opened: 0,
  }
  let accepting = true
  const server = createServer((client) => void (accepting ? connect(client, network) : client.destroy()))
  server.listen(options.port ?? 0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo

  const cutAll = () => {
    network.dropped.clear()
    for (const connection of network.connections) connection.cut()
  }
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= new Promise((resolve) => {
      network.rules.clear()
      for (const [timer, run] of network.timers) {
        clearTimeout(timer)
        run()
      }
      cutAll()
      server.close(() => resolve())
    })
    return closing
  }
  return {
    port,
    url(u = String(target)) {
      const url = new URL(u)
      url.hostname = '127.0.0.1'
      url.port = String(port)
      return url.href
    },
    inject(rule) {
      const injected = injectedRule(rule, random, () => network.rules.delete(injected))
      network.rules.add(injected)
      return injected
    },
    drop: (direction) => void network.dropped.add(direction),
    cutAll,
    refuse() {
      accepting = false
      cutAll()
    },
    accept() {
      accepting = true
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

function placeOf(url: string): Place {
  const { hostname, port } = new URL(url)
  return { host: hostname, port: Number(port) }
}

// ---------------------------------------------------------------------------------------------------
// Connections

/** What all connections of a proxy share. */
interface Network extends Pick<ProxyOptions, 'observe' | 'carry' | 'blind'> {
  readonly place: Place
  readonly connections: Set<Connection>
  readonly rules: Set<Injected>
  readonly dropped: Set<Direction>
  /** How many partitions hold each direction. */
  readonly partitions: Record<Direction, number>
  readonly timers: Map<NodeJS.Timeout, () => void>
  opened: number
}

interface Connection {
  readonly lanes: Readonly<Record<Direction, Lane>>
  pid(): number | undefined
  cancel(): Promise<void>
  closed(): boolean
  cut(): void
}

/** One direction of one connection. */
interface Lane {
  readonly direction: Direction
  readonly from: Socket
  readonly to: Socket
  /** What has arrived and was not dealt with: it waits while something holds the lane. */
  readonly waiting: (Message | 'end')[]
  holds: number
  dropping: boolean
}

function connect(client: Socket, network: Network): void {
  const upstream = dial(network.place.port, network.place.host)
  const talk = conversation({ blind: network.blind ?? false })
  const lane = (direction: Direction, from: Socket, to: Socket): Lane => {
    return { direction, from, to, waiting: [], holds: network.partitions[direction], dropping: false }
  }
  const connection: Connection = {
    lanes: { client: lane('client', client, upstream), server: lane('server', upstream, client) },
    pid: () => talk.backend?.pid,
    cancel: () => (talk.backend ? sendCancel(network.place, cancelRequest(talk.backend)) : Promise.resolve()),
    closed: () => client.destroyed && upstream.destroyed,
    cut() {
      client.destroy()
      upstream.destroy()
    },
  }
  network.connections.add(connection)
  network.opened += 1
  const number = network.opened
  const { carry = ({ pass }) => pass() } = network
  for (const one of Object.values(connection.lanes)) {
    const { direction, from } = one
    const take = (...arrived: Lane['waiting']) => {
      one.waiting.push(...arrived)
      pump(one, connection, network)
    }
    from.setNoDelay(true)
    // A side that fails has ended; what it said before still counts.
    from.on('error', () => {})
    from.on('data', (chunk: Buffer) => {
      const messages = talk.read(direction, chunk)
      for (const message of messages) network.observe?.(message, number)
      carry({ direction, messages, pass: () => take(...messages) })
    })
    from.on('close', () => {
      const pass = () => {
        take('end')
        if (connection.closed()) network.connections.delete(connection)
      }
      carry({ direction, messages: [], pass })
    })
  }
}

/** Deals with what has arrived, in its order, as far as nothing holds it up. */
function pump(lane: Lane, connection: Connection, network: Network): void {
  const passing: Buffer[] = []
  while (lane.holds === 0) {
    const message = lane.waiting.shift()
    if (message === undefined) break
    if (network.dropped.has(lane.direction)) lane.dropping = true
    if (lane.dropping) continue
    if (message === 'end') {
      pass(passing, lane)
      lane.to.end()
      break
    }
    // Every rule counts what matches it; the first whose turn it is acts.
    const injected = [...network.rules].filter((one) => one.isDue(message))[0]
    injected?.hit(message, connection)
    if (injected === undefined) passing.push(message.bytes)
    else act({ injected, message, passing, lane, connection, network })
  }
  pass(passing, lane)
}

/** Writes what may pass, and holds up the other side when it takes no more. */
function pass(passing: Buffer[], { from, to }: Lane): void {
  const bytes = passing.splice(0)
  if (bytes.length === 0 || to.destroyed || to.writableEnded) return
  if (to.write(bytes.length === 1 ? (bytes[0] as Buffer) : Buffer.concat(bytes))) return
  from.pause()
  to.once('drain', () => from.resume())
}

// ---------------------------------------------------------------------------------------------------
// What rules do

interface Moment {
  readonly injected: Injected
  readonly message: Message
  /** What has gone before and is not written yet. */
  readonly passing: Buffer[]
  readonly lane: Lane
  readonly connection: Connection
  readonly network: Network
}

function act(moment: Moment): void {
  const { injected, message, passing, lane, connection, network } = moment
  const { action, milliseconds = 1_000 } = injected.rule
  const hold = (held: Held, ended?: () => Held) => holdUp(moment, held, milliseconds, ended)
  switch (action) {
    case 'kill':
      passing.push(message.bytes)
      cutNow(moment)
      break
    case 'cut-before':
      cutNow(moment)
      break
    case 'drop':
      lane.dropping = true
      injected.begin(after(milliseconds, network, connection.cut))
      break
    case 'delay':
      hold([[lane, connection]])
      break
    case 'stall':
      hold(Object.values(connection.lanes).map((one) => [one, connection]))
      break
    case 'partition-in':
    case 'partition-out': {
      const direction = action === 'partition-in' ? 'client' : 'server'
      const ends = () => [...network.connections].map((one) => [one.lanes[direction], one] as const)
      network.partitions[direction] += 1
      hold(ends(), () => {
        network.partitions[direction] -= 1
        return ends()
      })
      break
    }
    case 'cancel':
      passing.push(message.bytes)
      pass(passing, lane)
      injected.begin(connection.cancel())
  }
}

/** Nothing passes any more, and both sides are cut off once what was written has left this process. */
function cutNow({ injected, passing, lane, connection }: Moment): void {
  pass(passing, lane)
  lane.holds += 1
  injected.begin(
    new Promise<void>((resolve) => {
      const cut = () => {
        connection.cut()
        resolve()
      }
      if (lane.to.destroyed) cut()
      else lane.to.write('', cut)
    }),
  )
}

type Held = readonly (readonly [Lane, Connection])[]

/**
 * Holds lanes for a while. The message itself passes when its lane is let go, without being asked about again.
 *
 * @param ended says which lanes are let go, where others have come meanwhile
 */
function holdUp(
  { injected, message, passing, lane, network }: Moment,
  held: Held,
  milliseconds: number,
  ended: () => Held = () => held,
): void {
  const isHeld = held.some(([one]) => one === lane)
  for (const [one] of held) one.holds += 1
  if (!isHeld) passing.push(message.bytes)
  injected.begin(
    after(milliseconds, network, () => {
      const free = ended()
      if (isHeld && !lane.to.destroyed) lane.to.write(message.bytes)
      for (const [one, connection] of free) {
        one.holds -= 1
        pump(one, connection, network)
      }
    }),
  )
}

function after(milliseconds: number, { timers }: Network, task: () => void): Promise<void> {
  return new Promise((resolve) => {
    const run = () => {
      timers.delete(timer)
      task()
      resolve()
    }
    const timer = setTimeout(run, milliseconds)
    timers.set(timer, run)
  })
}

/** Ends when the server has passed the request on: it then hangs up. */
function sendCancel({ host, port }: Place, request: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket = dial(port, host, () => socket.end(request))
    socket.resume()
    socket.on('error', () => {})
    socket.on('close', () => resolve())
  })
}
