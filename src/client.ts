/**
 * The client: named databases, and what can be done once in them.
 */
import type { Transaction } from 'kysely'
import type { Jsonify } from 'type-fest'
import { checkDatabaseName, checkFunction, checkInteger, checkMilliseconds, checkObject } from './check.ts'
import { traced } from './commit/channels.ts'
import {
  type Context,
  checkOptions,
  databaseNamed,
  defaults,
  type Handles,
  runTransaction,
  type TransactionBody,
  type TransactionOptions,
  type TransactionResult,
} from './commit/coordinator.ts'
import { refuseUnexecuted } from './commit/explain.ts'
import { type Outcome, outcomeOf } from './commit/outcome.ts'
import { createDatabase, type Database } from './connection/database.ts'
import type { DatabaseTarget } from './connection/open.ts'
import { AbortedError, InvalidInputError } from './errors.ts'
import {
  claim,
  claimKeys,
  claimSequences,
  isSequenced,
  type KeyClaim,
  type KeyedBatch,
  keepResult,
  type Message,
  type SequencedBatch,
} from './ledger/claim.ts'
import {
  advance,
  type Partition,
  type PositionMove,
  type PositionState,
  readPosition,
  type TakenPartition,
  takePartition,
} from './position/position.ts'
import { audit } from './recovery/audit.ts'
import { type Recovery, type RunningRecovery, runRecovery, startRecovery } from './recovery/recovery.ts'

/** What the client is made of. `Databases` maps each name to its Kysely table types. */
export interface PgonceOptions<Databases> {
  /**
   * Each database by URL, by a postgres.js instance, or by a Kysely instance of any Postgres dialect. Names
   * (1 to 63 of `A-Z a-z 0-9 . _ -`) stand in gids, so keep them stable.
   */
  readonly databases: { readonly [Name in keyof Databases]: DatabaseTarget<Databases[Name]> }
  /**
   * How many connections at once: the pool's size for a database given by URL; for a Kysely instance, how many
   * of its pool are ours. A postgres.js instance tells its own. @defaultValue 10
   */
  readonly maxConnections?: number
  /** Milliseconds to wait for a connection, and for a database to say who it is. @defaultValue 10000 */
  readonly connectTimeout?: number
  /** Options of every transaction that does not say otherwise. */
  readonly transaction?: Omit<TransactionOptions, 'signal'>
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
  | {
      readonly status: 'processed'
      readonly result: T
      readonly id: string | null
      readonly finished: boolean
    }
  /** It had taken effect before; with the first one's result, as it comes back from JSON, if that was kept. */
  | { readonly status: 'duplicate'; readonly result: Jsonified<T> | undefined }
  /** It is older than its scope's horizon: whether it took effect is not known any more. */
  | { readonly status: 'expired' }

/** What became of a batch of sequenced messages. */
export interface ProcessedBatch<T> {
  /** The new ones, in the order given. */
  readonly claimed: readonly bigint[]
  /** How many had taken effect before, or were repeated in the batch. */
  readonly duplicates: number
  /** What the handler returned; undefined if nothing was new and it did not run. */
  readonly result: T | undefined
  readonly id: string | null
  readonly finished: boolean
}

/** What became of a batch of keyed messages. */
export interface ProcessedKeys<T> {
  /** The keys that were new, in the order given. */
  readonly claimed: readonly string[]
  /** The others, each with its status and the result that was kept for it. */
  readonly rest: readonly KeyClaim[]
  readonly result: T | undefined
  readonly id: string | null
  readonly finished: boolean
}

export interface ProcessOptions extends Omit<TransactionOptions, 'home'> {
  /** A position to move in the same commit, in the database of the claim; also if the message is a duplicate. */
  readonly position?: PositionMove
}

export interface Pgonce<Databases> extends AsyncDisposable {
  /**
   * Claims a message and runs the handler if it is new: claim, effects and position commit together.
   *
   * The handler gets the transaction of the claim's database, and as second argument the handles of all; what
   * it writes elsewhere commits with it (two-phase). If it throws, nothing happened and the message is new
   * again. It may run several times, so keep to effects in these databases.
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
    message: Message,
    handler: (trx: Transaction<Databases[Name]>, transactions: Transactions<Databases>) => Promise<T>,
    options?: ProcessOptions,
  ): Promise<Processed<T>>

  /**
   * As {@link Pgonce.process} for many messages of one producer, or of one scope, in one transaction. The
   * handler gets the new ones and runs once, or not at all if there are none.
   *
   * @see sql/ledger/claim_batch.sql, sql/ledger/claim_key_batch.sql
   */
  processBatch<Name extends keyof Databases & string, T>(
    database: Name,
    batch: SequencedBatch,
    handler: (
      trx: Transaction<Databases[Name]>,
      fresh: readonly bigint[],
      transactions: Transactions<Databases>,
    ) => Promise<T>,
    options?: ProcessOptions,
  ): Promise<ProcessedBatch<T>>
  processBatch<Name extends keyof Databases & string, T>(
    database: Name,
    batch: KeyedBatch,
    handler: (
      trx: Transaction<Databases[Name]>,
      fresh: readonly string[],
      transactions: Transactions<Databases>,
    ) => Promise<T>,
    options?: ProcessOptions,
  ): Promise<ProcessedKeys<T>>

  /**
   * Runs the handler and commits what it did in every database, or in none. A database takes part when it is
   * first used; if only one was written to, it is a plain COMMIT. Deadlocks and serialization failures run the
   * handler anew.
   *
   * @throws AbortedError, HandlerError, LimitError, DatabaseError after rolling back everywhere, and what the
   *   handler throws; OutcomeUnknownError if the answer to the decision was lost
   */
  transaction<T>(
    handler: (transactions: Transactions<Databases>) => Promise<T>,
    options?: TransactionOptions,
  ): Promise<TransactionResult<T>>

  /**
   * What became of a global transaction, by the `id` of its result or of an OutcomeUnknownError. Exact for at
   * least as long as recovery keeps decisions (ten minutes), then perhaps `purged`.
   *
   * @throws InvalidInputError if it is no id or none of the databases is its home
   * @see sql/recovery/outcome.sql
   */
  outcome(id: string): Promise<Outcome>

  /** Takes a partition for a consumer; see {@link takePartition}. */
  takePartition(
    database: keyof Databases & string,
    partition: Partition,
    owner?: string,
  ): Promise<TakenPartition>

  /** Reads a position without taking the partition; undefined if it was never taken. */
  readPosition(database: keyof Databases & string, partition: Partition): Promise<PositionState | undefined>

  /** Finishes what dead coordinators left behind. Start it in at least one process that lives on. */
  readonly recovery: Recovery

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
  checkObject('databases', options.databases, databasesHint)
  const settings = {
    maxConnections: Number(checkInteger('maxConnections', options.maxConnections ?? 10, 1n, 10_000n)),
    connectTimeout: checkMilliseconds('connectTimeout', options.connectTimeout ?? 10_000),
  }
  const entries = Object.entries(options.databases) as [string, DatabaseTarget][]
  if (entries.length === 0) {
    throw new InvalidInputError('ONARG', 'Expected `databases` to name at least one database', {
      hint: databasesHint,
    })
  }
  const databases = new Map<string, Database>()
  for (const [name, target] of entries) {
    databases.set(checkDatabaseName(name), createDatabase(name, databases.size, target, settings))
  }
  const all = [...databases.values()]
  const running = new Set<RunningRecovery>()
  const context: Context = {
    databases,
    background: new Set(),
    poke: () => {
      for (const recovery of running) recovery.poke()
    },
  }
  const named = (name: string) => databaseNamed(databases, name)
  const withDefaults = (own: TransactionOptions) => {
    const { home, ...rest } = checkOptions({ ...options.transaction, ...checkObject('options', own) })
    return home === undefined ? rest : { ...rest, home: named(home).name }
  }

  if (options.transaction !== undefined) checkObject('transaction', options.transaction)
  // What is wrong with the defaults shall be heard here, not at the first message.
  withDefaults({})

  const recovery: Recovery = {
    run: (runOptions) => unlessClosed(() => runRecovery(all, runOptions)),
    audit: () => unlessClosed(async () => (await audit(all)).losses),
    start(startOptions) {
      refuseIfClosed()
      const started = startRecovery(all, startOptions)
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
  const inFlight = new Set<Promise<unknown>>()
  const refuseIfClosed = () => {
    if (closing !== undefined) throw new AbortedError('CLOSED', 'This client is closed, or about to be')
  }
  /** Runs what uses the databases: refused after close(), which waits for what was begun before. */
  const unlessClosed = <T>(run: () => Promise<T>): Promise<T> => {
    const result = (async () => {
      refuseIfClosed()
      return await run()
    })()
    const ended = result.then(
      () => void inFlight.delete(ended),
      () => void inFlight.delete(ended),
    )
    inFlight.add(ended)
    return result
  }
  const run = <T>(own: TransactionOptions, body: TransactionBody<T>) =>
    unlessClosed(async () => runTransaction(context, withDefaults(own), body))

  const client = {
    transaction: async <T>(handler: (handles: Handles) => Promise<T>, own: TransactionOptions = {}) => {
      checkFunction('handler', handler)
      return await run(own, async (handles) => refuseUnexecuted(await handler(handles)))
    },

    async process(
      name: string,
      message: Message,
      handler: (trx: Transaction<unknown>, handles: Handles) => Promise<unknown>,
      processOptions: ProcessOptions = {},
    ): Promise<Processed<unknown>> {
      checkFunction('handler', handler)
      const { position, ...own } = checkObject('options', processOptions)
      const { result, ...rest } = await run({ ...own, home: name }, async (handles, begin) => {
        const branch = await begin(name)
        const claimed = await traced('claim', branch, () => claim(branch, message))
        let value: unknown
        if (claimed.status === 'claimed') {
          value = refuseUnexecuted(await handler(handles[name] as Transaction<unknown>, handles))
          if (!isSequenced(message) && message.keepResult) await keepResult(branch, message, value)
        }
        if (position !== undefined) await advance(branch, position)
        return { ...claimed, value }
      })
      if (result.status === 'expired') return { status: 'expired' }
      if (result.status === 'duplicate') return { status: 'duplicate', result: result.result }
      return { status: 'processed', result: result.value, ...rest }
    },

    async processBatch(
      name: string,
      batch: SequencedBatch | KeyedBatch,
      handler: (trx: Transaction<unknown>, fresh: readonly never[], handles: Handles) => Promise<unknown>,
      processOptions: ProcessOptions = {},
    ): Promise<ProcessedBatch<unknown> | ProcessedKeys<unknown>> {
      checkObject('batch', batch, 'Pass { producer, sequences } or { scope, messages }')
      checkFunction('handler', handler)
      const { position, ...own } = checkObject('options', processOptions)
      const { result, ...rest } = await run({ ...own, home: name }, async (handles, begin) => {
        const branch = await begin(name)
        const answer = await traced('claim', branch, async () => {
          if (isSequenced(batch)) {
            const claimed = await claimSequences(branch, batch)
            return { claimed, duplicates: batch.sequences.length - claimed.length }
          }
          const claims = await claimKeys(branch, batch)
          return {
            claimed: claims.filter(({ status }) => status === 'claimed').map(({ key }) => key),
            rest: claims.filter(({ status }) => status !== 'claimed'),
          }
        })
        const value =
          answer.claimed.length === 0
            ? undefined
            : refuseUnexecuted(
                await handler(handles[name] as Transaction<unknown>, answer.claimed as never[], handles),
              )
        if (position !== undefined) await advance(branch, position)
        return { ...answer, result: value }
      })
      return { ...result, ...rest } as ProcessedBatch<unknown> | ProcessedKeys<unknown>
    },

    outcome: (id: string) => unlessClosed(() => outcomeOf(all, id)),
    takePartition: (name: string, partition: Partition, owner?: string) =>
      unlessClosed(async () => {
        const { lockTimeout = defaults.lockTimeout, timeout = defaults.timeout } = withDefaults({})
        return await takePartition(named(name), partition, owner, { lockTimeout, timeout })
      }),
    readPosition: (name: string, partition: Partition) =>
      unlessClosed(async () =>
        readPosition(named(name), partition, withDefaults({}).timeout ?? defaults.timeout),
      ),
    recovery,
    close: () => (closing ??= close()),
    [Symbol.asyncDispose]: () => (closing ??= close()),
  }
  return client as unknown as Pgonce<Databases>
}
