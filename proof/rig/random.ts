/** Dice that fall the same way for the same seed. */
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64'
import { xoroshiro128plusFromState } from 'pure-rand/generator/xoroshiro128plus'
import { skipN } from 'pure-rand/utils/skipN'

export interface Random {
  /** At least 0, less than 1. */
  next(): number
  /** A whole number, at least 0, less than the bound. */
  below(bound: number): number
  chance(probability: number): boolean
  pick<T>(values: readonly T[]): T
  /** Mostly short, rarely long: a power law between the two. */
  between(least: number, most: number): number
}

/** Seeded by two numbers, so that each part of a run can have a stream of its own. */
export function random(seed: number, stream = 0): Random {
  const state = [seed | 0, Math.floor(seed / 4294967296) ^ 0x9e3779b9, stream | 0, 0x85ebca6b]
  const generator = xoroshiro128plusFromState(state)
  // Seeds that are close to each other begin alike.
  skipN(generator, 20)
  const next = () => uniformFloat64(generator)
  return {
    next,
    below: (bound) => Math.floor(next() * bound),
    chance: (probability) => next() < probability,
    pick: (values) => values[Math.floor(next() * values.length)] as (typeof values)[number],
    between: (least, most) => least * (most / least) ** next(),
  }
}
