/**
 * The client: named databases, and what can be done once in them.
 */
import type { Compilable, CompiledQuery, Kysely, RawBuilder, Transaction } from 'kysely'
import type { Jsonify } from 'type-fest'
import { checkDatabaseName, checkFunction, checkObject, expect } from './check.ts'
import type { Branch } from './commit/branch.ts'
import { traced } from './commit/channels.ts'
import * as coordinator from './commit/coordinator.ts'
import { type Outcome, outcomeOf } from './commit/outcome.ts'
import { createDatabase, type Database, transactionOver } from './connection/database.ts'
import { literals } from './connection/parameters.ts'
import { fillIn, refuseControl } from './connection/script.ts'
import type { DatabaseTarget } from './connection/target.ts'
import { AbortedError, HandlerError, InvalidInputError } from './errors.ts'
import * as ledger from './ledger/claim.ts'
import type { TransactionOptions } from './options.ts'
import { type ClientOptions, checkOptions, clientOptions, complete, defaults } from './options.ts'
import * as positions from './position/position.ts'
import * as recoveries from './recovery/recovery.ts'
import type { Statement } from './statements.ts'

/** What the client is made of. `Databases` maps each name to its Kysely table types. */
export interface PgonceOptions<Databases> extends ClientOptions {
  /**
   * Each database by URL, by options or an instance of postgres.js, or by a Kysely instance of any Postgres dialect.
   * Names (1 to 63 of `A-Z a-z 0-9 . _ -`) stand in gids, so keep them stable.
   */
  readonly databases: { readonly [Name in keyof Databases]: DatabaseTarget<Databases[Name]> }
}

/** One handle a database: Kysely's own transaction, begun at its first query. */
export type Transactions<Databases> = { readonly [Name in keyof Databases]: Transaction<Databases[Name]> }

/** What comes back of a value that was kept as JSON: a `Date` as a string, `undefined` as null or not at all. */
export type Jsonified<T> = unknown extends T
  ? T
  : Jsonify<Exclude<T, void>> | ([Extract<T, void>] extends [never] ? never : null)

/** What became of a message. */
export type Processed<T> =
  /** It was new; the handler ran and its effects are committed. */
  | ({ readonly status: 'processed' } & coordinator.TransactionResult<T>)
  /** It had taken effect before; with the first one's result, as it comes back from JSON, if that was kept. */
  | { readonly status: 'duplicate'; readonly result: Jsonified<T> | undefined }
  /** It is older than its scope's horizon: whether it took effect is not known any more. */
  | { readonly status: 'expired' }

/** What became of a batch of sequenced messages; `result` is undefined if nothing was new and the handler did not run. */
export interface ProcessedBatch<T> extends coordinator.TransactionResult<T | undefined> {
  /** The new ones, in the order given. */
  readonly claimed: readonly bigint[]
  /** How many had taken effect before, or were repeated in the batch. */
  readonly duplicates: number
}

/** As {@link ProcessedBatch}, of keyed messages. */
export interface ProcessedKeys<T> extends coordinator.TransactionResult<T | undefined> {
  readonly claimed: readonly string[]
  /** The others, each with its status and the result that was kept for it. */
  readonly rest: readonly ledger.KeyClaim[]
}

export interface ProcessOptions extends Omit<TransactionOptions, 'home'> {
  /** A position to move in the same commit, in the database of the claim; also if the message is a duplicate. */
  readonly position?: positions.PositionMove
}

type Handles = coordinator.Handles
type Queries = readonly (Compilable | RawBuilder<unknown> | CompiledQuery)[]

/** Runs with the claim's transaction, with what is new of a batch, and with the handles of all databases. */
type BatchHandler<Databases, Name extends keyof Databases, Fresh, T> = (
  trx: Transaction<Databases[Name]>,
  fresh: readonly Fresh[],
  transactions: Transactions<Databases>,
) => Promise<T>

export interface Pgonce<Databases> extends AsyncDisposable {
  /**
   * Claims a message and runs the handler if it is new: claim, effects and position commit together. The handler gets
   * the transaction of the claim's database, and the handles of all; what it writes elsewhere commits with it
   * (two-phase). If it throws, nothing happened and the message is new again. It may run several times.
   *
   * @example
   * await once.process('orders', { producer: 'shop-7', sequence: 41n }, async (trx) => {
   *   await trx.insertInto('order').values({ number: 41 }).execute()
   * })
   * @throws InvalidInputError, FencedError, SequenceGapError, LimitError, PayloadMismatchError, PositionError;
   *   and everything {@link Pgonce.transaction} throws
   * @see sql/ledger/claim.sql, sql/ledger/claim_key.sql
   */
  process<Name extends keyof Databases & string, T>(
    database: Name,
    message: ledger.Message,
    handler: (trx: Transaction<Databases[Name]>, transactions: Transactions<Databases>) => Promise<T>,
    options?: ProcessOptions,
  ): Promise<Processed<T>>

  /**
   * As above with queries instead of a handler, of {@link Pgonce.builder} or any Kysely instance, in this one database:
   * BEGIN, claim, effects and COMMIT travel together, in one round trip. Parameters are written into the texts: a list
   * as an array, other objects as JSON.
   *
   * @example
   * const db = once.builder('orders')
   * await once.process('orders', { producer: 'shop-7', sequence: 41n }, [db.insertInto('order').values({ number: 41 })])
   * @throws as above; an error of a query is Postgres's own
   * @see sql/ledger/take_effect.sql
   */
  process<Name extends keyof Databases & string>(
    database: Name,
    message: ledger.Message,
    queries: Queries,
    options?: ProcessOptions,
  ): Promise<Processed<undefined>>

  /**
   * As {@link Pgonce.process} for many messages of one producer, or of one scope, in one transaction. The
   * handler gets the new ones and runs once, or not at all if there are none.
   *
   * @see sql/ledger/claim_ranges.sql, sql/ledger/claim_keys.sql
   */
  processBatch<Name extends keyof Databases & string, T>(
    database: Name,
    batch: ledger.SequencedBatch,
    handler: BatchHandler<Databases, Name, bigint, T>,
    options?: ProcessOptions,
  ): Promise<ProcessedBatch<T>>
  processBatch<Name extends keyof Databases & string, T>(
    database: Name,
    batch: ledger.KeyedBatch,
    handler: BatchHandler<Databases, Name, string, T>,
    options?: ProcessOptions,
  ): Promise<ProcessedKeys<T>>

  /**
   * Runs the handler and commits what it did in every database, or in none. A database takes part when it is first used;
   * if only one was written to, it is a plain COMMIT. Deadlocks and serialization failures run the handler again.
   *
   * @throws AbortedError, HandlerError, LimitError, DatabaseError after rolling back everywhere, and what the
   *   handler throws; OutcomeUnknownError if the answer to the decision was lost
   */
  transaction<T>(
    handler: (transactions: Transactions<Databases>) => Promise<T>,
    options?: TransactionOptions,
  ): Promise<coordinator.TransactionResult<T>>

  /**
   * What became of a global transaction, by the `id` of its result or of an OutcomeUnknownError. Exact for at
   * least as long as recovery keeps decisions (ten minutes), then perhaps `purged`.
   *
   * @throws InvalidInputError if it is no id or none of the databases is its home
   * @see sql/recovery/outcome.sql
   */
  outcome(id: string): Promise<Outcome>

  /**
   * Takes a partition for a consumer: bumps its epoch, which fences the previous owner. If the connection is lost it may
   * have been taken, without anybody knowing the epoch: take it again. `lockTimeout` and `timeout` are the client's.
   *
   * @throws PgonceError `ONARG`, `CONNECTION_LOST`, `LOCK_TIMEOUT`, `TIMEOUT`
   * @see sql/position/take_partition.sql
   */
  takePartition(
    database: keyof Databases & string,
    partition: positions.Partition,
    owner?: string,
  ): Promise<positions.TakenPartition>

  /** Reads a position without taking the partition; undefined if it was never taken. @throws as above */
  readPosition(
    database: keyof Databases & string,
    partition: positions.Partition,
  ): Promise<positions.PositionState | undefined>

  /** Builds queries for a database, with the plugins of its instance; it runs none. */
  builder<Name extends keyof Databases & string>(database: Name): Kysely<Databases[Name]>

  /** Finishes what dead coordinators left behind. Start it in at least one process that lives on. */
  readonly recovery: recoveries.Recovery

  /** Stops recovery, waits for background finishes, and ends the pools that were opened here. */
  close(): Promise<void>
}

const databasesHint = "pgonce({ databases: { orders: 'postgres://…' } })"

/**
 * Makes a client. Nothing is connected before it is used.
 *
 * @throws InvalidInputError `ONARG`
 */
export function pgonce<Databases extends { [Name in keyof Databases]: object }>(
  options: PgonceOptions<Databases>,
): Pgonce<Databases> {
  checkObject('options', options, databasesHint)
  const { databases: targets, transaction, ...settings } = complete(clientOptions, options)
  const entries = Object.entries(checkObject('databases', targets, databasesHint))
  if (entries.length === 0) {
    const what = 'Expected `databases` to name at least one database'
    throw new InvalidInputError('ONARG', what, { hint: databasesHint })
  }
  const databases = new Map<string, Database>()
  for (const [name, target] of entries) {
    databases.set(
      checkDatabaseName(name),
      createDatabase(name, target as DatabaseTarget, { ...settings, net: true }),
    )
  }
  const all = [...databases.values()]
  const running = new Set<recoveries.RunningRecovery>()
  const context: coordinator.Context = {
    databases,
    background: new Set(),
    poke: () => {
      for (const recovery of running) recovery.poke()
    },
  }
  const named = (name: string) => coordinator.databaseNamed(databases, name)
  const checked = (own: TransactionOptions) => {
    const result = checkOptions(own)
    if (result.home !== undefined) named(result.home)
    return result
  }
  // What is wrong with the defaults shall be heard here, not at the first message.
  const common = { ...defaults, ...checked(transaction) }

  const recovery: recoveries.Recovery = {
    run: (runOptions) => unlessClosed(() => recoveries.runRecovery(all, runOptions)),
    audit: () => unlessClosed(async () => (await recoveries.audit(all)).losses),
    start(startOptions) {
      refuseIfClosed()
      const started = recoveries.startRecovery(all, startOptions)
      const stop = async () => {
        running.delete(started)
        await started.stop()
      }
      running.add(started)
      return { poke: started.poke, stop, [Symbol.asyncDispose]: stop }
    },
  }

  let closing: Promise<void> | undefined
  const close = async () => {
    await Promise.all([...running].map((started) => started.stop()))
    await Promise.allSettled(inFlight)
    await Promise.allSettled(context.background)
    await Promise.all(all.map((database) => database.close()))
  }
  const closeOnce = () => {
    // It would wait for the handler, and the handler for it.
    coordinator.refuseNested(context, 'close() was called')
    closing ??= close()
    return closing
  }
  const inFlight = new Set<Promise<unknown>>()
  const refuseIfClosed = () => {
    if (closing !== undefined) throw new AbortedError('CLOSED', 'This client is closed, or about to be')
  }
  /** Runs what uses the databases: refused after close(), which waits for what was begun before. */
  const unlessClosed = async <T>(run: () => Promise<T>): Promise<T> => {
    refuseIfClosed()
    const running = run()
    inFlight.add(running)
    try {
      return await running
    } finally {
      inFlight.delete(running)
    }
  }
  /** The options are read at once; a body's own inputs are by then. */
  const run = <T>(own: TransactionOptions, body: coordinator.TransactionBody<T>) => {
    const all = { ...common, ...checked(own) }
    return unlessClosed(() => coordinator.runTransaction(context, all, body))
  }
  /** The options of a message's transaction, whose home is the claim's database, and the move of its position. */
  const ownOf = (name: string, options: ProcessOptions) => {
    const { position, ...own } = checkObject('options', options)
    if ('home' in own) {
      const what = 'Expected no `home`: that of a message is the database of its claim'
      throw new InvalidInputError('ONARG', what, { hint: 'once.transaction() takes it' })
    }
    const move = position === undefined ? undefined : positions.planMove(position)
    return { move, own: { ...own, home: named(name).name } }
  }
  /** A claim and what is to happen if it is new, in one transaction whose home is the claim's database. */
  const runClaimed = <C, T>(
    name: string,
    options: ProcessOptions,
    { statement, isVoid }: { readonly statement: Statement<C>; readonly isVoid: (claimed: C) => boolean },
    work: (claimed: C, stage: coordinator.Stage, branch: Branch) => Promise<T>,
  ) => {
    const { move, own } = ownOf(name, options)
    return run(own, async (stage) => {
      const branch = await stage.begin(name)
      const claimed = await traced('claim', branch, () => branch.change(statement))
      const result = await work(claimed, stage, branch)
      if (move !== undefined) await branch.send(move)
      else if (isVoid(claimed)) stage.leave()
      return result
    })
  }

  const processQueries = async (
    name: string,
    message: ledger.Message,
    queries: Queries,
    processOptions: ProcessOptions,
  ): Promise<Processed<unknown>> => {
    const { move, own } = ownOf(name, processOptions)
    const { withEffects, keep } = ledger.planClaim(message)
    if (keep !== undefined) {
      const what = 'Expected a handler, got queries: they have no result that keepResult could keep'
      throw new InvalidInputError('ONARG', what, { hint: 'Pass a handler' })
    }
    const statement = withEffects(Array.from(queries, (query, index) => textOf(query, index, named(name))))
    const { result, ...rest } = await run(own, async (stage) => {
      const branch = await stage.begin(name)
      const claimed = await branch.sendAhead(statement)
      if (move !== undefined) await branch.send(move)
      return claimed
    })
    return processed(await result.answer, undefined, rest)
  }

  const client = {
    transaction: async <T>(handler: (handles: Handles) => Promise<T>, own: TransactionOptions = {}) => {
      checkFunction('handler', handler)
      return await run(own, (stage) => stage.handle(() => handler(stage.handles)))
    },

    async process(
      name: string,
      message: ledger.Message,
      handler: ((trx: Transaction<unknown>, handles: Handles) => Promise<unknown>) | Queries,
      processOptions: ProcessOptions = {},
    ): Promise<Processed<unknown>> {
      if (typeof handler !== 'function') {
        if (!Array.isArray(handler)) checkFunction('handler', handler)
        return await processQueries(name, message, handler, processOptions)
      }
      const { statement, keep, isVoid } = ledger.planClaim(message)
      const { result, ...rest } = await runClaimed(
        name,
        processOptions,
        { statement, isVoid },
        async (claimed, stage, branch) => {
          if (claimed.status !== 'claimed') return { claimed, value: undefined }
          const { handles } = stage
          const value = await stage.handle(() => handler(handles[name] as Transaction<unknown>, handles))
          if (keep) await branch.send(keep(value))
          return { claimed, value }
        },
      )
      return processed(result.claimed, result.value, rest)
    },

    async processBatch(
      name: string,
      batch: ledger.SequencedBatch | ledger.KeyedBatch,
      handler: (trx: Transaction<unknown>, fresh: readonly never[], handles: Handles) => Promise<unknown>,
      processOptions: ProcessOptions = {},
    ): Promise<ProcessedBatch<unknown> | ProcessedKeys<unknown>> {
      checkObject('batch', batch, 'Pass { producer, sequences } or { scope, messages }')
      checkFunction('handler', handler)
      const withFresh = (fresh: readonly unknown[], stage: coordinator.Stage) => {
        if (fresh.length === 0) return undefined
        const trx = stage.handles[name] as Transaction<unknown>
        return stage.handle(() => handler(trx, fresh as never[], stage.handles))
      }
      if (ledger.isSequenced(batch)) {
        const { sequences, ...plan } = ledger.planSequences(batch)
        const { result, ...rest } = await runClaimed(name, processOptions, plan, async (answer, stage) => {
          const claimed = ledger.freshOf(sequences, answer)
          const duplicates = sequences.length - claimed.length
          return { claimed, duplicates, result: await withFresh(claimed, stage) }
        })
        return { ...result, ...rest }
      }
      const { keys, ...plan } = ledger.planKeys(batch)
      const { result, ...rest } = await runClaimed(name, processOptions, plan, async (answers, stage) => {
        const claims = answers.map((claim, index) => ({ key: keys[index] as string, ...claim }))
        const claimed = claims.filter(({ status }) => status === 'claimed').map(({ key }) => key)
        const rest = claims.filter(({ status }) => status !== 'claimed')
        return { claimed, rest, result: await withFresh(claimed, stage) }
      })
      return { ...result, ...rest }
    },

    builder: (name: string) => builderOver(named(name)),
    outcome: (id: string) => unlessClosed(() => outcomeOf(all, id)),
    takePartition: (name: string, partition: positions.Partition, owner?: string) =>
      unlessClosed(async () => positions.takePartition(named(name), partition, owner, common)),
    readPosition: (name: string, partition: positions.Partition) =>
      unlessClosed(async () => positions.readPosition(named(name), partition, common)),
    recovery,
    close: closeOnce,
    [Symbol.asyncDispose]: closeOnce,
  }
  return client as unknown as Pgonce<Databases>
}

type Ended = Omit<coordinator.TransactionResult<unknown>, 'result'>

function processed({ status, result }: ledger.Claim, value: unknown, ended: Ended): Processed<unknown> {
  if (status === 'expired') return { status }
  return status === 'duplicate' ? { status, result } : { status: 'processed', result: value, ...ended }
}

/** Which builder made a query, by the query's node. */
const origins = new WeakMap<object, string>()

/** What a query says, with its parameters in it: read when the call is made. @throws InvalidInputError `ONARG` */
function textOf(given: unknown, index: number, { db, name }: Database): string {
  const query = given as Partial<RawBuilder<unknown>> & Partial<CompiledQuery>
  const canCompile = typeof query?.compile === 'function'
  const isQuery = canCompile || (typeof query?.sql === 'string' && Array.isArray(query.parameters))
  const hint = "Pass queries, not yet executed: once.builder('…').insertInto(…), or sql`…`"
  expect(isQuery, `queries[${index}]`, given, 'a query of Kysely', hint)
  const compiled = canCompile ? (query as RawBuilder<unknown>).compile(db) : (query as CompiledQuery)
  const origin = origins.get(compiled.query) ?? name
  if (origin !== name) {
    const what = `Expected queries for database ${name}, got one that the builder of ${origin} made`
    throw new InvalidInputError('ONARG', what, { hint: 'For effects in several databases pass a handler' })
  }
  refuseControl(compiled.sql)
  return fillIn(compiled.sql, literals(compiled.parameters))
}

function builderOver({ db, name }: Database): Kysely<unknown> {
  const refuse = async () => {
    const hint = 'Pass them to process(), or run them in a handler'
    throw new HandlerError('NOT_EXECUTED', `The builder of database ${name} runs no queries`, { hint })
  }
  return transactionOver(db, { provideConnection: refuse }).withPlugin({
    transformQuery({ node }) {
      origins.set(node, name)
      return node
    },
    transformResult: async ({ result }) => result,
  })
}
