/** What a checker says of a history, and the collecting of it. */
import { type Action, countOf } from './actions.ts'

export interface Anomaly {
  /** As Jepsen and Elle call it. */
  readonly name: string
  readonly count: number
  /** The first few. */
  readonly examples: readonly unknown[]
}

export interface Verdict {
  /** Whether there are no anomalies. */
  readonly valid: boolean
  readonly anomalies: readonly Anomaly[]
  /** Found and allowed: reads across databases that are no snapshot, and what the isolation level permits. */
  readonly expected: readonly Anomaly[]
  /** An invocation without a completion counts as `info`. */
  readonly counts: { readonly ok: number; readonly fail: number; readonly info: number }
}

export interface Findings {
  anomaly(name: string, example: unknown): void
  expected(name: string, example: unknown): void
  verdict(actions: readonly Action[]): Verdict
}

const mostExamples = 5

export function findings(): Findings {
  const found = { anomalies: new Map<string, unknown[]>(), expected: new Map<string, unknown[]>() }
  const counts = new Map<unknown[], number>()
  const add = (to: Map<string, unknown[]>, name: string, example: unknown) => {
    const examples = to.get(name) ?? []
    to.set(name, examples)
    counts.set(examples, (counts.get(examples) ?? 0) + 1)
    if (examples.length < mostExamples) examples.push(example)
  }
  const list = (of: Map<string, unknown[]>): Anomaly[] =>
    [...of].map(([name, examples]) => ({ name, count: counts.get(examples) ?? 0, examples }))
  return {
    anomaly: (name, example) => add(found.anomalies, name, example),
    expected: (name, example) => add(found.expected, name, example),
    verdict: (actions) => ({
      valid: found.anomalies.size === 0,
      anomalies: list(found.anomalies),
      expected: list(found.expected),
      counts: countOf(actions),
    }),
  }
}
