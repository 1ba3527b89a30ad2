/** Numbers from a seed, so that a run can be repeated. */

/** 0 or more, below 1. */
export type Random = () => number

/**
 * A small generator, good enough for choosing where to strike.
 * @see https://gist.github.com/tommyettinger/46a874533244883189143505d203312c (mulberry32)
 */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A whole number from 0 to `below - 1`. */
export function pick(random: Random, below: number): number {
  return Math.floor(random() * below)
}
