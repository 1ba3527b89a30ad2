/**
 * Proxies between a client and its servers that count how often the client has to wait. While they count, what is
 * said, in either direction and on any connection, arrives when nobody has said anything for a while: so all that is
 * sent without waiting for an answer arrives together, and is one round trip.
 */
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial, type Server, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { conversation } from '../proof/chaos/proxy/protocol.ts'

export interface Count {
  /** How often the client had to wait, one time after the other, whichever of the servers for. */
  readonly trips: number
  /** How many statements it sent to all of them. Several in one text are one. */
  readonly messages: number
}

export interface Proxies<Name extends string> extends AsyncDisposable {
  /** The databases' URLs, through the proxies. */
  readonly urls: Readonly<Record<Name, string>>
  /** Counts what is said until the task has ended, and the messages that it leaves to be sent afterwards. */
  count(task: () => Promise<unknown>): Promise<Count>
}

export interface ProxyOptions {
  /** A connection is cut instead of passing on what contains this text. */
  readonly cutAt?: string
}

/** Long enough for a client to send all that it can without an answer. */
const quietMs = 15

export async function startProxies<Name extends string>(
  targets: Readonly<Record<Name, string>>,
  { cutAt }: ProxyOptions = {},
): Promise<Proxies<Name>> {
  const sockets = new Set<Socket>()
  const tide = holdBack()
  let messages = 0

  const listen = async (target: string): Promise<{ url: string; server: Server }> => {
    const url = new URL(target)
    const { hostname, port } = url
    const server = createServer((client) => {
      const backend = dial(Number(port), hostname)
      const talk = conversation()
      const follow = (from: Socket, to: Socket) => {
        sockets.add(from)
        from.on('error', () => {})
        from.on('close', () => {
          sockets.delete(from)
          to.destroy()
        })
      }
      follow(client, backend)
      follow(backend, client)
      client.on('data', (part) => {
        if (cutAt !== undefined && part.includes(cutAt)) return client.destroy()
        const said = talk.read('client', part).map(({ name }) => name)
        messages += said.filter((name) => name === 'Query' || name === 'Execute').length
        tide.pass(backend, part, !said.includes('Terminate'))
      })
      backend.on('data', (part) => {
        talk.read('server', part)
        tide.pass(client, part, false)
      })
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    url.port = String((server.address() as AddressInfo).port)
    return { url: url.href, server }
  }

  const names = Object.keys(targets) as Name[]
  const started = await Promise.all(names.map((name) => listen(targets[name])))
  return {
    urls: Object.fromEntries(started.map(({ url }, at) => [names[at], url])) as Record<Name, string>,
    async count(task) {
      messages = 0
      tide.begin()
      try {
        await task()
        const { trips } = tide
        await tide.silence()
        return { trips, messages }
      } finally {
        tide.end()
      }
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await Promise.all(started.map(({ server }) => new Promise((closed) => server.close(closed))))
    },
  }
}

/** Lets everything pass at once, or, from `begin` to `end`, all that has come when nothing more comes. */
function holdBack() {
  const held: { readonly to: Socket; readonly part: Buffer }[] = []
  let isHolding = false
  let isTrip = false
  let trips = 0
  let timer: NodeJS.Timeout | undefined

  const deliver = () => {
    timer = undefined
    if (isTrip) trips += 1
    isTrip = false
    for (const { to, part } of held.splice(0)) to.write(part)
  }
  /** After what is at the door already: this process may have been kept from looking. */
  const deliverSoon = () => {
    const due = timer
    setImmediate(() => {
      if (timer === due) deliver()
    })
  }
  return {
    get trips() {
      return trips
    },
    begin() {
      isHolding = true
      trips = 0
    },
    end() {
      isHolding = false
      clearTimeout(timer)
      deliver()
    },
    /** @param isAsking whether an answer will be waited for */
    pass(to: Socket, part: Buffer, isAsking: boolean) {
      if (!isHolding) return void to.write(part)
      held.push({ to, part })
      isTrip ||= isAsking
      clearTimeout(timer)
      timer = setTimeout(deliverSoon, quietMs)
    },
    async silence() {
      do await sleep(quietMs)
      while (timer !== undefined)
    },
  }
}
