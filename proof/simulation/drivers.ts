/**
 * What lies between the code under test and the wire. For connections of our own the client's pool and links run as
 * they are, over a postgres.js that is only a wire; a caller's Kysely may be over any driver, of which each property
 * is drawn by itself.
 */
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresQueryCompiler,
  type QueryResult,
} from 'kysely'
import { takeKyselyLink } from '../../src/connection/kysely-link.ts'
import type { Link } from '../../src/connection/link.ts'
import type { Wire as ClientWire, WireQuery } from '../../src/connection/own-link.ts'
import { Pool } from '../../src/connection/pool.ts'
import type { OpenDatabase } from '../../src/connection/target.ts'
import type { Statement as Said } from '../../src/statements.ts'
import {
  type ClientProcess,
  cancelFrom,
  closeWire,
  connect,
  lossOf,
  type Network,
  newPooler,
  type Pooler,
  send,
  type Wire,
} from './network.ts'
import type { Answer, SimulatedDatabase } from './postgres/server.ts'
import { type Statement, statementOf, textOf } from './postgres/statements.ts'

/** What a driver of a caller's may do, as far as anybody could tell. */
export interface ForeignDriver {
  /** Tells command tags and counts. */
  readonly tags: boolean
  /**
   * Several statements in one text: refused; only the first is run, and nobody told; all are run, and no rows told; all
   * are run, and the rows are the results.
   */
  readonly several: 'refused' | 'first' | 'all' | 'nested'
  /** A connection that broke is opened again without a word. */
  readonly reopens: boolean
  /** Takes a statement while another runs. */
  readonly queues: boolean
  /** Parsers and transforms of text: its case, what looks like a number, null. */
  readonly changes: 'case' | 'number' | 'null' | undefined
}

/**
 * - `own`: we open it, and it is what it seems
 * - `pooled`: we open it, and a pooler in between gives each transaction another backend
 */
export type DriverPlan = 'own' | 'pooled' | ForeignDriver

export interface SimulatedPool {
  /** Connections that somebody has taken and not given back. */
  readonly taken: () => number
  readonly database: SimulatedDatabase
}

interface Place {
  readonly network: Network
  readonly process: ClientProcess
  readonly database: SimulatedDatabase
  readonly pools: SimulatedPool[]
}

/** @param fault something that the drivers must never be asked to do */
export function openSimulated(
  place: Place,
  driver: DriverPlan,
  maxConnections: number,
  fault: (what: string) => void,
): OpenDatabase<unknown> {
  if (driver === 'own') return overOwn(place, undefined, maxConnections, true)
  if (driver === 'pooled') return overOwn(place, newPooler(), maxConnections, true)
  return overForeign(place, driver, maxConnections, fault)
}

// ---------------------------------------------------------------------------------------------------
// Connections of our own

function overOwn(place: Place, pooler: Pooler | undefined, max: number, net: boolean): OpenDatabase<unknown> {
  const make = (onclose: (error: unknown) => void) => clientWire(place, pooler, onclose)
  const opened = new Pool(make, { max, connectTimeout: 5_000, net })
  const held = new Set<Link>()
  place.pools.push({ taken: () => held.size, database: place.database })
  return {
    db: compiling,
    async take() {
      const link = await opened.take()
      held.add(link)
      const { release, abandon } = Object.getPrototypeOf(link) as Link
      link.release = () => {
        held.delete(link)
        release.call(link)
      }
      link.abandon = () => {
        held.delete(link)
        abandon.call(link)
      }
      return link
    },
    maxConnections: max,
    apart: () => overOwn(place, pooler, 1, false),
    close: () => opened.end(),
  }
}

/** postgres.js with one connection, as far as our links touch it. What is said before it is open waits. */
function clientWire(
  { network, process, database }: Place,
  pooler: Pooler | undefined,
  onclose: (error: unknown) => void,
): ClientWire {
  let wire: Wire | undefined
  let ended = false
  const opening = connect(network, process, database, pooler).then(
    (opened) => {
      wire = opened
      opened.onclose = onclose
      if (ended) closeWire(network, opened)
      return opened
    },
    (error: unknown) => {
      onclose(error)
      throw error
    },
  )
  opening.catch(() => {})
  const run = async (statement: Statement) =>
    wire ? send(network, wire, statement) : opening.then((opened) => send(network, opened, statement))
  const client = {
    options: { parsers: {}, serializers: {}, transform: {} },
    typed: (value: unknown) => value,
    unsafe(text: string, values: readonly unknown[], { statement }: { statement?: Said<unknown> }) {
      let running: Promise<unknown> | undefined
      const query = {
        raw: () => query,
        get state() {
          return { pid: wire?.pid ?? null }
        },
        // As in postgres.js, nothing is sent before somebody asks for the answer.
        // biome-ignore lint/suspicious/noThenProperty: it is a promise
        then(resolve: (value: unknown) => void, reject: (error: unknown) => void) {
          running ??= run(known(network, text, values, statement)).then(statement ? asRaw : asRows)
          return running.then(resolve, reject)
        },
      }
      return query as unknown as WireQuery
    },
  }
  return {
    client: client as never,
    mayPrepare: true,
    cancel() {
      if (wire) cancelFrom(network, wire)
    },
    end() {
      ended = true
      if (wire) closeWire(network, wire)
    },
  }
}

function known(
  network: Network,
  text: string,
  values: readonly unknown[],
  statement: Said<unknown> | undefined,
): Statement {
  try {
    return statement ? statementOf(statement) : textOf(text, values)
  } catch (error) {
    network.broken ??= error
    throw error
  }
}

/** Arrays of bytes; a text makes do here. */
const asRaw = ({ rows, command, count }: Answer) =>
  Object.assign(
    rows.map((value) => [value]),
    { command, count },
  )

const asRows = ({ rows, command, count }: Answer) => Object.assign([...rows], { command, count })

// ---------------------------------------------------------------------------------------------------
// A caller's Kysely

function overForeign(
  { network, process, database, pools }: Place,
  properties: ForeignDriver,
  max: number,
  fault: (what: string) => void,
): OpenDatabase<unknown> {
  const wires = wirePool(network, process, database, max)
  const driver: Driver = {
    init: async () => {},
    acquireConnection: async () =>
      connectionOver(network, process, database, await wires.take(), properties, fault),
    releaseConnection: async (connection) => wires.give((connection as SimulatedConnection).wire()),
    beginTransaction: never,
    commitTransaction: never,
    rollbackTransaction: never,
    destroy: async () => {},
  }
  const db = kyselyOver(() => driver)
  const opened: OpenDatabase<unknown> = {
    db,
    take: () => takeKyselyLink(db),
    maxConnections: max,
    // A caller's Kysely has only its own connections.
    apart: () => opened,
    close: async () => {},
  }
  pools.push({ taken: wires.taken, database })
  return opened
}

// For all: to make a compiler takes longer than everything else about a connection.
const adapter = new PostgresAdapter()
const compiler = new PostgresQueryCompiler()

const never = () => {
  throw new Error('the code under test begins and ends its transactions itself')
}

function kyselyOver(createDriver: () => Driver): Kysely<unknown> {
  return new Kysely<unknown>({
    dialect: {
      createAdapter: () => adapter,
      createQueryCompiler: () => compiler,
      createIntrospector: never,
      createDriver,
    },
  })
}

/** Of connections of our own, only what compiles is used. */
const compiling = kyselyOver(() => new DummyDriver())

interface WirePool {
  take(): Promise<Wire>
  give(wire: Wire): void
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
    taken: () => taken,
  }
}

interface SimulatedConnection extends DatabaseConnection {
  wire(): Wire
}

function connectionOver(
  network: Network,
  process: ClientProcess,
  database: SimulatedDatabase,
  first: Wire,
  { tags, several, reopens, queues, changes }: ForeignDriver,
  fault: (what: string) => void,
): SimulatedConnection {
  let wire = first
  let running = 0
  const run = async (statement: Statement): Promise<Answer> => {
    if (wire.closed) {
      if (!reopens) throw lossOf('', 'Client has encountered a connection error and is not queryable')
      // What a handler sends there would commit by itself, and nobody but the driver knows: not promised, not simulated.
      if (statement.kind === 'work') throw lossOf('', 'the transaction was lost')
      wire = await connect(network, process, database)
    }
    if (statement.commands.length > 1) {
      if (several === 'refused') return await send(network, wire, statement, { code: '42601', place: 0 })
      if (several === 'first')
        return await send(network, wire, { ...statement, commands: statement.commands.slice(0, 1) })
    }
    return await send(network, wire, statement)
  }
  return {
    wire: () => wire,
    async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
      const { statement: said } = query as { statement?: Said<unknown> }
      const statement = known(network, query.sql, query.parameters, said)
      if (running > 0 && !queues) {
        fault(`${statement.kind} was sent to a driver that takes one statement at a time`)
        throw lossOf('', 'another statement runs')
      }
      running += 1
      try {
        const { rows, command, count } = await run(statement)
        const changed = ['INSERT', 'UPDATE', 'DELETE'].includes(command)
        const isSeveral = statement.commands.length > 1 && several !== 'first'
        const seen = said ? rows.map((value) => ({ value: parsed(value as string | null, changes) })) : rows
        return {
          rows: (isSeveral ? (several === 'nested' ? [[], [{}]] : undefined) : seen) as R[],
          ...(changed && count !== undefined ? { numAffectedRows: BigInt(count) } : {}),
          ...(tags && !isSeveral ? { command } : {}),
        }
      } finally {
        running -= 1
      }
    },
    streamQuery: never,
  }
}

function parsed(value: string | null, changes: ForeignDriver['changes']): unknown {
  switch (changes) {
    case 'case':
      return value?.toLowerCase() ?? null
    case 'number':
      return value !== null && /^\d+$/.test(value) ? Number(value) : value
    case 'null':
      return value ?? ''
    default:
      return value
  }
}
