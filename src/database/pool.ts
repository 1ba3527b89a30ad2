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
import type { ConnectionSource, TakenConnection } from './dialect.ts'

export interface Pool extends ConnectionSource {
  /** Waits a while for connections in use, then ends them. */
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
    client.end({ timeout: 0 }).catch(() => {})
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
        return {
          client,
          reserved,
          isOwn: true,
          discard: () => discard(client),
          release() {
            if (!all.has(client)) return
            reserved.release()
            if (ended) return discard(client)
            idle.push(client)
            waiting.shift()?.()
          },
          terminate(pid) {
            const other = make(() => {})
            other
              .unsafe('select pg_terminate_backend($1)', [pid])
              .catch(() => {})
              .finally(() => other.end({ timeout: 0 }))
          },
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
      if (all.size === 0) return
      const timer = setTimeout(() => {
        for (const client of all) discard(client)
      }, patience * 1000)
      await empty
      clearTimeout(timer)
    },
  }
}

/** The caller's postgres.js instance, which stays the caller's to end. */
export function callersPool(client: postgres.Sql): ConnectionSource {
  return {
    async take() {
      const reserved = await client.reserve().catch((error: unknown) => {
        // A reopened connection begins with the last error of the one before.
        if (isServerError(error)) return client.reserve()
        throw error
      })
      return {
        client,
        reserved,
        isOwn: false,
        release: () => reserved.release(),
        discard: () => {},
        terminate: (pid) => void client.unsafe('select pg_terminate_backend($1)', [pid]).catch(() => {}),
      }
    },
  }
}
