/**
 * What went wrong on the way to a commit, told in terms of what the handler or the database did.
 */

import type { Database } from '../connection/database.ts'
import {
  AbortedError,
  codeOf,
  DatabaseError,
  fromOwn,
  HandlerError,
  isErrorAnswer,
  LimitError,
  OutcomeUnknownError,
  PgonceError,
} from '../errors.ts'
import type { Branch } from './branch.ts'

/** An error of our own statements, told in terms of what the handler or the database did. */
export function reasonOf(branch: Branch, error: unknown): unknown {
  const { name } = branch.database
  const cause = error
  switch (codeOf(error)) {
    case '25P02':
      return swallowed(branch)
    case '25P01': {
      const what = `The transaction in database ${name} was not open any more`
      return new AbortedError('ROLLED_BACK', what, { detail: 'Nothing of it was committed.', cause })
    }
    case '23502': {
      // Our own row, whose id is null in any other database or transaction.
      const { schema_name: schema, column_name: column } = error as Record<string, unknown>
      if (schema !== 'once' || column !== 'transaction_id') return error
      const what = `Database ${name} is not the database any more that it said it is`
      const was = `It was ${branch.databaseId}; its id has changed since, or its address leads to another database`
      const hint = 'Run it again: the database is asked anew'
      return new DatabaseError('ONIDN', what, {
        detail: `${was}. Nothing was committed anywhere.`,
        hint,
        cause,
      })
    }
    case '42501': {
      if (branch.link.isDirect) return error
      const what = `The handler left a role in force in database ${name} that may not use schema once`
      const hint = 'Run RESET ROLE before the handler returns'
      return new HandlerError('ONROL', what, { detail: (error as Error).message, hint, cause })
    }
    default:
      return fromOwn(name, error)
  }
}

/** As {@link reasonOf}, for the codes that mean something else at PREPARE than elsewhere. */
export function refusalOf(branch: Branch, error: unknown): unknown {
  const { name } = branch.database
  const cause = error
  switch (codeOf(error)) {
    case '55000': {
      const what = `Database ${name} has prepared transactions switched off`
      const detail = 'max_prepared_transactions is 0 on its server; nothing was committed anywhere.'
      const hint = 'alter system set max_prepared_transactions = 100; and restart the server'
      return new DatabaseError('PREPARE_DISABLED', what, { detail, hint, cause })
    }
    case '53200': {
      const what = `The server of database ${name} has no room for another prepared transaction`
      return new LimitError('NO_SLOTS', what, { detail: noSlots, hint: noSlotsHint, cause })
    }
    case '0A000': {
      const what = `What the handler did in database ${name} cannot be prepared`
      return new HandlerError('CANNOT_PREPARE', what, {
        detail: (error as Error).message,
        hint: leaveOut,
        cause,
      })
    }
    default:
      return reasonOf(branch, error)
  }
}

const noSlots =
  'All max_prepared_transactions are taken, or it is out of memory; nothing was committed anywhere.'
const noSlotsHint =
  'Look for orphans: npx pgonce in-doubt. If there are none: alter system set max_prepared_transactions = …, restart'
const leaveOut =
  'Leave NOTIFY, LISTEN, temporary tables, WITH HOLD cursors and exported snapshots out of transactions over several databases'

export function swallowed({ database, failure: cause }: Pick<Branch, 'database' | 'failure'>): HandlerError {
  const what = `A statement in database ${database.name} failed, and the handler went on`
  const detail = 'Postgres refuses everything after a failed statement, so the transaction was rolled back.'
  const hint = 'Let the error out of the handler, or run the statement behind a savepoint'
  return new HandlerError('SWALLOWED', what, { detail, hint, cause })
}

/** Before the decision a lost connection means that the transaction is rolled back. */
export function asAborted({ name }: Database, error: unknown): unknown {
  if (isErrorAnswer(error) || (error instanceof PgonceError && !(error instanceof AbortedError))) return error
  if (error instanceof AbortedError && error.code !== 'CONNECTION_LOST') return error
  const detail = 'The transaction is rolled back in every database.'
  const options = { detail, hint: idleHint, cause: error }
  return new AbortedError('CONNECTION_LOST', `The connection to ${name} was lost`, options)
}

const idleHint =
  'If the server ended an idle session: a handler may wait no longer than idleTimeout between two statements'

export function madeReadOnly({ name }: Database): DatabaseError {
  const detail = 'default_transaction_read_only is on. Nothing was written.'
  const hint = 'alter system set default_transaction_read_only = off; or wait for whoever has set it'
  return new DatabaseError('READ_ONLY', `Database ${name} was made read-only`, { detail, hint })
}

export function ended({ name }: Database): HandlerError {
  const hint =
    'Await every query inside the handler; for queries outside it use a Kysely instance of your own'
  return new HandlerError('ENDED', `The transaction on ${name} is over`, { hint })
}

export function notAwaited(text: string): HandlerError {
  const what = `The handler returned before a query was answered: ${text.slice(0, 80)}`
  const detail = 'Everything is rolled back: nobody could say which of its effects would have been committed.'
  return new HandlerError('NOT_AWAITED', what, { detail, hint: awaitHint })
}

const awaitHint =
  'Await every query: for (const item of items) await …, or await Promise.all(…); not forEach(async …)'

/** What a handler returned. A query that it only built was never sent, and nothing would say so. */
export function refuseUnexecuted<T>(result: T): T {
  if (!isUnexecuted(result) && !(Array.isArray(result) && result.some(isUnexecuted))) return result
  const detail = 'A query of Kysely does nothing until it is executed. Everything was rolled back.'
  const hint = 'Add .execute() and await it: await trx.updateTable(…).set(…).execute()'
  const what = 'The handler returned a query that it did not execute'
  throw new HandlerError('NOT_EXECUTED', what, { detail, hint })
}

/** By what it can do, as Kysely's builders have it: the handler's may be another copy of the module than ours. */
function isUnexecuted(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  const { toOperationNode, execute } = value as { toOperationNode?: unknown; execute?: unknown }
  return typeof toOperationNode === 'function' && typeof execute === 'function'
}

export function lost({ database }: Branch, cause: unknown): AbortedError {
  const what = `The connection to ${database.name} was lost; the transaction was rolled back`
  return new AbortedError('CONNECTION_LOST', what, { cause })
}

export function outcomeUnknown(id: string | null, { database }: Branch, cause: unknown): OutcomeUnknownError {
  const again = 'Deliver the message again: its claim knows. Or use `record: true` to be able to ask'
  const hint = id === null ? again : `await once.outcome('${id}')`
  const detail = 'Whether it committed is decided there, but this process was not told.'
  const what = `Database ${database.name} was lost while it was committing`
  return new OutcomeUnknownError(id, what, { detail, hint, cause })
}
