/**
 * What went wrong on the way to a commit, told in terms of what the handler or the database did.
 */
import {
  AbortedError,
  codeOf,
  DatabaseError,
  fromOwn,
  HandlerError,
  LimitError,
  OutcomeUnknownError,
} from '../errors.ts'
import type { Branch } from './branch.ts'

/** An error of our own statements, told in terms of what the handler or the database did. */
export function reasonOf(branch: Branch, error: unknown): unknown {
  const { name } = branch.database
  switch (codeOf(error)) {
    case '25P02':
      return swallowed(branch)
    case '25P01':
      return new AbortedError('ROLLED_BACK', `The transaction in database ${name} was not open any more`, {
        detail: 'Nothing of it was committed.',
        cause: error,
      })
    case '23502': {
      // Our own row, whose id is null in any other database or transaction.
      const { schema_name: schema, column_name: column } = error as {
        schema_name?: string
        column_name?: string
      }
      if (schema !== 'once' || column !== 'transaction_id') return error
      return new DatabaseError('ONIDN', `Database ${name} is not the database any more that it said it is`, {
        detail:
          `It was ${branch.databaseId}; its id has changed since, or its address leads to another database. ` +
          'Nothing was committed anywhere.',
        hint: 'Run it again: the database is asked anew',
        cause: error,
      })
    }
    case '42501':
      if (branch.link.isDirect) return error
      return new HandlerError(
        'ONROL',
        `The handler left a role in force in database ${name} that may not use schema once`,
        {
          detail: (error as Error).message,
          hint: 'Run RESET ROLE before the handler returns',
          cause: error,
        },
      )
    default:
      return fromOwn(name, error)
  }
}

/** As {@link reasonOf}, for the codes that mean something else at PREPARE than elsewhere. */
export function refusalOf(branch: Branch, error: unknown): unknown {
  const { name } = branch.database
  const cause = error
  switch (codeOf(error)) {
    case '55000':
      return new DatabaseError(
        'PREPARE_DISABLED',
        `Database ${name} has prepared transactions switched off`,
        {
          detail: 'max_prepared_transactions is 0 on its server; nothing was committed anywhere.',
          hint: 'alter system set max_prepared_transactions = 100; and restart the server',
          cause,
        },
      )
    case '53200':
      return new LimitError(
        'NO_SLOTS',
        `The server of database ${name} has no room for another prepared transaction`,
        {
          detail:
            'All max_prepared_transactions are taken, or it is out of memory; nothing was committed anywhere.',
          hint: 'Look for orphans: npx pgonce in-doubt. If there are none: alter system set max_prepared_transactions = …, restart',
          cause,
        },
      )
    case '0A000':
      return new HandlerError(
        'CANNOT_PREPARE',
        `What the handler did in database ${name} cannot be prepared`,
        {
          detail: (error as Error).message,
          hint: 'Leave NOTIFY, LISTEN, temporary tables, WITH HOLD cursors and exported snapshots out of transactions over several databases',
          cause,
        },
      )
    default:
      return reasonOf(branch, error)
  }
}

export function swallowed(branch: Pick<Branch, 'database' | 'failure'>): HandlerError {
  return new HandlerError(
    'SWALLOWED',
    `A statement in database ${branch.database.name} failed, and the handler went on`,
    {
      detail: 'Postgres refuses everything after a failed statement, so the transaction was rolled back.',
      hint: 'Let the error out of the handler, or run the statement behind a savepoint',
      cause: branch.failure,
    },
  )
}

/** What a handler returned. A query that it only built was never sent, and nothing would say so. */
export function refuseUnexecuted<T>(result: T): T {
  if (!isUnexecuted(result) && !(Array.isArray(result) && result.some(isUnexecuted))) return result
  throw new HandlerError('NOT_EXECUTED', 'The handler returned a query that it did not execute', {
    detail: 'A query of Kysely does nothing until it is executed. Everything was rolled back.',
    hint: 'Add .execute() and await it: await trx.updateTable(…).set(…).execute()',
  })
}

/** By what it can do, as Kysely's builders have it: the handler's may be another copy of the module than ours. */
function isUnexecuted(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  const { toOperationNode, execute } = value as { toOperationNode?: unknown; execute?: unknown }
  return typeof toOperationNode === 'function' && typeof execute === 'function'
}

export function lost(branch: Branch, cause: unknown): AbortedError {
  return new AbortedError(
    'CONNECTION_LOST',
    `The connection to ${branch.database.name} was lost; the transaction was rolled back`,
    {
      cause,
    },
  )
}

export function outcomeUnknown(id: string | null, branch: Branch, cause: unknown): OutcomeUnknownError {
  return new OutcomeUnknownError(id, `Database ${branch.database.name} was lost while it was committing`, {
    detail: 'Whether it committed is decided there, but this process was not told.',
    hint:
      id === null
        ? 'Deliver the message again: its claim knows. Or use `record: true` to be able to ask'
        : `await once.outcome('${id}')`,
    cause,
  })
}
