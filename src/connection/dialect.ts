/**
 * A Kysely dialect on postgres.js. It exists, beside the published ones, for three things that the protocol
 * needs: prepared statements, statements sent without waiting for the one before (so BEGIN and a claim cost
 * one round trip), and the command tag of every answer (`ROLLBACK` after COMMIT is not an error to Postgres).
 */
import type { Readable, Writable } from 'node:stream'
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
import { environment } from '../environment.ts'
import { AbortedError, codeOf, HandlerError, isServerError, type PgonceError, saysError } from '../errors.ts'

/** A query result that also says what the server did: `INSERT`, `COMMIT`, `ROLLBACK`, … */
export interface TaggedResult<R> extends QueryResult<R> {
  readonly command: string
}

/** A Kysely dialect on connections of postgres.js, whose owner ends them. */
export function postgresJsDialect(source: ConnectionSource): Dialect {
  return {
    createAdapter: () => new PostgresAdapter(),
    createIntrospector: (db) => new PostgresIntrospector(db),
    createQueryCompiler: () => new PostgresQueryCompiler(),
    createDriver: () => driver(source),
  }
}

function driver(source: ConnectionSource): Driver {
  const run = (connection: DatabaseConnection, text: string) => connection.executeQuery(Query.raw(text))
  const types: KnownTypes = new Map()
  return {
    init: async () => {},
    acquireConnection: async () => new PostgresJsConnection(await source.take(), types),
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

/** Where connections come from. */
export interface ConnectionSource {
  take(): Promise<TakenConnection>
}

/** One connection of postgres.js for as long as it is needed; ended by `release` or `discard`. */
export interface TakenConnection {
  readonly client: postgres.Sql
  readonly reserved: postgres.ReservedSql
  /** Whether the pool is ours, not the caller's. */
  readonly isOwn: boolean
  /** Gives it back, in a clean state. @param pid of its backend, as the server told the driver */
  release(pid?: number): void
  /** It is lost, or not fit to be used again. */
  discard(): void
  /** Its socket has closed, maybe long after it was discarded. */
  closed?(): void
  /**
   * Ends the backend of this connection over another one, if it is known which it is. It may take its time, and reach
   * no other.
   */
  terminate(pid: number): void
}

/** What postgres.js gives for a statement. */
interface SentQuery extends Promise<Answer | Readable | Writable> {
  /** What the server has told of its backend, once it was sent. */
  readonly state: { readonly pid: number | null } | null
}

type Answer = postgres.RowList<postgres.Row[]>

/** What postgres.js hands to `onexecute`: the physical connection behind a reserved one. */
interface PhysicalConnection {
  onclose: ((error: unknown) => void) | null
  terminate(): void
}

interface Statement {
  readonly text: string
  readonly parameters: readonly unknown[]
  /** Its parameters are none that postgres.js might throw over. */
  readonly isOwn: boolean
  /** Whether it had to wait for those before it. */
  hasWaited: boolean
  readonly resolve: (result: Answer) => void
  readonly reject: (error: unknown) => void
}

/** The parameters' types of statements that were answered before, as the server told them. */
type KnownTypes = Map<string, readonly number[]>

/** FATAL from the server, or the network's word that nobody answers: the session is gone. */
export function isFatal(error: unknown): boolean {
  if (isServerError(error)) return !saysError(error as { severity: string })
  return /^(CONNECT|E[A-Z]+$)/.test(codeOf(error) ?? '')
}

/** Texts that may end a transaction, and some more: to leave a statement alone that need not be is no harm. */
const mayCommit = /commit|prepare|^\s*end\b/i

/**
 * One reserved connection.
 *
 * postgres.js goes on accepting statements for a reserved connection whose socket has closed: it throws in
 * a timer, or sends them to whoever owns the reopened connection. A COMMIT would then succeed on nothing. So
 * we listen for the close ourselves, refuse everything after it, and never give such a connection back.
 *
 * Nor does it survive a parameter that cannot be put into words (`undefined`, an invalid date, a BigInt in
 * JSON) behind statements that are not answered yet: it blames the first of them, and takes every later
 * answer for that of the statement before. So such a statement waits until nothing is before it.
 */
export class PostgresJsConnection implements DatabaseConnection {
  readonly #taken: TakenConnection
  readonly #types: KnownTypes
  readonly #waiting: Statement[] = []
  /** Sent and not answered yet. */
  readonly #pending = new Set<Statement>()
  #first: SentQuery | undefined
  #physical: PhysicalConnection | undefined
  #closed = false
  #lost: unknown

  constructor(taken: TakenConnection, types: KnownTypes) {
    this.#taken = taken
    this.#types = types
  }

  async executeQuery<R>(query: CompiledQuery): Promise<TaggedResult<R>> {
    return told(await this.#send(query.sql, query.parameters, false))
  }

  /** A statement of ours: its parameters are strings, numbers, booleans and nulls, each cast in the text. */
  async executeOwn<R>(text: string, parameters: readonly unknown[]): Promise<TaggedResult<R>> {
    return told(lastOf(await this.#send(text, parameters, true)))
  }

  get isOwn(): boolean {
    return this.#taken.isOwn
  }

  streamQuery(): never {
    throw new Error('unreachable: streams are made of statements, see stream.ts')
  }

  /** Gives the connection back to its pool, unless it is lost: then it is the pool's already. */
  release(): void {
    if (this.#lost !== undefined) return
    this.#lost = givenBack
    if (this.#physical) this.#physical.onclose = null
    this.#taken.release(this.#pid)
  }

  /**
   * Gives up on a connection that may be in the middle of something. The server is asked to end a statement
   * that still runs, since it would notice our hanging up only when it next reads its socket.
   *
   * Not so what commits, or prepares: where it waits for a synchronous standby, ending the backend ends the wait,
   * and everybody sees, and believes, what no standby has. Left alone it goes on waiting without us.
   */
  destroy(): void {
    this.#giveUp(new AbortedError('ABORTED', 'The connection was given up'))
  }

  #giveUp(error: PgonceError): void {
    const running = [...this.#pending]
    const pid = this.#pid
    if (pid !== undefined && running.length > 0 && !running.some(({ text }) => mayCommit.test(text)))
      this.#taken.terminate(pid)
    this.#abandon(error)
  }

  get #pid(): number | undefined {
    return this.#first?.state?.pid ?? undefined
  }

  #send(text: string, parameters: readonly unknown[], isOwn: boolean): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.#refuseIfLost()
      this.#waiting.push({ text, parameters, isOwn, hasWaited: false, resolve, reject })
      this.#flush()
    })
  }

  #flush(): void {
    for (;;) {
      const [next] = this.#waiting
      if (next === undefined) return
      if (this.#pending.size > 0 && this.#mayThrow(next)) {
        next.hasWaited = true
        return
      }
      this.#waiting.shift()
      this.#execute(next)
    }
  }

  #execute(statement: Statement): void {
    const { text, parameters, resolve, reject } = statement
    // Without parameters postgres.js uses the simple protocol, which also takes several statements.
    const options = this.#physical
      ? { prepare: true }
      : { prepare: true, onexecute: (physical: PhysicalConnection) => this.#watch(physical) }
    const query = this.#taken.reserved.unsafe(
      text,
      [...parameters] as never[],
      options,
    ) as unknown as SentQuery
    this.#first ??= query
    this.#pending.add(statement)
    query.then(
      (result) => {
        if (!Array.isArray(result)) return this.#refuseCopy(result)
        this.#pending.delete(statement)
        this.#remember(statement, result.statement?.types)
        this.#flush()
        resolve(result)
      },
      (error: unknown) => {
        this.#pending.delete(statement)
        if (isFatal(error)) this.#abandon(error)
        else this.#flush()
        reject(error)
      },
    )
  }

  /**
   * COPY from or to the client: postgres.js gives a stream, and until somebody has read or written that to its end,
   * nothing else gets through. The server is in the middle of it, so the connection is of no use any more.
   */
  #refuseCopy(stream: Readable | Writable): void {
    // It fails with its connection. And a socket that waits for a reader would not see that end.
    stream.on('error', () => {})
    const isReadable = 'resume' in stream
    if (isReadable) stream.resume()
    this.#giveUp(
      new HandlerError('COPY', `The handler ran COPY ${isReadable ? '… TO STDOUT' : '… FROM STDIN'}`, {
        detail:
          'Its rows travel beside the answers, where nobody takes or gives them. Everything is rolled back.',
        hint: isReadable
          ? 'Read them as rows: for await (const row of tx.selectFrom(…).selectAll().stream()). Or run COPY outside of the transaction, on a connection of your own'
          : 'Write them as rows: await tx.insertInto(…).values(rows).execute(). Or run COPY outside of the transaction, on a connection of your own',
      }),
    )
  }

  /** So that it need not wait the next time. Most never do, and to remember those would cost more. */
  #remember({ text, parameters, hasWaited }: Statement, types: readonly number[] | undefined): void {
    if (types === undefined || !hasWaited) return
    const key = keyOf(text, parameters)
    if (key === undefined || this.#types.has(key)) return
    // What an application says differs a thousand times only if it does not use parameters.
    if (this.#types.size >= 1000) this.#types.clear()
    this.#types.set(key, types)
  }

  /** Whether postgres.js may throw over a parameter: it does the same first, where that harms nobody. */
  #mayThrow({ text, parameters, isOwn }: Statement): boolean {
    if (isOwn || parameters.length === 0) return false
    const key = keyOf(text, parameters)
    const types = key === undefined ? undefined : this.#types.get(key)
    if (types === undefined) return true
    const { serializers } = this.#taken.client.options
    try {
      parameters.forEach((value, index) => {
        if (value !== null) serializers[types[index] as number]?.(value)
      })
      return false
    } catch {
      return true
    }
  }

  #abandon(error: unknown): void {
    if (this.#lost !== undefined) return
    this.#lose(error)
    // After what postgres.js is about to write: left in its buffer, it would spoil the next session.
    environment.soon(() => {
      if (!this.#closed) this.#physical?.terminate()
    })
  }

  #watch(physical: PhysicalConnection): boolean {
    this.#physical = physical
    physical.onclose = (error) => {
      this.#closed = true
      this.#lose(error)
      this.#taken.closed?.()
    }
    return true
  }

  #lose(error: unknown): void {
    if (this.#lost !== undefined) return
    this.#lost = error
    for (const { reject } of [...this.#pending, ...this.#waiting.splice(0)]) reject(error)
    this.#pending.clear()
    this.#taken.discard()
  }

  #refuseIfLost(): void {
    if (this.#lost === givenBack) throw new AbortedError('ENDED', 'This connection was given back')
    if (this.#lost === undefined) return
    if (this.#lost instanceof AbortedError) throw this.#lost
    throw new AbortedError('CONNECTION_LOST', 'The connection was lost before this statement was sent', {
      cause: this.#lost,
    })
  }
}

const counting = new Set(['INSERT', 'UPDATE', 'DELETE', 'MERGE', 'COPY'])

function told<R>(result: Answer): TaggedResult<R> {
  const { count, command } = result
  const rows = Array.from(result) as R[]
  return typeof count === 'number' && counting.has(command)
    ? { rows, command, numAffectedRows: BigInt(count) }
    : { rows, command }
}

/** Of several statements in one text postgres.js gives as many results. */
function lastOf(result: Answer): Answer {
  const last = result.at(-1)
  return Array.isArray(last) ? (last as unknown as Answer) : result
}

/** Not an error yet: to make one takes longer than to give a connection back. */
const givenBack = Symbol('given back')

/** The same key: the same types, as far as postgres.js infers any. Undefined for values it does not know. */
function keyOf(text: string, parameters: readonly unknown[]): string | undefined {
  if (parameters.length > 60_000) return undefined
  const kinds = parameters.map(kindOf)
  return kinds.includes(undefined) ? undefined : `${kinds.join('')} ${text}`
}

function kindOf(value: unknown): string | undefined {
  if (value === null) return '0'
  if (value instanceof Date) return 'd'
  if (value instanceof Uint8Array) return 'y'
  if (Array.isArray(value)) {
    const first = value.length === 0 ? '0' : kindOf(value[0])
    return first && `a${first}`
  }
  const kind = { boolean: 'b', number: 'n', string: 's', bigint: 'i' }[typeof value as string]
  return (
    kind ?? (typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype ? 'o' : undefined)
  )
}
