/**
 * Pools of connections on postgres.js: one of our own, and the caller's.
 *
 * Ours holds clients of one connection each. postgres.js (3.4.9) reopens a connection that broke together
 * with what was left in its buffers, so that the next session may hang until it times out or fail with the
 * last one's error. Here a client whose connection broke is thrown away.
 *
 * @see https://github.com/porsager/postgres/issues/1208
 */
import type postgres from 'postgres'
import { AbortedError, isServerError } from '../errors.ts'
import { learnArrayTypes } from './arrays.ts'
import { type Backends, backendsOf } from './backends.ts'
import type { ConnectionSource, TakenConnection } from './dialect.ts'
import { endNow } from './socket.ts'

export interface Pool extends ConnectionSource {
  /** Waits a while for connections in use and for backends that are being ended, then gives them up. */
  end(): Promise<void>
}

/** Seconds that connections in use have to be given back when the pool ends. */
const patience = 5

/**
 * @param make makes a client of one connection with `fetch_types: false`, and is told when that closes
 * @param connectTimeout milliseconds
 */
export function ownPool(
  make: (onclose: () => void) => postgres.Sql,
  max: number,
  connectTimeout: number,
): Pool {
  const all = new Set<postgres.Sql>()
  const idle: postgres.Sql[] = []
  const connected = new WeakSet<postgres.Sql>()
  const pids = new WeakMap<postgres.Sql, number>()
  const backends = backendsOf(() => make(() => {}), connectTimeout)
  const waiting: (() => void)[] = []
  let ended: (() => void) | undefined

  const open = (): postgres.Sql => {
    const client = make(() => discard(client))
    all.add(client)
    return client
  }
  const discard = (client: postgres.Sql): void => {
    if (!all.delete(client)) return
    const at = idle.indexOf(client)
    if (at >= 0) idle.splice(at, 1)
    endNow(client)
    waiting.shift()?.()
    if (all.size === 0) ended?.()
  }
  const free = async (): Promise<postgres.Sql> => {
    for (;;) {
      if (ended) throw new AbortedError('CLOSED', 'This client is closed')
      const client = idle.pop() ?? (all.size < max ? open() : undefined)
      if (client !== undefined) return client
      await new Promise<void>((resolve) => waiting.push(resolve))
    }
  }
  return {
    async take(): Promise<TakenConnection> {
      const client = await free()
      // postgres.js would try for ever with a server that accepts connections and hangs up.
      const timer = setTimeout(() => discard(client), connectTimeout)
      try {
        // Without `fetch_types` a connection is handed out only after it was opened by something else.
        if (!connected.has(client)) await learnArrayTypes(client)
        connected.add(client)
        const reserved = await client.reserve()
        if (!backends.isKnown(pids.get(client) ?? 0)) backends.ask(reserved)
        return {
          client,
          reserved,
          isOwn: true,
          discard: () => discard(client),
          release(pid) {
            if (!all.has(client)) return
            if (pid !== undefined) pids.set(client, pid)
            reserved.release()
            if (ended) return discard(client)
            idle.push(client)
            waiting.shift()?.()
          },
          terminate: backends.terminate,
        }
      } catch (error) {
        discard(client)
        throw error
      } finally {
        clearTimeout(timer)
      }
    },
    async end() {
      const empty = new Promise<void>((resolve) => {
        ended = resolve
      })
      for (const enter of waiting.splice(0)) enter()
      await Promise.all(
        idle.splice(0).map(async (client) => {
          all.delete(client)
          await client.end({ timeout: patience })
        }),
      )
      if (all.size > 0) {
        const timer = setTimeout(() => {
          for (const client of all) discard(client)
        }, patience * 1000)
        await empty
        clearTimeout(timer)
      }
      await backends.end()
    },
  }
}

/**
 * The caller's postgres.js instance, which stays the caller's to end.
 *
 * @param backends ends those whose statements were given up, not over this instance: all its connections may wait for
 *   just that. Without it nothing is ended
 */
export function callersPool(client: postgres.Sql, backends?: Backends): ConnectionSource {
  /** How many connections are to be asked before all that are open are known: they are handed out in turn. */
  let unasked = client.options.max
  /** Those who wait for a connection, to ask again. */
  const waiting = new Set<() => void>()

  // postgres.js (3.4.9) forgets the first of those who wait when a connection closes: that one would wait for ever.
  const reserve = () =>
    new Promise<postgres.ReservedSql>((resolve, reject) => {
      let hasFailed = false
      const ask = () =>
        void client.reserve().then(
          (reserved) => {
            if (waiting.delete(ask)) resolve(reserved)
            else reserved.release()
          },
          (error: unknown) => {
            // A reopened connection begins with the last error of the one before.
            if (isServerError(error) && !hasFailed) {
              hasFailed = true
              return ask()
            }
            waiting.delete(ask)
            reject(error)
          },
        )
      waiting.add(ask)
      ask()
    })
  return {
    async take() {
      // One that is open is handed out at once.
      let isNew = false
      const later = setImmediate(() => {
        isNew = true
      })
      const reserved = await reserve()
      clearImmediate(later)
      if (isNew || unasked > 0) {
        unasked = Math.max(unasked - 1, 0)
        backends?.ask(reserved)
      }
      return {
        client,
        reserved,
        isOwn: false,
        release(pid) {
          reserved.release()
          // Opened by the caller, and there may be more.
          if (pid !== undefined && !backends?.isKnown(pid)) unasked = client.options.max
        },
        discard: () => {},
        closed: () =>
          void setImmediate(() => {
            for (const ask of [...waiting]) ask()
          }),
        terminate: (pid) => backends?.terminate(pid),
      }
    },
  }
}
