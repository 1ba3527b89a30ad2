/** `once.health`, for doctor and metrics. Its limits are in SQL, and nowhere else. @see sql/operator/health.sql */
import type { Link } from '../connection/link.ts'

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
