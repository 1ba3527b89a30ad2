/**
 * Measuring two ways of doing the same thing. Absolute times on a busy machine mean little, so both run in
 * turn, in many short rounds, and what counts is the ratio within a round: noise that lasts longer than a
 * round hits both.
 */
import type { Servers } from './servers.ts'

/** What is measured together, with the keys of the figures that it gives. */
export interface Case {
  readonly keys: readonly string[]
  measure(servers: Servers, quick: boolean): Promise<Figure[]>
}

/** A figure by its key in the report. */
export interface Figure {
  readonly key: string
  readonly value: number
  readonly target?: Target
  /** The middle half of the rounds: first and third quartile. */
  readonly spread?: readonly [number, number]
  /** For round trips: how many statements went with them. */
  readonly messages?: number
  /** For people: what was measured, in units. */
  readonly note?: string
}

/** What the figure should be: at least, at most or exactly so much. */
export type Target = { readonly atLeast: number } | { readonly atMost: number } | { readonly exactly: number }

/** Does so many operations. May give the milliseconds that count, if those are not all that it took. */
export type Contender = (operations: number) => Promise<unknown>

export interface Comparison {
  /** Time of theirs divided by time of ours: above 1 we are faster. */
  readonly ratio: number
  readonly spread: readonly [number, number]
  /** Milliseconds an operation, median over the rounds. */
  readonly ours: number
  readonly theirs: number
}

export interface CompareOptions {
  readonly rounds: number
  /** Operations of each in a round. */
  readonly operations: number
  /** Rounds before those that count. @defaultValue a fifth of them, at least 2 */
  readonly warmup?: number
}

/** Runs two contenders in turn, each first in every other round. */
export async function compare(
  ours: Contender,
  theirs: Contender,
  { rounds, operations, warmup = Math.max(2, Math.ceil(rounds / 5)) }: CompareOptions,
): Promise<Comparison> {
  const times: { ours: number; theirs: number }[] = []
  for (let round = -warmup; round < rounds; round += 1) {
    let a: number
    let b: number
    if (round % 2 === 0) {
      a = await timed(ours, operations)
      b = await timed(theirs, operations)
    } else {
      b = await timed(theirs, operations)
      a = await timed(ours, operations)
    }
    if (round >= 0) times.push({ ours: a, theirs: b })
  }
  const ratios = times.map((time) => time.theirs / time.ours)
  return {
    ratio: median(ratios),
    spread: [quantile(ratios, 0.25), quantile(ratios, 0.75)],
    ours: median(times.map((time) => time.ours)),
    theirs: median(times.map((time) => time.theirs)),
  }
}

/** The figure of a comparison: how many times as fast we are, at least so many; or what we cost in theirs, at most. */
export function figureOf(
  key: string,
  { ratio, spread: [low, high] }: Comparison,
  target: Target | undefined,
  note: string,
): Figure {
  const isCost = target !== undefined && 'atMost' in target
  return {
    key,
    value: isCost ? 1 / ratio : ratio,
    spread: isCost ? [1 / high, 1 / low] : [low, high],
    ...(target ? { target } : {}),
    note,
  }
}

async function timed(contender: Contender, operations: number): Promise<number> {
  const start = performance.now()
  const counted = await contender(operations)
  return (typeof counted === 'number' ? counted : performance.now() - start) / operations
}

/** Runs a task so many times, at most `width` of them at once. The task is told which of its workers runs it. */
export async function concurrently(
  width: number,
  times: number,
  task: (worker: number) => Promise<unknown>,
): Promise<void> {
  let left = times
  const work = async (worker: number) => {
    while (left > 0) {
      left -= 1
      await task(worker)
    }
  }
  await Promise.all(Array.from({ length: width }, (_, worker) => work(worker)))
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  const place = (sorted.length - 1) * share
  const below = sorted[Math.floor(place)] ?? Number.NaN
  const above = sorted[Math.ceil(place)] ?? Number.NaN
  return below + (above - below) * (place - Math.floor(place))
}
