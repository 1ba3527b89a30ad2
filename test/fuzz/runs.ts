/**
 * How the fuzz tests run: with one seed, so that what passed once passes again; it is printed when something fails.
 *
 * PGONCE_FUZZ_SEED is another one, or `random`, to look for more. PGONCE_FUZZ_RUNS multiplies how often each
 * property is tried: 1 is what CI does.
 */
import { randomInt } from 'node:crypto'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

const seed =
  process.env.PGONCE_FUZZ_SEED === 'random' ? randomInt(2 ** 31) : (numberOf('PGONCE_FUZZ_SEED') ?? 1)
const factor = numberOf('PGONCE_FUZZ_RUNS') ?? 1
/** By how much a test may take longer. */
export const stretch = Math.max(1, factor)

function numberOf(variable: string): number | undefined {
  const text = process.env[variable]
  if (text === undefined || text === '') return undefined
  const value = Number(text)
  if (!Number.isFinite(value)) throw new Error(`${variable}: expected a number, got ${text}`)
  return value
}

/** Tries a property; what it says of the smallest failing case, or undefined if it held. */
export async function tryProperty<T>(
  what: string,
  values: fc.Arbitrary<T>,
  property: (value: T) => Promise<void> | void,
  runs: number,
): Promise<string | undefined> {
  const found = await fc.check(
    fc.asyncProperty(values, async (value) => property(value)),
    {
      seed,
      numRuns: Math.max(1, Math.round(runs * factor)),
      // Each case costs round trips; the first hundred steps of shrinking say what matters.
      interruptAfterTimeLimit: 120_000 * stretch,
      markInterruptAsFailure: false,
    },
  )
  if (found.interrupted)
    console.warn(`${what}: in the time there was ${found.numRuns} of ${runs * factor} cases were tried`)
  if (!found.failed) return undefined
  const said = String(
    found.errorInstance instanceof Error ? found.errorInstance.message : found.errorInstance,
  )
  const again = `PGONCE_FUZZ_SEED=${seed}${factor === 1 ? '' : ` PGONCE_FUZZ_RUNS=${factor}`}`
  return `${what}: ${said}\n  case: ${fc.stringify(found.counterexample?.[0])}\n  again: ${again}`
}

/** Asserts a property. */
export async function holds<T>(
  t: ExecutionContext,
  what: string,
  values: fc.Arbitrary<T>,
  property: (value: T) => Promise<void> | void,
  runs: number,
): Promise<void> {
  const failure = await tryProperty(what, values, property, runs)
  if (failure === undefined) t.pass()
  else t.fail(failure)
}
