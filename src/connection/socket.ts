/**
 * Sockets for clients of our own. Where a connection is hung up on before it is open, postgres.js (3.4.9) opens
 * another at once: hundreds a second, without an end, and one more after the client was ended. Here it waits longer
 * each time, and an ended client gets no socket any more.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type postgres from 'postgres'

/** What postgres.js hands to `socket`; its types do not know that option. */
export interface SocketOptions {
  readonly host: readonly string[]
  readonly port: readonly number[]
  readonly path?: string | false | undefined
}

export type OpenSocket = (options: SocketOptions) => Socket | Promise<Socket>

interface Attempts {
  count: number
  readonly ended: AbortController
}

/** By the options of the client. */
const attempts = new WeakMap<object, Attempts>()

function attemptsOf(options: object): Attempts {
  let found = attempts.get(options)
  if (found === undefined) {
    found = { count: 0, ended: new AbortController() }
    attempts.set(options, found)
  }
  return found
}

/** Milliseconds. */
const firstPause = 50
const longestPause = 2_000

/** For the option `socket`. @param open the caller's own way to open one, if there is any */
export function openPatiently(open?: OpenSocket): OpenSocket {
  return async (options) => {
    const made = attemptsOf(options)
    const { signal } = made.ended
    const hosts = options.host.length
    for (;;) {
      const turn = made.count
      made.count += 1
      // Every host has its first turn at once.
      if (turn >= hosts)
        await sleep(Math.min(firstPause * 2 ** (turn - hosts), longestPause), undefined, { signal })
      signal.throwIfAborted()
      try {
        return await (open ? open(options) : dial(options, turn % hosts, signal))
      } catch (error) {
        // Of several hosts postgres.js believes that it will try the next, and tells nobody.
        if (hosts === 1 || signal.aborted) throw error
      }
    }
  }
}

async function dial(
  { host, port, path }: SocketOptions,
  index: number,
  signal: AbortSignal,
): Promise<Socket> {
  const to = { host: host[index] as string, port: port[index] as number }
  const socket = path ? connect(path) : connect(to)
  try {
    await once(socket, 'connect', { signal })
  } catch (error) {
    socket.destroy()
    throw error
  }
  // As postgres.js does: for TLS, and for what its errors say.
  return Object.assign(socket, to)
}

/** Ends a client at once: what it runs fails, and what it was about to open is not opened. */
export function endNow(client: postgres.Sql): void {
  attemptsOf(client.options).ended.abort()
  client.end({ timeout: 0 }).catch(() => {})
}
