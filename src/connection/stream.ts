/**
 * Streams as ordinary statements: DECLARE, FETCH, CLOSE.
 *
 * A driver's own cursor has the connection to itself until the last row: a statement inside the loop would wait for
 * the loop, COMMIT for an iterator that somebody left open, and where a stream starts nobody has a say. A cursor of
 * the transaction takes its turn like every other statement, is refused like every other once the transaction is
 * over, and ends with it. It does so with any dialect.
 */
import { hash } from 'node:crypto'
import type { CompiledQuery, DatabaseConnection, QueryResult } from 'kysely'
import { InvalidInputError } from '../errors.ts'
import type { Executor } from './link.ts'

/** The cursors of one transaction. */
export interface Cursors {
  /** How many there were: a name is that of one cursor. */
  count: number
  /**
   * Those that are there for certain. One from behind a savepoint goes when that is rolled back to, and to close what
   * is not there would fail the transaction; one that stays open until the end is no harm.
   */
  readonly open: Set<string>
}

export function noCursors(): Cursors {
  return { count: 0, open: new Set() }
}

export function withStreams(executor: Executor, cursors: Cursors = noCursors()): DatabaseConnection {
  const { open } = cursors
  const executeQuery = <R>(query: CompiledQuery): Promise<QueryResult<R>> => {
    if (open.size > 0 && /rollback/i.test(query.sql)) open.clear()
    return executor.executeQuery<R>(query)
  }
  return {
    executeQuery,
    async *streamQuery<R>(query: CompiledQuery, chunkSize: number) {
      if (!Number.isSafeInteger(chunkSize) || chunkSize < 1) {
        throw new InvalidInputError('ONARG', `Expected a chunk size of at least 1, got ${chunkSize}`)
      }
      if (!canBeDeclared(query)) {
        const { rows } = await executeQuery<R>(query)
        for (let at = 0; at < rows.length; at += chunkSize) yield { rows: rows.slice(at, at + chunkSize) }
        return
      }
      // The same name for the same columns, for drivers that remember what a text returned; and no new one for each
      // transaction, since they remember it for ever.
      cursors.count += 1
      const cursor = `pgonce_${hash('sha1', query.sql).slice(0, 16)}_${cursors.count}`
      const run = (sql: string, parameters: readonly unknown[] = []) =>
        executeQuery<R>({ ...query, sql, parameters })
      const close = async () => {
        // If that fails, the transaction is over, or has failed and tells so at the next statement.
        if (open.delete(cursor)) await run(`close ${cursor}`).catch(() => {})
      }
      await run(`declare ${cursor} no scroll cursor for ${query.sql}`, query.parameters)
      open.add(cursor)
      try {
        for (let isLast = false; !isLast; ) {
          const { rows } = await run(`fetch ${chunkSize} from ${cursor}`)
          isLast = rows.length < chunkSize
          if (isLast) await close()
          yield { rows }
        }
      } finally {
        await close()
      }
    },
  }
}

/** Postgres declares cursors for queries that change nothing; the others run to their end at once in any case. */
function canBeDeclared({ query }: CompiledQuery): boolean {
  if (query.kind !== 'SelectQueryNode' || query.explain !== undefined) return false
  return query.with?.expressions.every(({ expression }) => expression.kind === 'SelectQueryNode') ?? true
}
