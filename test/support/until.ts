import { setTimeout as sleep } from 'node:timers/promises'

type Falsy = false | 0 | '' | null | undefined

/**
 * Waits until a condition holds, and gives what it said. It is asked again and again; the deadline only bounds a test
 * that hangs.
 */
export async function until<T>(
  what: string,
  condition: () => T | PromiseLike<T>,
): Promise<Exclude<T, Falsy>> {
  for (const deadline = performance.now() + 30_000; performance.now() < deadline; await sleep(5)) {
    const found = await condition()
    if (found) return found as Exclude<T, Falsy>
  }
  throw new Error(`Waited in vain until ${what}`)
}
