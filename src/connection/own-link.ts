/**
 * A connection that we opened: a client of postgres.js that has one connection, and gets no second one.
 *
 * Statements are sent without waiting for the one before. What makes that safe is the second net: the session reads
 * only outside of our transactions, so what follows a BEGIN that failed fails as well (25006).
 */
import type { CompiledQuery, QueryResult } from 'kysely'
import type postgres from 'postgres'
import { environment } from '../environment.ts'
import { AbortedError, isErrorAnswer, isOutdated } from '../errors.ts'
import { hello, type Statement, secondNet } from '../statements.ts'
import { type Answer, type Link, neverSent } from './link.ts'
import { textParameters } from './parameters.ts'
import type { Pool } from './pool.ts'
import { identifier } from './quote.ts'

/** A client of postgres.js with one connection, as far as it is touched here: the simulation has its own. */
export interface Wire {
  readonly client: postgres.Sql
  /** Whether statements may be prepared by name. */
  readonly mayPrepare: boolean
  /** Asks the server, over a connection apart, to cancel what it runs for this one. */
  cancel(query: WireQuery): void
  /** Hangs up; the server notices when it next reads. */
  end(): void
}

type Results = postgres.RowList<postgres.Row[]>
type Read<A> = (results: Results) => A

/** What postgres.js gives for a statement. */
export interface WireQuery extends Promise<Results> {
  raw(): this
  readonly canceller: ((query: WireQuery) => Promise<void>) | null
  /** Whether it was sent. */
  readonly active?: boolean
  readonly state: { readonly pid: number | null } | null
}

/** A statement that is sent and not answered. */
interface Pending {
  readonly query: WireQuery
  readonly mayCommit: boolean
  reject(error: unknown): void
}

/** Characters of the texts that one connection may have prepared; some ten times that in the backend's memory. */
const mostPrepared = 500_000

/** Milliseconds that a connection is used which was opened under an operator's fence. */
const fenceTime = 1_000

/** Characters up to which a text is prepared when it comes for the first time. */
const short = 2_000

/** Purposes of ours at whose answer something may have been decided. */
const committing = /^(commit|decide|prepare|finish)/

export class OwnLink implements Link {
  readonly isOwn = true
  isDirect = false
  durability: string | undefined
  readonly #wire: Wire
  readonly #pool: Pool
  readonly #generation: number
  readonly #pending = new Set<Pending>()
  readonly #prepared = new Set<string>()
  #prepares = 0
  /** When what it found of the server has to be looked at again. */
  #staleAt = Number.POSITIVE_INFINITY
  /** Whether the backend is our own: a prepared statement is there the next time, too. */
  #isUnpooled = false
  #pid: number | undefined
  #lost: unknown

  constructor(wire: Wire, pool: Pool) {
    this.#wire = wire
    this.#pool = pool
    this.#generation = pool.generation
  }

  /** Whether nothing can be sent, now or later. */
  get #isOver(): boolean {
    return this.#lost !== undefined && this.#lost !== givenBack
  }

  /** Whether it may be used again. */
  get isFit(): boolean {
    const isCurrent = this.#generation === this.#pool.generation && environment.now() < this.#staleAt
    return isCurrent && !this.#isOver && this.#prepares < mostPrepared
  }

  /**
   * Asks who is there, and puts up the net if it is wanted and the backend is our own. A pooler in between gives each
   * transaction another backend, and tells a process id that is none. What an operator has made read-only stays so.
   */
  async greet(wantsNet: boolean, wantsArrays: boolean) {
    const greeting = await this.send(hello(wantsArrays))
    this.durability = greeting.durability
    this.#isUnpooled = greeting.pid === this.#pid
    if (greeting.isFenced) this.#staleAt = environment.now() + fenceTime
    if (wantsNet && this.#isUnpooled && !greeting.isFenced) {
      await this.send(secondNet())
      this.isDirect = true
    }
    return greeting
  }

  send<A>(statement: Statement<A>): Promise<A> {
    const { text, values, isScript, name } = statement
    const prepare = !isScript && this.#isUnpooled && this.#wire.mayPrepare
    const options = { prepare, simple: isScript, statement } as object
    const parameters = (isScript ? none : values) as never[]
    const { client } = this.#wire
    return this.#answer(
      () => (client.unsafe(text, parameters, options) as unknown as WireQuery).raw(),
      (result) => statement.read(answerOf(result)),
      committing.test(name),
    )
  }

  query<R>(text: string, parameters: readonly unknown[] = []) {
    return this.#run(text, parameters, false, (results) => {
      const result = lastOf(results)
      return { rows: Array.from(result) as R[], command: result.command }
    })
  }

  executeQuery<R>({ sql, parameters }: CompiledQuery): Promise<QueryResult<R>> {
    return this.#run(sql, parameters, this.#isWorthPreparing(sql), (result) => {
      const { command, count } = result
      const answer = { rows: Array.from(result) as R[], command }
      if (!counting.has(command) || typeof count !== 'number') return answer
      return { ...answer, numAffectedRows: BigInt(count) }
    })
  }

  async takeRole(role: string): Promise<void> {
    await this.query(`set role ${identifier(role)}`)
  }

  async leaveRole(): Promise<void> {
    await this.query('reset role').catch(() => this.abandon())
  }

  outdate(): void {
    if (this.#generation === this.#pool.generation) this.#pool.generation += 1
  }

  release(): void {
    if (this.#lost !== undefined) return
    this.#lost = givenBack
    this.#pool.release(this)
  }

  /** Taken out of the pool again. */
  reuse(): void {
    if (this.#lost === givenBack) this.#lost = undefined
  }

  abandon(): void {
    if (this.#isOver) return
    const pending = [...this.#pending]
    this.lose(new AbortedError('ABORTED', 'The connection was given up'))
    if (pending.some(({ mayCommit }) => mayCommit)) {
      // It keeps its place in the pool until it is answered: else there would be ever more backends that wait.
      Promise.allSettled(pending.map(({ query }) => query)).then(() => this.#wire.end())
      return
    }
    // The request names this backend by a secret, and nothing is sent to it any more: it can hit nothing else.
    if (pending[0] !== undefined) this.#wire.cancel(pending[0].query)
    this.#wire.end()
  }

  /** Hangs up without a word. */
  close(): void {
    this.lose(new AbortedError('CONNECTION_LOST', 'The connection was closed'))
    this.#wire.end()
  }

  /** The socket has closed, or is given up: what is not answered will not be. */
  lose(error: unknown): void {
    if (this.#isOver) return
    this.#lost = error
    for (const { reject } of this.#pending) reject(error)
    this.#pending.clear()
  }

  #run<A>(text: string, parameters: readonly unknown[], prepare: boolean, read: Read<A>): Promise<A> {
    const { client } = this.#wire
    const begin = () => client.unsafe(text, textParameters(client, parameters) as never[], { prepare })
    return this.#answer(begin as unknown as () => WireQuery, read, false)
  }

  /** One promise for all of it: this is run for every statement there is. */
  #answer<A>(begin: () => WireQuery, read: Read<A>, mayCommit: boolean): Promise<A> {
    return new Promise((resolve, reject) => {
      this.#refuseIfLost()
      const query = begin()
      const pending = { query, mayCommit, reject }
      this.#pending.add(pending)
      query.then(
        (result) => {
          this.#pending.delete(pending)
          this.#pid ??= query.state?.pid ?? undefined
          try {
            resolve(read(result))
          } catch (error) {
            reject(error)
          }
        },
        (error: unknown) => {
          this.#pending.delete(pending)
          if (isOutdated(error)) this.outdate()
          if (!isErrorAnswer(error)) {
            this.lose(error)
            this.#wire.end()
          }
          reject(error)
        },
      )
    })
  }

  /** Each prepared text costs the backend memory for as long as the connection lives. */
  #isWorthPreparing(text: string): boolean {
    if (!this.#isUnpooled || !this.#wire.mayPrepare) return false
    if (this.#prepared.has(text)) return true
    // What is long costs most, and is often a list of rows that has another length the next time.
    if (text.length > short && !this.#pool.hasSeen(text)) return false
    this.#prepared.add(text)
    this.#prepares += text.length
    return true
  }

  #refuseIfLost(): void {
    if (this.#lost === undefined) return
    if (this.#lost === givenBack) throw neverSent(new AbortedError('ENDED', 'This connection was given back'))
    const what = 'The connection was lost before this statement was sent'
    throw neverSent(new AbortedError('CONNECTION_LOST', what, { cause: this.#lost }))
  }
}

const none: readonly never[] = []

const counting = new Set(['INSERT', 'UPDATE', 'DELETE', 'MERGE', 'COPY'])

/** Not an error yet: to make one takes longer than to give a connection back. */
const givenBack = Symbol('given back')

/** Of several statements in one text postgres.js gives as many results. */
function lastOf(result: Results): Results {
  const last = result.at(-1)
  return Array.isArray(last) && 'command' in last ? (last as unknown as Results) : result
}

/** The bytes as they came: no parser and no transform has seen them. */
function answerOf(results: Results): Answer {
  const result = lastOf(results)
  const rows = Array.from(
    result as unknown as (Buffer | null)[][],
    ([value]) => value?.toString('utf8') ?? null,
  )
  return { command: result.command, rows }
}
