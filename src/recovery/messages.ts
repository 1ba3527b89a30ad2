/**
 * What databases say in a recovery, as far as a courier reads it: one JSON object a row. Whatever is not as expected is
 * an error, never a default.
 *
 * @see sql/recovery/ask.sql, apply.sql
 */
import { DatabaseError } from '../errors.ts'

/** For another database; what it says is none of our business. */
export interface Question {
  /** The answers to the questions of a batch are applied together. */
  readonly batch: string
  /** The id of the database that it is for. */
  readonly to: string
  readonly text: string
  /** The branches that wait for the answer. */
  readonly gids: readonly string[]
}

/** To be run outside of a transaction. */
export interface Statement {
  readonly text: string
  /** As whom; null: as we are. */
  readonly role: string | null
  readonly gid: string
  /** The transaction's. */
  readonly id: string
  readonly outcome: 'committed' | 'aborted'
}

const reports = ['pending', 'unfinished', 'proven', 'purged', 'lost branch', 'lost decision'] as const

/** To be reported. What an action does not have is empty, or 1. */
interface Told {
  readonly action: (typeof reports)[number]
  readonly subject: string
  readonly detail: string
  readonly count: number
  readonly participant: string
  readonly home: string
}

/** A row of `once.ask`: one of these. */
export interface Asked {
  /** Which database speaks. */
  readonly id?: string
  readonly question?: Question
  readonly told?: Told
  readonly next?: string
  readonly again?: true
}

/** A row of `once.apply`: one of these. */
export interface Applied {
  readonly statement?: Statement
  readonly told?: Told
}

/** @throws DatabaseError `SCHEMA_VERSION` */
export function readAsked(row: string): Asked {
  const said = objectIn(row)
  if ('id' in said) return { id: text(said, 'id') }
  if ('question' in said) {
    const gids = said.gids ?? []
    if (!Array.isArray(gids) || gids.some((gid) => typeof gid !== 'string')) throw unexpected(row)
    return {
      question: {
        batch: text(said, 'batch'),
        to: text(said, 'to'),
        text: JSON.stringify(said.question),
        gids,
      },
    }
  }
  if ('next' in said) return { next: JSON.stringify(said.next) }
  if (said.again === true) return { again: true }
  return { told: toldIn(said) }
}

/** @throws DatabaseError `SCHEMA_VERSION` */
export function readApplied(row: string): Applied {
  const said = objectIn(row)
  if (said.action !== 'run') return { told: toldIn(said) }
  const outcome = text(said, 'outcome')
  if (outcome !== 'committed' && outcome !== 'aborted') throw unexpected(row)
  const role = said.role === null ? null : text(said, 'role')
  return {
    statement: { text: text(said, 'statement'), role, gid: text(said, 'gid'), id: text(said, 'id'), outcome },
  }
}

function toldIn(said: Record<string, unknown>): Told {
  const action = reports.find((one) => one === said.action)
  if (action === undefined) throw unexpected(JSON.stringify(said))
  const isCount = action === 'proven' || action === 'purged'
  if (isCount && !Number.isSafeInteger(said.count)) throw unexpected(JSON.stringify(said))
  const isLoss = action === 'lost branch' || action === 'lost decision'
  return {
    action,
    subject: isCount ? '' : text(said, 'subject'),
    detail: isCount ? '' : text(said, 'detail'),
    count: isCount ? (said.count as number) : 1,
    participant: isLoss ? text(said, 'participant') : '',
    home: isLoss ? text(said, 'home') : '',
  }
}

function objectIn(row: string): Record<string, unknown> {
  let said: unknown
  try {
    said = JSON.parse(row)
  } catch {
    throw unexpected(row)
  }
  if (typeof said !== 'object' || said === null || Array.isArray(said)) throw unexpected(row)
  return said as Record<string, unknown>
}

function text(said: Record<string, unknown>, name: string): string {
  const value = said[name]
  if (typeof value !== 'string') throw unexpected(JSON.stringify(said))
  return value
}

/** An answer that nobody can have given. */
export function unexpected(row: string): DatabaseError {
  return new DatabaseError(
    'SCHEMA_VERSION',
    `A database said in a recovery what nobody knows: ${row.slice(0, 200)}`,
    {
      detail: 'Nothing of it was done.',
      hint: 'Bring this package and all databases to one version: npx pgonce migrate',
    },
  )
}
