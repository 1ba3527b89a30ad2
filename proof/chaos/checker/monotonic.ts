/**
 * Monotonic producer: each producer counts, and sends every number until it is acknowledged, again and again if
 * need be. Numbers take effect once, in order.
 *
 *     lost           an acknowledged number has no effect
 *     duplicate      a number has two
 *     nonmonotonic   a number took effect after a larger one
 *     G1a            a number has an effect, of which every attempt failed
 *     unexpected     a number has an effect that was never sent
 */
import type { Increment, Operation } from '../history.ts'
import { pair } from './actions.ts'
import { findings, type Verdict } from './verdict.ts'

export interface MonotonicOptions {
  /** Whether a producer has one number on its way at a time; else their order says nothing. @defaultValue true */
  readonly ordered?: boolean
}

export function checkMonotonic(history: readonly Operation[], { ordered = true }: MonotonicOptions): Verdict {
  const actions = pair(history)
  const found = findings()
  const sent = new Map<string, Map<number, { type: 'ok' | 'info' | 'fail'; index: number }>>()
  for (const { f, asked, type, index } of actions) {
    if (f !== 'inc') continue
    const { producer, sequence } = asked as Increment
    const numbers = sent.get(producer) ?? new Map()
    sent.set(producer, numbers)
    const before = numbers.get(sequence)
    // The best of its attempts counts: acknowledged, perhaps, none.
    if (before === undefined || type === 'ok' || (type === 'info' && before.type === 'fail'))
      numbers.set(sequence, { type, index })
  }
  for (const { f, type, answered, index } of actions) {
    if (f !== 'effects' || type !== 'ok') continue
    const effects = answered as Readonly<Record<string, readonly number[]>>
    for (const producer of new Set([...sent.keys(), ...Object.keys(effects)])) {
      const seen = new Set<number>()
      const asked = sent.get(producer)
      let largest = Number.NEGATIVE_INFINITY
      for (const sequence of effects[producer] ?? []) {
        const from = asked?.get(sequence)
        if (seen.has(sequence)) found.anomaly('duplicate', { index, producer, sequence })
        else if (ordered && sequence < largest)
          found.anomaly('nonmonotonic', { index, producer, sequence, after: largest })
        if (from === undefined) found.anomaly('unexpected', { index, producer, sequence })
        else if (from.type === 'fail') found.anomaly('G1a', { index: from.index, producer, sequence })
        seen.add(sequence)
        largest = Math.max(largest, sequence)
      }
      for (const [sequence, { type: outcome, index: at }] of asked ?? [])
        if (outcome === 'ok' && !seen.has(sequence)) found.anomaly('lost', { index: at, producer, sequence })
    }
  }
  return found.verdict(actions)
}
