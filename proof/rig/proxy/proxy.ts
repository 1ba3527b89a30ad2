/**
 * A TCP proxy before a Postgres server that understands what passes through it, and loses, holds back or cuts off
 * at any message.
 */
import { type AddressInfo, createServer, connect as dial, type Socket } from 'node:net'
import { cancelRequest, conversation, type Direction, type Message, type MessageName } from './protocol.ts'

export interface When {
  /** Who says it. */
  readonly direction: Direction
  /** @defaultValue any */
  readonly message?: MessageName
  /** Matches the statement it is about or answers, or the command tag. @defaultValue any */
  readonly text?: RegExp
  /** Only the so manieth that matches since the rule was given, of all connections; from 1. @defaultValue each */
  readonly nth?: number
}

/**
 * `kill`: both sides are cut off once it has passed. `cut-before`: before it passes. `drop`: it does not pass, nor
 * does what follows in its direction, and after `milliseconds` both sides are cut off. `delay`: it, and what
 * follows in its direction, waits. `stall`: the whole connection waits. `partition-in`: nothing reaches the
 * server, from anybody, for `milliseconds`; what was said arrives afterwards, as TCP has it. `partition-out`: the
 * same for what the server says. `cancel`: it passes, and the server is asked to cancel what this backend runs.
 */
export type Action =
  | 'kill'
  | 'cut-before'
  | 'drop'
  | 'delay'
  | 'stall'
  | 'partition-in'
  | 'partition-out'
  | 'cancel'

export interface Rule {
  readonly when: When
  readonly action: Action
  /** How long what takes time takes. @defaultValue 1000 */
  readonly milliseconds?: number
  /** Of acting on a message that matches. @defaultValue 1 */
  readonly probability?: number
}

/** Where a rule acted. */
export interface Hit {
  readonly name: MessageName
  readonly statement: string | undefined
  readonly tag: string | undefined
  /** The backend's process id, if it was told already. */
  readonly pid: number | undefined
  /** Whether both ends are gone. */
  readonly closed: boolean
}

export interface InjectedRule {
  /** How often it has acted. */
  readonly count: number
  readonly hits: readonly Hit[]
  /** Resolves when nothing that it began goes on any more. */
  over(): Promise<void>
  /** It acts no more; what it began goes on. */
  remove(): void
}

export interface ProxyOptions {
  readonly target: { readonly host: string; readonly port: number }
  /** @defaultValue any that is free */
  readonly port?: number
  /** Called with each message, before any rule. Connections are numbered from 1. */
  readonly observe?: (message: Message, connection: number) => void
  /** For rules with a probability: at least 0, less than 1. @defaultValue Math.random */
  readonly random?: () => number
}

export interface Proxy extends AsyncDisposable {
  readonly port: number
  /** A database's URL, through the proxy. */
  url(u: string): string
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

interface Connection {
  readonly number: number
  readonly lanes: Readonly<Record<Direction, Lane>>
  readonly pid: () => number | undefined
  readonly cancel: () => Promise<void>
  readonly closed: () => boolean
  cut(): void
}

interface Injected extends InjectedRule {
  readonly rule: Rule
  isDue(message: Message): boolean
  hit(message: Message, connection: Connection): void
  begin(work: Promise<unknown>): void
}

export async function startProxy(options: ProxyOptions): Promise<Proxy> {
  const { target, observe, random = Math.random } = options
  const connections = new Set<Connection>()
  const rules = new Set<Injected>()
  const dropped = new Set<Direction>()
  /** How many partitions hold each direction. */
  const partitions = { client: 0, server: 0 }
  const timers = new Map<NodeJS.Timeout, () => void>()
  let accepting = true
  let numbered = 0

  const after = (milliseconds: number, task: () => void): Promise<void> =>
    new Promise((resolve) => {
      const run = () => {
        timers.delete(timer)
        task()
        resolve()
      }
      const timer = setTimeout(run, milliseconds)
      timers.set(timer, run)
    })

  const hold = (lane: Lane) => {
    lane.holds += 1
  }
  const release = (lane: Lane, connection: Connection) => {
    lane.holds -= 1
    pump(lane, connection)
  }

  /** Deals with what has arrived, in its order, as far as nothing holds it up. */
  const pump = (lane: Lane, connection: Connection): void => {
    let passing: Buffer[] = []
    const flush = () => {
      if (passing.length === 0 || lane.to.destroyed) return
      const free = lane.to.write(passing.length === 1 ? (passing[0] as Buffer) : Buffer.concat(passing))
      passing = []
      if (free) return
      lane.from.pause()
      lane.to.once('drain', () => lane.from.resume())
    }
    while (lane.holds === 0) {
      const message = lane.waiting.shift()
      if (message === undefined) break
      if (dropped.has(lane.direction)) lane.dropping = true
      if (lane.dropping) continue
      if (message === 'end') {
        flush()
        lane.to.end()
        break
      }
      // Every rule counts what matches it; the first whose turn it is acts.
      const injected = [...rules].filter((one) => one.isDue(message))[0]
      injected?.hit(message, connection)
      if (injected === undefined) {
        passing.push(message.bytes)
        continue
      }
      const { action, milliseconds = 1_000 } = injected.rule
      // What was held back passes when it is let go, without being asked about again.
      const passLater = () => {
        if (!lane.to.destroyed) lane.to.write(message.bytes)
      }
      switch (action) {
        case 'kill':
          passing.push(message.bytes)
          flush()
          injected.begin(cutWhenSent(lane.to, connection))
          return
        case 'cut-before':
          flush()
          injected.begin(cutWhenSent(lane.to, connection))
          return
        case 'drop':
          lane.dropping = true
          injected.begin(after(milliseconds, connection.cut))
          break
        case 'delay':
          hold(lane)
          injected.begin(
            after(milliseconds, () => {
              passLater()
              release(lane, connection)
            }),
          )
          break
        case 'stall': {
          const both = Object.values(connection.lanes)
          both.forEach(hold)
          injected.begin(
            after(milliseconds, () => {
              passLater()
              for (const one of both) release(one, connection)
            }),
          )
          break
        }
        case 'partition-in':
        case 'partition-out': {
          const direction = action === 'partition-in' ? 'client' : 'server'
          partitions[direction] += 1
          for (const { lanes } of connections) hold(lanes[direction])
          const held = lane.direction === direction
          if (!held) passing.push(message.bytes)
          injected.begin(
            after(milliseconds, () => {
              partitions[direction] -= 1
              if (held) passLater()
              for (const one of connections) release(one.lanes[direction], one)
            }),
          )
          break
        }
        case 'cancel':
          passing.push(message.bytes)
          flush()
          injected.begin(connection.cancel())
          break
      }
    }
    flush()
  }

  const server = createServer((client) => {
    if (!accepting) return void client.destroy()
    const upstream = dial(target.port, target.host)
    const talk = conversation()
    const laneOf = (direction: Direction, from: Socket, to: Socket): Lane => ({
      direction,
      from,
      to,
      waiting: [],
      holds: partitions[direction],
      dropping: false,
    })
    numbered += 1
    const connection: Connection = {
      number: numbered,
      lanes: { client: laneOf('client', client, upstream), server: laneOf('server', upstream, client) },
      pid: () => talk.backend?.pid,
      cancel: () => (talk.backend ? sendCancel(target, cancelRequest(talk.backend)) : Promise.resolve()),
      closed: () => client.destroyed && upstream.destroyed,
      cut() {
        client.destroy()
        upstream.destroy()
      },
    }
    connections.add(connection)
    for (const lane of Object.values(connection.lanes)) {
      lane.from.setNoDelay(true)
      // A side that fails has ended; what it said before still counts.
      lane.from.on('error', () => {})
      lane.from.on('data', (chunk: Buffer) => {
        for (const message of talk.read(lane.direction, chunk)) {
          observe?.(message, connection.number)
          lane.waiting.push(message)
        }
        pump(lane, connection)
      })
      lane.from.on('close', () => {
        lane.waiting.push('end')
        pump(lane, connection)
        if (connection.closed()) connections.delete(connection)
      })
    }
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(options.port ?? 0, '127.0.0.1', resolve)
  })
  const { port } = server.address() as AddressInfo

  const cutAll = () => {
    dropped.clear()
    for (const connection of connections) connection.cut()
  }
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= new Promise((resolve) => {
      rules.clear()
      for (const [timer, run] of timers) {
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
    url(u) {
      const url = new URL(u)
      url.hostname = '127.0.0.1'
      url.port = String(port)
      return url.href
    },
    inject(rule) {
      const injected = injectedRule(rule, random, () => rules.delete(injected))
      rules.add(injected)
      return injected
    },
    drop: (direction) => void dropped.add(direction),
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

function injectedRule(rule: Rule, random: () => number, remove: () => void): Injected {
  const { direction, message: wanted, text, nth } = rule.when
  const hits: Hit[] = []
  const work = new Set<Promise<unknown>>()
  let matched = 0
  return {
    rule,
    hits,
    get count() {
      return hits.length
    },
    isDue({ name, statement, tag, ...message }) {
      if (message.direction !== direction || (wanted !== undefined && name !== wanted)) return false
      if (text !== undefined && !text.test(tag ?? '') && !text.test(statement ?? '')) return false
      matched += 1
      return (nth === undefined || matched === nth) && random() < (rule.probability ?? 1)
    },
    hit({ name, statement, tag }, connection) {
      hits.push({
        name,
        statement,
        tag,
        pid: connection.pid(),
        get closed() {
          return connection.closed()
        },
      })
    },
    begin(some) {
      work.add(some)
      some.finally(() => work.delete(some))
    },
    async over() {
      await Promise.all(work)
    },
    remove,
  }
}

/** Once what was written has left this process. */
function cutWhenSent(socket: Socket, connection: Connection): Promise<void> {
  return new Promise((resolve) => {
    const cut = () => {
      connection.cut()
      resolve()
    }
    if (socket.destroyed) cut()
    else socket.write('', cut)
  })
}

/** Ends when the server has passed the request on: it then hangs up. */
function sendCancel({ host, port }: ProxyOptions['target'], request: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket = dial(port, host, () => socket.end(request))
    socket.resume()
    socket.on('error', () => {})
    socket.on('close', () => resolve())
  })
}
