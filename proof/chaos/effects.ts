/**
 * What is checked of every attempt, whatever its workload: it took effect once in each database that it wrote to,
 * or in none; as it was told, and as `once.outcome` says.
 */
import type postgres from 'postgres'
import type { Anomaly } from './checker/index.ts'
import type { Attempt } from './recorder.ts'
import { type Name, names } from './servers.ts'

export interface EffectsVerdict {
  readonly anomalies: readonly Anomaly[]
  /** Attempts whose outcome was not known at first, and is now. */
  readonly resolved: { readonly committed: number; readonly aborted: number; readonly purged: number }
}

export type EffectsOf = ReadonlyMap<Name, ReadonlyMap<string, number>>

export async function readEffects(connect: (name: Name) => postgres.Sql): Promise<EffectsOf> {
  const found = new Map<Name, ReadonlyMap<string, number>>()
  for (const name of names) {
    const rows = await connect(name)<{ attempt: string; n: number }[]>`
      select attempt, count(*)::int as n from effect group by attempt`
    found.set(name, new Map(rows.map(({ attempt, n }) => [attempt, n])))
  }
  return found
}

/** Where an attempt took effect, of the databases where it should. */
export function reached(attempt: Attempt, effects: EffectsOf): Name[] {
  return attempt.databases.filter((name) => (effects.get(name)?.get(attempt.attempt) ?? 0) > 0)
}

export function checkEffects(attempts: ReadonlyMap<string, Attempt>, effects: EffectsOf): EffectsVerdict {
  const anomalies = new Map<string, unknown[]>()
  const found = (name: string, example: unknown) =>
    void anomalies.set(name, [...(anomalies.get(name) ?? []), example])
  const resolved = { committed: 0, aborted: 0, purged: 0 }

  for (const [name, rows] of effects) {
    for (const [attempt, n] of rows) {
      if (!attempts.get(attempt)?.databases.includes(name)) found('unexpected', { attempt, database: name })
      if (n > 1) found('duplicate', { attempt, database: name, n })
    }
  }
  for (const attempt of attempts.values()) {
    const { databases, completion, outcome, workload } = attempt
    const present = reached(attempt, effects)
    const whole = present.length === databases.length
    const said = {
      attempt: attempt.attempt,
      workload,
      databases,
      present,
      completion: completion?.type,
      error: completion?.error,
      id: completion?.id,
      outcome,
    }
    if (present.length > 0 && !whole) found('partial-commit', said)
    if (completion?.type === 'ok') {
      const expected = (completion.effective ?? true) ? databases.length : 0
      if (present.length < expected) found('lost-write', said)
      if (present.length > expected) found('aborted-write', said)
    }
    if (completion?.type === 'fail' && present.length > 0) found('aborted-write', said)
    if (outcome === 'committed' || outcome === 'aborted' || outcome === 'purged') {
      resolved[outcome] += 1
      // A batch of duplicates commits, too, and leaves nothing.
      const silent = workload === 'queue' || workload === 'monotonic'
      if (outcome === 'committed' && !whole && !silent) found('wrong-outcome', said)
      if (outcome === 'aborted' && present.length > 0) found('wrong-outcome', said)
    }
    if (completion?.internal !== undefined) found('internal-error', { ...said, stack: completion.internal })
  }
  return {
    anomalies: [...anomalies].map(([name, examples]) => ({
      name,
      count: examples.length,
      examples: examples.slice(0, 5),
    })),
    resolved,
  }
}

/**
 * A consumer that lost its partition before it began must not have got through.
 *
 * `take` answers with an epoch; whoever consumes under an older one, begun after that, should have been refused.
 */
export function checkFencing(attempts: ReadonlyMap<string, Attempt>): Anomaly[] {
  const takes: { partition: number; epoch: number; time: number }[] = []
  const examples: unknown[] = []
  for (const { parts, completion } of attempts.values()) {
    if (parts[0]?.f !== 'take' || completion?.type !== 'ok') continue
    const value = completion.parts?.[0]?.value as { partition: number; epoch: number }
    takes.push({ ...value, time: completion.time })
  }
  takes.sort((one, other) => one.time - other.time)
  for (const { attempt, parts, completion, time } of attempts.values()) {
    if (parts[0]?.f !== 'consume' || completion?.type !== 'ok') continue
    const { n, epoch } = parts[0].value as { n: number; epoch: number }
    const newer = takes.find((take) => take.time < time && take.partition === n % 2 && take.epoch > epoch)
    if (newer) examples.push({ attempt, epoch, newer })
  }
  return examples.length === 0
    ? []
    : [{ name: 'stale-owner', count: examples.length, examples: examples.slice(0, 5) }]
}
