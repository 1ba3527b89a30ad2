/** Dice that fall the same way for the same seed. */

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

/** sfc32, seeded by two numbers, so that each part of a schedule can have a stream of its own. */
export function random(seed: number, stream = 0): Random {
  let a = seed | 0
  let b = Math.floor(seed / 4294967296) ^ 0x9e3779b9
  let c = Math.imul(stream ^ 0x85ebca6b, 0xc2b2ae35)
  let counter = 1
  const next = (): number => {
    const sum = (a + b + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = ((c << 21) | (c >>> 11)) + sum
    return (sum >>> 0) / 4294967296
  }
  for (let turn = 0; turn < 12; turn += 1) next()
  return {
    next,
    below: (bound) => Math.floor(next() * bound),
    chance: (probability) => next() < probability,
    pick: (values) => values[Math.floor(next() * values.length)] as (typeof values)[number],
    between: (least, most) => least * (most / least) ** next(),
  }
}
