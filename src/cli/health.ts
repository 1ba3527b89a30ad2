/** `once.health` as the commands show it. Its limits are in SQL, and nowhere else. @see sql/operator/health.sql */
import type { Link } from '../connection/link.ts'
import { sayAge } from './output.ts'

export interface HealthRow {
  /** Its unit stands last in it: `…_seconds`, `…_bytes`, `…_ratio`. */
  readonly name: string
  readonly status: 'ok' | 'warn' | 'critical'
  /** Null: there is nothing to look at. */
  readonly value: number | null
  readonly warn: number | null
  readonly critical: number | null
  /** What to type; null if the status is `ok`. */
  readonly hint: string | null
}

/** Every check of a database. */
export async function readHealth(session: Link): Promise<readonly HealthRow[]> {
  const { rows } = await session.query<HealthRow>(
    `select h.name, h.status, h.value::float8 as value, h.warn::float8 as warn, h.critical::float8 as critical, h.hint
       from once.health h`,
  )
  return rows
}

/** The value with its unit, and the limit that it has reached. */
export function sayHealth({
  name,
  status,
  value,
  warn,
  critical,
}: HealthRow & { readonly value: number }): string {
  const limit = status === 'critical' ? critical : status === 'warn' ? warn : null
  return `${sayValue(name, value)}${limit === null ? '' : ` (${status} from ${sayValue(name, limit)} on)`}`
}

function sayValue(name: string, value: number): string {
  if (name.endsWith('_seconds')) return sayAge(value)
  if (name.endsWith('_ratio')) return `${Math.round(value * 100)} %`
  return value.toLocaleString('en-US')
}
