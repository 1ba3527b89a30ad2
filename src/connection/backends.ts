/**
 * The backends of a pool's connections, and how to end one of them, and no other.
 *
 * A request to end one may arrive when that is gone and its process id is a stranger's, who may be committing and
 * waiting for a synchronous standby: a wait that must not be cut. So each connection is asked who its backend is
 * before it is used, and a request names process id and start.
 */
import type postgres from 'postgres'
import { endNow } from './socket.ts'

export interface Backends {
  /** Asks a connection for its backend, ahead of what is sent next; nobody waits for the answer. */
  ask(reserved: postgres.ReservedSql): void
  /** Whether nothing is to be gained by asking again. */
  isKnown(pid: number): boolean
  /** Ends a backend over a connection of its own, if it is known. */
  terminate(pid: number): void
  /** Waits a while for requests that are under way, and makes no more. */
  end(): Promise<void>
}

/** Milliseconds that requests have to be answered when the pool ends. */
const patience = 5_000

/** More than a pool has: process ids of connections that are gone are not told apart. */
const mostKnown = 10_000

/**
 * As numbers: how a timestamp looks in words is up to the session. The start is null for a role that may not see it.
 */
const whoIsIt = `select a.pid::text, extract(epoch from a.backend_start)::text
  from pg_catalog.pg_stat_activity a where a.pid = pg_catalog.pg_backend_pid()`

/** Whatever it was asked for: not what waits for a standby, and not what may be about to (see dialect.ts). */
const endIt = `select pg_catalog.pg_terminate_backend(a.pid)
  from pg_catalog.pg_stat_activity a
 where a.pid = $1::int and extract(epoch from a.backend_start)::text = $2::text
   and a.wait_event is distinct from 'SyncRep'
   and (a.state is distinct from 'active' or a.query !~* 'commit|prepare|^[[:space:]]*end')`

interface Ender {
  readonly client: postgres.Sql
  /** Requests that are not answered. */
  waiting: number
  readonly given: PromiseWithResolvers<void>
}

/**
 * @param make makes a client of one connection to the same server, outside the pool
 * @param timeout milliseconds that a request may take; then it is given up together with its connection
 */
export function backendsOf(make: () => postgres.Sql, timeout: number): Backends {
  /** When they began, by process id; null if that is not to be had. */
  const known = new Map<number, string | null>()
  const requests = new Set<Promise<void>>()
  let ender: Ender | undefined
  let hasEnded = false
  // A pooler gives each transaction another backend, and tells a process id that is none.
  let isPooled = false

  const drop = (one: Ender) => {
    if (ender === one) ender = undefined
    endNow(one.client)
    one.given.resolve()
  }
  const request = async (pid: number, start: string) => {
    // One for all: there may be many to end, and connections are few.
    ender ??= { client: make(), waiting: 0, given: Promise.withResolvers() }
    const one = ender
    one.waiting += 1
    const timer = setTimeout(() => drop(one), timeout)
    const answer = one.client.unsafe(endIt, [pid, start]).catch(() => {})
    await Promise.race([answer, one.given.promise])
    clearTimeout(timer)
    one.waiting -= 1
    if (one.waiting === 0) drop(one)
  }
  return {
    ask(reserved) {
      if (isPooled) return
      const query = reserved.unsafe(whoIsIt).values()
      query
        .then(([row]) => {
          const [pid, start] = row as [string, string | null]
          const told = (query as unknown as { state: { pid: number } }).state.pid
          if (Number(pid) !== told) isPooled = true
          if (known.size >= mostKnown) known.clear()
          known.set(told, start)
        })
        .catch(() => {})
    },
    isKnown: (pid) => isPooled || known.has(pid),
    terminate(pid) {
      const start = known.get(pid)
      if (start == null || isPooled || hasEnded) return
      const requested = request(pid, start).finally(() => requests.delete(requested))
      requests.add(requested)
    },
    async end() {
      hasEnded = true
      const timer = setTimeout(() => ender && drop(ender), patience)
      await Promise.all(requests)
      clearTimeout(timer)
    },
  }
}
