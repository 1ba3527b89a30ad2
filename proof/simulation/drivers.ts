/**
 * What lies between the code under test and the wire: pools, and connections as the drivers give them. The client's
 * own dialect runs as it is, over a postgres.js that is only a wire; the others are what a caller's Kysely may be.
 */
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  Kysely,
  PostgresAdapter,
  PostgresQueryCompiler,
  type QueryResult,
} from 'kysely'
import {
  type ConnectionSource,
  postgresJsDialect,
  type TakenConnection,
} from '../../src/connection/dialect.ts'
import type { OpenDatabase } from '../../src/connection/open.ts'
import {
  type ClientProcess,
  closeWire,
  connect,
  lossOf,
  type Network,
  send,
  terminateFrom,
  type Wire,
} from './network.ts'
import { type Answer, refuse, type SimulatedDatabase } from './postgres/server.ts'
import { statementOf } from './postgres/statements.ts'

/**
 * - `postgres.js`: statements are sent without waiting, and answered with their command tags
 * - `pg`: one at a time, no tags, several statements in one text
 * - `tagged`: one at a time, with tags, one statement a text
 * - `plain`: one at a time, no tags, one statement a text
 * - `reopening`: as `pg`; a connection that broke is opened anew without a word
 */
export type DriverName = 'postgres.js' | 'pg' | 'tagged' | 'plain' | 'reopening'

export interface SimulatedPool {
  readonly open: OpenDatabase<unknown>
  /** Connections that somebody has taken and not given back. */
  readonly taken: () => number
}

export function openSimulated(
  network: Network,
  process: ClientProcess,
  database: SimulatedDatabase,
  driver: DriverName,
  maxConnections: number,
  pools: SimulatedPool[],
): OpenDatabase<unknown> {
  const pool = wirePool(network, process, database, maxConnections)
  const db = new Kysely<unknown>({
    dialect: {
      createAdapter: () => adapter,
      createQueryCompiler: () => compiler,
      createIntrospector: never,
      createDriver: () =>
        driver === 'postgres.js'
          ? postgresJsDialect(sourceOver(network, pool)).createDriver()
          : driverOver(network, process, database, pool, driver),
    },
  })
  const open: OpenDatabase<unknown> = {
    db,
    maxConnections,
    // A caller's Kysely has only its own connections.
    sibling: () =>
      driver === 'postgres.js' ? openSimulated(network, process, database, driver, 1, pools) : open,
    close: async () => {},
  }
  pools.push({ open, taken: pool.taken })
  return open
}

interface WirePool {
  take(): Promise<Wire>
  give(wire: Wire): void
  /** It is not fit to be used again. */
  drop(): void
  readonly taken: () => number
}

function wirePool(
  network: Network,
  process: ClientProcess,
  database: SimulatedDatabase,
  max: number,
): WirePool {
  const idle: Wire[] = []
  const waiting: (() => void)[] = []
  let taken = 0
  return {
    async take() {
      while (taken >= max) await new Promise<void>((resolve) => waiting.push(resolve))
      taken += 1
      for (;;) {
        const wire = idle.pop()
        if (wire === undefined) break
        if (!wire.closed) return wire
      }
      try {
        return await connect(network, process, database)
      } catch (error) {
        taken -= 1
        waiting.shift()?.()
        throw error
      }
    },
    give(wire) {
      taken -= 1
      if (!wire.closed) idle.push(wire)
      waiting.shift()?.()
    },
    drop() {
      taken -= 1
      waiting.shift()?.()
    },
    taken: () => taken,
  }
}

/** postgres.js, as far as the dialect touches it. */
function sourceOver(network: Network, pool: WirePool): ConnectionSource {
  return {
    async take() {
      const wire = await pool.take()
      let held = true
      const end = (how: () => void) => {
        if (!held) return
        held = false
        how()
      }
      const physical = {
        onclose: null as ((error: unknown) => void) | null,
        terminate: () => closeWire(network, wire),
      }
      wire.onclose = (error) => physical.onclose?.(error)
      const { pid } = wire.backend
      const state = { pid }
      return {
        client,
        isOwn: true,
        reserved: {
          unsafe(
            text: string,
            values: readonly unknown[],
            options: { onexecute?: (one: typeof physical) => boolean },
          ) {
            options.onexecute?.(physical)
            return Object.assign(send(network, wire, text, values).then(asRowList), { state })
          },
        },
        release: () => end(() => pool.give(wire)),
        discard: () => end(() => pool.drop()),
        terminate: (other: number) => terminateFrom(network, wire, other),
      } as unknown as TakenConnection
    },
  }
}

const client = { options: { serializers: {} } }

function asRowList({ rows, command, count }: Answer) {
  return Object.assign([...rows], { command, count, statement: { types: [] } })
}

function driverOver(
  network: Network,
  process: ClientProcess,
  database: SimulatedDatabase,
  pool: WirePool,
  driver: DriverName,
): Driver {
  return {
    init: async () => {},
    acquireConnection: async () => connectionOver(network, process, database, await pool.take(), driver),
    releaseConnection: async (connection) => pool.give((connection as SimulatedConnection).wire()),
    beginTransaction: never,
    commitTransaction: never,
    rollbackTransaction: never,
    destroy: async () => {},
  }
}

// For all: to make a compiler takes longer than everything else about a connection.
const adapter = new PostgresAdapter()
const compiler = new PostgresQueryCompiler()

const never = () => {
  throw new Error('the code under test begins and ends its transactions itself')
}

interface SimulatedConnection extends DatabaseConnection {
  wire(): Wire
}

function connectionOver(
  network: Network,
  process: ClientProcess,
  database: SimulatedDatabase,
  first: Wire,
  driver: DriverName,
): SimulatedConnection {
  let wire = first
  const several = driver === 'pg' || driver === 'reopening'
  return {
    wire: () => wire,
    async executeQuery<R>({ sql, parameters }: CompiledQuery): Promise<QueryResult<R>> {
      if (!several && sql.includes(';'))
        throw refuse('42601', 'cannot insert multiple commands into a prepared statement')
      if (wire.closed) {
        if (driver !== 'reopening')
          throw lossOf('', 'Client has encountered a connection error and is not queryable')
        // What a handler sends there would commit by itself, and nobody but the driver knows: not promised, not simulated.
        if (statementOf(sql).kind === 'work') throw lossOf('', 'the transaction was lost')
        wire = await connect(network, process, database)
      }
      const { rows, command, count } = await send(network, wire, sql, parameters)
      const changed = ['INSERT', 'UPDATE', 'DELETE'].includes(command)
      return {
        rows: rows as R[],
        ...(changed && count !== undefined ? { numAffectedRows: BigInt(count) } : {}),
        ...(driver === 'tagged' ? { command } : {}),
      }
    },
    streamQuery: never,
  }
}
