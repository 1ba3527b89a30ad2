/**
 * What a transaction over two servers costs the client's processor. Measured in a process of its own, in which nothing
 * else goes on.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { type Comparison, type Contender, compare, type Figure, figureOf } from './harness.ts'
import type { Servers } from './servers.ts'
import { openBoth } from './two-phase.ts'

export async function clientCpu({ a, b }: Servers, quick: boolean): Promise<Figure[]> {
  const instructions = JSON.stringify({ a, b, rounds: quick ? 10 : 40 } satisfies Instructions)
  const { stdout } = await promisify(execFile)(process.execPath, [import.meta.filename, instructions])
  const found = JSON.parse(stdout) as Comparison
  const microseconds = (milliseconds: number) => Math.round(milliseconds * 1000)
  const note = `${microseconds(found.ours)} us of CPU, textbook ${microseconds(found.theirs)} us`
  return [figureOf('transaction_client_cpu_vs_textbook', found, { atMost: 1.1 }, note)]
}

interface Instructions {
  readonly a: string
  readonly b: string
  readonly rounds: number
}

if (import.meta.main) {
  const { a, b, rounds } = JSON.parse(process.argv[2] ?? '') as Instructions
  await using both = openBoth({ a, b }, 16)
  const found = await compare(cpuOf(both.ours), cpuOf(both.textbook), { operations: 160, rounds })
  console.log(JSON.stringify(found))
}

/** The milliseconds of CPU that it takes, in place of the time. */
function cpuOf(contender: Contender): Contender {
  return async (operations) => {
    const before = process.cpuUsage()
    await contender(operations)
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  }
}
