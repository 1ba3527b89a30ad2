/**
 * Clients of postgres.js with one connection, which never get a second one. postgres.js (3.4.9) opens a connection
 * that broke again, with what was left in its buffers, and sends the rest of a transaction to it; and where a server
 * accepts and hangs up, it tries hundreds of times a second without an end. Here a client has one socket; what asks
 * for another one is refused.
 *
 * @see https://github.com/porsager/postgres/issues/1208
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import postgres from 'postgres'
import { AbortedError, InvalidInputError } from '../errors.ts'
import type { Wire } from './own-link.ts'
import { takeTextAsItIs } from './parameters.ts'

/** What postgres.js hands to `socket`; its types do not know that option. */
interface SocketOptions {
  readonly host: readonly string[]
  readonly port: readonly number[]
  readonly path?: string | false | undefined
}

export type OpenSocket = (options: SocketOptions) => Socket | Promise<Socket>

/** A URL, or options of postgres.js. */
export type Address = string | postgres.Options<Record<string, postgres.PostgresType>>

/** Milliseconds that a server has to close its end after we have hung up. */
const patience = 5_000

/** @param connectTimeout milliseconds */
export function openWire(
  address: Address,
  applicationName: string,
  connectTimeout: number,
  onclose: (error: unknown) => void,
): Wire {
  const given = typeof address === 'string' ? {} : address
  const sockets = onlySocket((given as { socket?: OpenSocket }).socket, onclose)
  const own = {
    onnotice: () => {},
    max: 1,
    connect_timeout: Math.max(1, Math.ceil(connectTimeout / 1000)),
    idle_timeout: 0,
    // postgres.js would end it in the middle of a transaction.
    max_lifetime: null,
    // See learnArrays.
    fetch_types: false,
    socket: sockets.open,
    onclose: sockets.closed,
    connection: { ...given.connection, application_name: applicationName },
  }
  const client = (typeof address === 'string'
    ? postgres(address, own as object)
    : postgres({ ...address, ...own } as object)) as unknown as postgres.Sql
  takeTextAsItIs(client, (cause) => {
    const hint = 'Look at the serializers in `types` of the options: one of them threw, and nothing was sent'
    sockets.fail(new InvalidInputError('ONARG', 'A parameter could not be put into words', { hint, cause }))
  })
  return {
    client,
    mayPrepare: client.options.prepare !== false,
    cancel(query) {
      if (!query.active || !query.canceller) return
      sockets.allowExtra(true)
      // Not by query.cancel(), which leaves the promise to nobody: a request whose connection breaks would end the
      // process (postgres.js 3.4.9).
      const over = () => sockets.allowExtra(false)
      query.canceller(query).then(over, over)
    },
    end() {
      client.end({ timeout: 0 }).catch(() => {})
      sockets.close()
    },
  }
}

const closed = () => new AbortedError('CONNECTION_LOST', 'The connection was closed')

/** The one socket of a client: of several hosts the first that lets us in. */
function onlySocket(openOwn: OpenSocket | undefined, onclose: (error: unknown) => void) {
  const ended = new AbortController()
  let turn = 0
  let extra = false
  let current: Socket | undefined

  const finish = (error: unknown = closed()) => {
    if (ended.signal.aborted) return
    ended.abort()
    onclose(error)
  }
  const next = async (options: SocketOptions): Promise<Socket> => {
    const hosts = options.host.length
    for (;;) {
      if (ended.signal.aborted || turn >= hosts) throw closed()
      turn += 1
      try {
        return await (openOwn ? openOwn(options) : dial(options, turn - 1, ended.signal))
      } catch (error) {
        if (turn >= hosts || ended.signal.aborted) throw error
      }
    }
  }
  return {
    async open(options: SocketOptions): Promise<Socket> {
      const hosts = options.host.length
      if (extra) {
        extra = false
        if (openOwn) return await openOwn(options)
        return await dial(options, Math.max(Math.min(turn, hosts) - 1, 0), AbortSignal.timeout(patience))
      }
      try {
        const socket = await next(options)
        // Who opens it for us may not hear that nobody wants it any more.
        if (ended.signal.aborted) {
          socket.destroy()
          throw closed()
        }
        current = socket
        return socket
      } catch (error) {
        // Of several hosts postgres.js believes that it will try the next, and tells nobody.
        finish(error)
        throw error
      }
    },
    /** The connection was open, and has closed. */
    closed: () => finish(),
    /** One socket more, for a request to cancel. */
    allowExtra: (isAllowed: boolean) => {
      extra = isAllowed
    },
    /** Hangs up before anything more is written. */
    fail(error: unknown): void {
      current?.destroy()
      finish(error)
    },
    /** Gives the server a while to close its end. */
    close(): void {
      if (ended.signal.aborted) return
      const socket = current
      if (socket === undefined || socket.destroyed) return void finish()
      const timer = setTimeout(() => {
        socket.destroy()
        finish()
      }, patience)
      timer.unref()
      socket.once('close', () => {
        clearTimeout(timer)
        finish()
      })
    },
  }
}

async function dial(
  { host, port, path }: SocketOptions,
  index: number,
  signal: AbortSignal,
): Promise<Socket> {
  const to = { host: host[index] as string, port: port[index] as number }
  const socket = path ? connect(path) : connect(to)
  socket.setNoDelay()
  try {
    await once(socket, 'connect', { signal })
  } catch (error) {
    socket.destroy()
    throw error
  }
  // As postgres.js does: for TLS, and for what its errors say.
  return Object.assign(socket, to)
}
