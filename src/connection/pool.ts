/**
 * Our own connections to one database: clients of postgres.js with one connection each. One that broke, was given
 * up or has prepared too much is closed, and its place is free once its socket is.
 */
import { environment } from '../environment.ts'
import { AbortedError } from '../errors.ts'
import type { Link } from './link.ts'
import { type Owner, OwnLink, type Wire } from './own-link.ts'
import { type ArrayType, learnArrays } from './parameters.ts'

export interface Pool {
  /** Opens a connection where none is idle. @throws the server's refusal; AbortedError `CLOSED` */
  take(): Promise<Link>
  /** One that is free; undefined if there is none, or the pool has ended. */
  idle(): Link | undefined
  /** Waits a while for connections in use, then hangs up. */
  end(): Promise<void>
}

export interface PoolOptions {
  readonly max: number
  /** Milliseconds for opening a connection and hearing who is there. */
  readonly connectTimeout: number
  /** Whether sessions read only outside of our transactions. */
  readonly net: boolean
}

/** Milliseconds that connections in use have to be given back when the pool ends. */
const patience = 5_000

/** Texts of handlers that are remembered; of more than these none would come again soon. */
const mostSeen = 2_000

/** @param make makes a client of one connection, and is told when that has closed, or could not be opened */
export function pool(
  make: (onclose: (error: unknown) => void) => Wire,
  { max, connectTimeout, net }: PoolOptions,
): Pool {
  /** What has a place in the pool: in use, idle, or closing. */
  const open = new Set<OwnLink>()
  const idle: OwnLink[] = []
  const waiting: (() => void)[] = []
  const seen = new Set<string>()
  let arrays: readonly ArrayType[] | undefined
  let ended: (() => void) | undefined

  const owner: Owner = {
    generation: 0,
    hasSeen(text) {
      if (seen.has(text)) return true
      if (seen.size >= mostSeen) seen.clear()
      seen.add(text)
      return false
    },
    release(link) {
      if (ended || !link.isFit) return link.close()
      idle.push(link)
      waiting.shift()?.()
    },
  }
  const closed = (link: OwnLink, error: unknown) => {
    if (!open.delete(link)) return
    link.lose(error)
    const at = idle.indexOf(link)
    if (at >= 0) idle.splice(at, 1)
    waiting.shift()?.()
    if (open.size === 0) ended?.()
  }

  async function connect(): Promise<Link> {
    const wire = make((error) => closed(link, error))
    const link = new OwnLink(wire, owner)
    open.add(link)
    // postgres.js would try forever with a server that accepts connections and hangs up.
    const stopTimer = environment.after(connectTimeout, () => link.abandon())
    try {
      const greeting = await link.greet(net, arrays === undefined)
      arrays ??= greeting.arrays
      learnArrays(wire.client, arrays)
      return link
    } catch (error) {
      link.close()
      throw error
    } finally {
      stopTimer()
    }
  }

  const takeIdle = () => {
    for (let link = idle.pop(); link !== undefined; link = idle.pop()) {
      if (link.isFit) {
        link.reuse()
        return link
      }
      link.close()
    }
    return undefined
  }

  return {
    idle: takeIdle,
    async take() {
      for (;;) {
        if (ended) throw new AbortedError('CLOSED', 'This client is closed')
        const link = takeIdle()
        if (link !== undefined) return link
        if (open.size < max) return await connect()
        await new Promise<void>((resolve) => waiting.push(resolve))
      }
    },
    async end() {
      const empty = new Promise<void>((resolve) => {
        ended = resolve
      })
      for (const enter of waiting.splice(0)) enter()
      for (const link of idle.splice(0)) link.close()
      if (open.size === 0) return
      const stopTimer = environment.after(patience, () => {
        for (const link of open) link.close()
        ended?.()
      })
      await empty
      stopTimer()
    },
  }
}
