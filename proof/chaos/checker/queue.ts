/**
 * Queue: numbers are enqueued at increasing positions of one partition. Consumers fence one another, read on at
 * the stored position, and each number takes effect once, in order. `consume` is `ok` for what was new.
 *
 *     lost-write             a number that was enqueued or consumed, acknowledged, has no effect
 *     duplicate              a number has two effects, or was new to two consumers
 *     nonmonotonic-send      of two numbers that one process enqueued, the later one has the smaller position
 *     nonmonotonic-poll      of two numbers that one process consumed, the later one has the smaller position
 *     nonmonotonic           an effect came after one of a larger position
 *     poll-skip              a position has no effect, and a larger one has
 *     inconsistent-offsets   two numbers at one position, or one at two
 *     G1a                    a number has an effect, though enqueuing or consuming it failed
 *     unexpected             a number has an effect that was never enqueued
 *
 * What the effects in the end do not say about positions is taken from `consume` and, where the workload reads
 * the queue itself at the end, from an operation `log` with `[{n, position}, …]`.
 *
 * @see https://github.com/jepsen-io/jepsen/blob/main/jepsen/src/jepsen/tests/kafka.clj
 */
import type { Consumed, Operation } from '../history.ts'
import { type Action, pair } from './actions.ts'
import { type Findings, findings, type Verdict } from './verdict.ts'

export function checkQueue(history: readonly Operation[]): Verdict {
  const actions = pair(history)
  const found = findings()
  const enqueues = actions.filter(({ f }) => f === 'enqueue')
  const consumes = actions.filter(({ f }) => f === 'consume')
  const finals = actions.filter(({ f, type }) => f === 'effects' && type === 'ok')
  const log = actions
    .filter(({ f, type }) => f === 'log' && type === 'ok')
    .flatMap(({ answered }) => answered as readonly Consumed[])
  const consumed = consumes
    .filter(({ type }) => type === 'ok')
    .map(({ answered, process, index }) => ({ ...(answered as Consumed), process, index }))
  const positions = checkPositions(found, [
    ...log,
    ...consumed,
    ...finals.flatMap(({ answered }) => answered as readonly Consumed[]),
  ])

  const taken = new Map<number, number>()
  const last = new Map<number, Consumed>()
  for (const { n, position, process, index } of consumed) {
    const first = taken.get(n)
    if (first !== undefined) found.anomaly('duplicate', { index, n, first })
    taken.set(n, index)
    const before = last.get(process)
    if (before && position < before.position)
      found.anomaly('nonmonotonic-poll', { index, process, n, position, after: before })
    last.set(process, { n, position })
  }
  checkSends(found, enqueues, positions)
  for (const { answered, index } of finals)
    checkEffects(found, answered as readonly Consumed[], index, enqueues, consumes, consumed, positions)
  return found.verdict(actions)
}

/** The position of each number, by whoever tells it. */
function checkPositions(found: Findings, told: readonly Consumed[]): Map<number, number> {
  const positions = new Map<number, number>()
  const numbers = new Map<number, number>()
  for (const { n, position } of told) {
    const where = positions.get(n)
    const who = numbers.get(position)
    if (where !== undefined && where !== position)
      found.anomaly('inconsistent-offsets', { n, positions: [where, position] })
    if (who !== undefined && who !== n) found.anomaly('inconsistent-offsets', { position, numbers: [who, n] })
    // Whoever told it first is believed.
    if (where === undefined) positions.set(n, position)
    if (who === undefined) numbers.set(position, n)
  }
  return positions
}

function checkSends(
  found: Findings,
  enqueues: readonly Action[],
  positions: ReadonlyMap<number, number>,
): void {
  const last = new Map<number, { n: number; position: number }>()
  for (const { process, type, asked, index } of enqueues) {
    const n = asked as number
    const position = positions.get(n)
    if (type === 'fail' || position === undefined) continue
    const before = last.get(process)
    if (before && position < before.position)
      found.anomaly('nonmonotonic-send', { index, process, n, position, after: before })
    last.set(process, { n, position })
  }
}

function checkEffects(
  found: Findings,
  effects: readonly Consumed[],
  index: number,
  enqueues: readonly Action[],
  consumes: readonly Action[],
  consumed: readonly (Consumed & { readonly index: number })[],
  positions: ReadonlyMap<number, number>,
): void {
  const seen = new Set<number>()
  const occupied = new Set<number>()
  let largest = Number.NEGATIVE_INFINITY
  for (const { n, position } of effects) {
    if (seen.has(n)) found.anomaly('duplicate', { index, n, position })
    else if (position < largest) found.anomaly('nonmonotonic', { index, n, position, after: largest })
    seen.add(n)
    occupied.add(position)
    largest = Math.max(largest, position)
  }

  const enqueued = new Map(enqueues.map(({ asked, type, index: at }) => [asked as number, { type, at }]))
  for (const [n, { type, at }] of enqueued)
    if (type === 'ok' && !seen.has(n)) found.anomaly('lost-write', { index: at, n })
  for (const { n, index: at } of consumed)
    if (!seen.has(n) && enqueued.get(n)?.type !== 'ok') found.anomaly('lost-write', { index: at, n })
  for (const [n, position] of positions)
    if (position < largest && !occupied.has(position)) found.anomaly('poll-skip', { index, n, position })

  // A consumer may not know at the invocation what it is going to get: then it may have been this one.
  const open = consumes.some(({ type, asked }) => type === 'info' && (asked as Consumed | null)?.n == null)
  const attempts = new Map<number, boolean>()
  for (const { type, asked, answered } of consumes) {
    const n = ((answered ?? asked) as Consumed | null)?.n
    if (n != null) attempts.set(n, attempts.get(n) || type !== 'fail')
  }
  for (const n of seen) {
    const from = enqueued.get(n)
    if (from === undefined) found.anomaly('unexpected', { index, n })
    else if (from.type === 'fail') found.anomaly('G1a', { index: from.at, n })
    else if (attempts.get(n) === false && !open) found.anomaly('G1a', { index, n })
  }
}
