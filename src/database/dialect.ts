/**
 * A Kysely dialect on postgres.js. It exists, beside the published ones, for three things that the protocol
 * needs: prepared statements, statements sent without waiting for the one before (so BEGIN and a claim cost
 * one round trip), and the command tag of every answer (`ROLLBACK` after COMMIT is not an error to Postgres).
 */
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type Driver,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  CompiledQuery as Query,
  type QueryResult,
  type TransactionSettings,
} from 'kysely'
import type postgres from 'postgres'
import { AbortedError, codeOf, isServerError } from '../errors.ts'

/** A query result that also says what the server did: `INSERT`, `COMMIT`, `ROLLBACK`, … */
export interface TaggedResult<R> extends QueryResult<R> {
  readonly command: string
}

/** A Kysely dialect that runs on an existing postgres.js instance, which stays the caller's to end. */
export function postgresJsDialect(client: postgres.Sql): Dialect {
  return {
    createAdapter: () => new PostgresAdapter(),
    createIntrospector: (db) => new PostgresIntrospector(db),
    createQueryCompiler: () => new PostgresQueryCompiler(),
    createDriver: () => driver(client),
  }
}

function driver(client: postgres.Sql): Driver {
  const run = (connection: DatabaseConnection, text: string) => connection.executeQuery(Query.raw(text))
  return {
    init: async () => {},
    acquireConnection: async () => new PostgresJsConnection(client, await client.reserve()),
    beginTransaction: async (connection, { isolationLevel, accessMode }: TransactionSettings) => {
      const level = isolationLevel === undefined ? '' : ` isolation level ${isolationLevel}`
      await run(connection, `begin${level}${accessMode === undefined ? '' : ` ${accessMode}`}`)
    },
    commitTransaction: async (connection) => {
      const { command } = (await run(connection, 'commit')) as TaggedResult<unknown>
      if (command !== 'COMMIT')
        throw new AbortedError('ROLLED_BACK', 'A statement had failed, so COMMIT rolled back')
    },
    rollbackTransaction: async (connection) => {
      await run(connection, 'rollback')
    },
    releaseConnection: async (connection) => (connection as PostgresJsConnection).release(),
    destroy: async () => {},
  }
}

/** What postgres.js hands to `onexecute`: the physical connection behind a reserved one. */
interface PhysicalConnection {
  onclose: ((error: unknown) => void) | null
  terminate(): void
}

interface Pending {
  readonly reject: (error: unknown) => void
  /** The backend that runs it, as soon as it was sent. */
  readonly pid: () => number | null | undefined
}

/** FATAL from the server, or the network's word that nobody answers: the session is gone. */
export function isFatal(error: unknown): boolean {
  if (isServerError(error)) return (error as { severity: string }).severity !== 'ERROR'
  return /^(CONNECT|E[A-Z]+$)/.test(codeOf(error) ?? '')
}

/**
 * One reserved connection.
 *
 * postgres.js goes on accepting statements for a reserved connection whose socket has closed: it throws in
 * a timer, or sends them to whoever owns the reopened connection. A COMMIT would then succeed on nothing. So
 * we listen for the close ourselves, refuse everything after it, and never give such a connection back.
 */
export class PostgresJsConnection implements DatabaseConnection {
  readonly #reserved: postgres.ReservedSql
  readonly #client: postgres.Sql
  readonly #pending = new Set<Pending>()
  #physical: PhysicalConnection | undefined
  #lost: unknown

  constructor(client: postgres.Sql, reserved: postgres.ReservedSql) {
    this.#client = client
    this.#reserved = reserved
  }

  async executeQuery<R>(query: CompiledQuery): Promise<TaggedResult<R>> {
    const result = await this.#send(query.sql, query.parameters)
    const { count, command } = result
    const rows = Array.from(result) as R[]
    return typeof count === 'number' && /^(INSERT|UPDATE|DELETE|MERGE|COPY)$/.test(command)
      ? { rows, command, numAffectedRows: BigInt(count) }
      : { rows, command }
  }

  async *streamQuery<R>(query: CompiledQuery, chunkSize: number): AsyncIterableIterator<QueryResult<R>> {
    this.#refuseIfLost()
    const cursor = this.#reserved
      .unsafe(query.sql, [...query.parameters] as never[], { prepare: true })
      .cursor(chunkSize)
    for await (const rows of cursor) yield { rows: Array.from(rows) as R[] }
  }

  /** Gives the connection back to its pool, unless it is lost: then postgres.js has taken it back already. */
  release(): void {
    if (this.#physical) this.#physical.onclose = null
    if (this.#lost === undefined) this.#reserved.release()
    this.#lost ??= new AbortedError('ENDED', 'This connection was given back')
  }

  /**
   * Gives up on a connection that may be in the middle of something. The server is asked to end a statement
   * that still runs, since it would notice our hanging up only when it next reads its socket.
   */
  destroy(): void {
    const [running] = this.#pending
    const pid = running?.pid()
    if (pid != null) this.#client.unsafe('select pg_terminate_backend($1)', [pid]).catch(() => {})
    this.#abandon(new AbortedError('CONNECTION_LOST', 'The connection was given up'))
  }

  #send(text: string, parameters: readonly unknown[]): Promise<postgres.RowList<postgres.Row[]>> {
    return new Promise((resolve, reject) => {
      this.#refuseIfLost()
      // Without parameters postgres.js uses the simple protocol, which also takes several statements.
      const options = this.#physical
        ? { prepare: true }
        : { prepare: true, onexecute: (physical: PhysicalConnection) => this.#watch(physical) }
      const query = this.#reserved.unsafe(text, [...parameters] as never[], options)
      const entry: Pending = { reject, pid: () => (query as { state?: { pid: number | null } }).state?.pid }
      this.#pending.add(entry)
      query.then(
        (result) => {
          this.#pending.delete(entry)
          resolve(result as unknown as postgres.RowList<postgres.Row[]>)
        },
        (error: unknown) => {
          this.#pending.delete(entry)
          if (isFatal(error)) this.#abandon(error)
          reject(error)
        },
      )
    })
  }

  #abandon(error: unknown): void {
    if (this.#lost !== undefined) return
    this.#lose(error)
    this.#physical?.terminate()
  }

  #watch(physical: PhysicalConnection): boolean {
    this.#physical = physical
    physical.onclose = (error) => this.#lose(error)
    return true
  }

  #lose(error: unknown): void {
    this.#lost ??= error
    for (const { reject } of this.#pending) reject(error)
    this.#pending.clear()
  }

  #refuseIfLost(): void {
    if (this.#lost !== undefined) throw this.#lost
  }
}
