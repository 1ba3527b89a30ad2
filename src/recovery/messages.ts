/**
 * What databases say in a recovery, as far as a courier reads it: one JSON object a row. Whatever is not as expected is
 * an error, never a default.
 *
 * @see sql/recovery/ask.sql, apply.sql
 */
import { DatabaseError } from '../errors.ts'

const isText = (value: unknown): value is string => typeof value === 'string'
const isTextOrNull = (value: unknown): value is string | null => value === null || isText(value)
const isCount = (value: unknown): value is number => Number.isSafeInteger(value)
const isTrue = (value: unknown): value is true => value === true
const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
const isOutcome = (value: unknown): value is 'committed' | 'aborted' =>
  value === 'committed' || value === 'aborted'
const areGids = (value: unknown): value is readonly string[] | undefined =>
  value === undefined || (Array.isArray(value) && value.every(isText))

const news = { subject: isText, detail: isText }
const loss = { subject: isText, participant: isText, home: isText }

/** Each kind of row with its fields, by the field that tells it, or by its "action". */
const rows = {
  id: { id: isText },
  question: { batch: isText, to: isText, question: isObject, gids: areGids },
  next: { next: isObject },
  again: { again: isTrue },
  run: { statement: isText, role: isTextOrNull, gid: isText, id: isText, outcome: isOutcome },
  pending: news,
  unfinished: news,
  proven: { count: isCount },
  purged: { count: isCount },
  'lost branch': loss,
  'lost decision': loss,
} as const

type Kind = keyof typeof rows
type Fields<Checks> = {
  readonly [Name in keyof Checks]: Checks[Name] extends (value: unknown) => value is infer T ? T : never
}
export type Row<One extends Kind> = {
  [Each in One]: { readonly kind: Each } & Fields<(typeof rows)[Each]>
}[One]

export const told = ['pending', 'unfinished', 'proven', 'purged', 'lost branch', 'lost decision'] as const
export type Told = Row<(typeof told)[number]>

/** @throws DatabaseError `SCHEMA_VERSION` if it is none of these */
export function read<One extends Kind>(text: string, kinds: readonly One[]): Row<One> {
  const said = parsed(text)
  const kind = kinds.find((one) => ('action' in said ? said.action === one : one in said))
  if (kind === undefined) throw unexpected(text)
  for (const [name, isRight] of Object.entries(rows[kind])) if (!isRight(said[name])) throw unexpected(text)
  return { ...said, kind } as Row<One>
}

function parsed(text: string): Record<string, unknown> {
  try {
    const said: unknown = JSON.parse(text)
    return isObject(said) ? { ...said } : {}
  } catch {
    return {}
  }
}

/** An answer that nobody can have given. */
export function unexpected(said: string): DatabaseError {
  const what = `A database said in a recovery what nobody knows: ${said.slice(0, 200)}`
  return new DatabaseError('SCHEMA_VERSION', what, {
    detail: 'Nothing of it was done.',
    hint: 'Bring this package and all databases to one version: npx pgonce migrate',
  })
}
