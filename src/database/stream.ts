/**
 * Streams as ordinary statements: DECLARE, FETCH, CLOSE.
 *
 * A driver's own cursor has the connection to itself until the last row: a statement inside the loop would wait for
 * the loop, COMMIT for an iterator that somebody left open, and where a stream starts nobody has a say. A cursor of
 * the transaction takes its turn like every other statement, is refused like every other once the transaction is
 * over, and ends with it. It does so with any dialect.
 */
import { hash } from 'node:crypto'
import type { CompiledQuery, DatabaseConnection } from 'kysely'
import { InvalidInputError } from '../errors.ts'

/** What runs one statement at a time. */
export type Executor = Pick<DatabaseConnection, 'executeQuery'>

/** Numbers of cursors, from 1. */
export type Numbers = () => number

export function numbers(): Numbers {
  let last = 0
  return () => {
    last += 1
    return last
  }
}

/** @param next one for a transaction, since a name is that of one cursor */
export function withStreams({ executeQuery }: Executor, next: Numbers = numbers()): DatabaseConnection {
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
      const cursor = `pgonce_${hash('sha1', query.sql).slice(0, 16)}_${next()}`
      const run = (sql: string, parameters: readonly unknown[] = []) =>
        executeQuery<R>({ ...query, sql, parameters })
      await run(`declare ${cursor} no scroll cursor for ${query.sql}`, query.parameters)
      for (let isLast = false; !isLast; ) {
        const { rows } = await run(`fetch ${chunkSize} from ${cursor}`)
        isLast = rows.length < chunkSize
        let isLeft = true
        try {
          yield { rows }
          isLeft = false
        } finally {
          // If that fails, the transaction is over, or has failed and tells so at the next statement.
          if (isLast || isLeft) await run(`close ${cursor}`).catch(() => {})
        }
      }
    },
  }
}

/** Postgres declares cursors for queries that change nothing; the others run to their end at once in any case. */
function canBeDeclared({ query }: CompiledQuery): boolean {
  if (query.kind !== 'SelectQueryNode' || query.explain !== undefined) return false
  return query.with?.expressions.every(({ expression }) => expression.kind === 'SelectQueryNode') ?? true
}
