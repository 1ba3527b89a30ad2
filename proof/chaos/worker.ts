/**
 * A coordinator: an application that runs the workloads by the public client. The run starts several of these,
 * gives each an assignment once it is warm, and kills them. What it does goes to file descriptor 3 before it is
 * done, by a write that the process waits for, so that a kill cannot lose it.
 */
import { subscribe } from 'node:diagnostics_channel'
import { writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { environment, replaceEnvironment } from '../../src/environment.ts'
import { OutcomeUnknownError, PgonceError, pgonce, type StepEvent } from '../../src/index.ts'
import { random as randomOf } from '../rig/random.ts'
import type { Assignment, Line, ToCoordinator } from './protocol.ts'
import { workloads } from './workloads/index.ts'
import type { Databases, Done, Lane, Once, Workload } from './workloads/workload.ts'

const clock = process.hrtime.bigint.bind(process.hrtime)
let stopping = false

process.on('message', (message: ToCoordinator) => {
  if ('stop' in message) stopping = true
  else
    void work(message.go).then(
      () => process.exit(0),
      (error) => {
        console.error(error)
        process.exit(1)
      },
    )
})
process.on('disconnect', () => process.exit(0))
say({ type: 'ready' })

async function work(assignment: Assignment): Promise<void> {
  const { slot, life, urls, idleTimeout, skew, point, drain } = assignment
  const start = BigInt(assignment.start)
  const now = () => Number(clock() - start)
  const random = randomOf(assignment.seed)
  if (skew) skewClock(skew)
  if (point) obey(point)
  const once: Once = pgonce<Databases>({
    databases: urls,
    maxConnections: 12,
    connectTimeout: 2_000,
    transaction: { timeout: 6_000, lockTimeout: 2_000, idleTimeout, retries: 3 },
  })
  let count = 0
  const next = () => {
    count += 1
    return count
  }
  const questions = new Set<Promise<void>>()

  const lane = (number: number, workload: Workload): Lane => {
    const name = `${life}.${workload.name}.${number}`
    return {
      once,
      slot,
      number,
      below: random.below,
      pick: random.pick,
      unique: () => life * 100_000 + next(),
      elapsed: () => now() / 1e6,
      resumed: assignment.resumed,
      memory: new Map(),
      sleep: (milliseconds) => sleep(milliseconds),
      async attempt(parts, databases, body) {
        const attempt = `${life}-${next()}`
        const common = { attempt }
        say({ type: 'invoke', time: now(), lane: name, workload: workload.name, parts, databases, ...common })
        let outcome: { done: Done; result: unknown }
        try {
          outcome = await body(attempt)
        } catch (error) {
          const unknown = error instanceof OutcomeUnknownError
          say({
            type: unknown ? 'info' : 'fail',
            time: now(),
            ...common,
            error: describe(error),
            ...(unknown ? { id: error.id } : {}),
            ...(isInternal(error) ? { internal: String((error as Error)?.stack ?? error) } : {}),
          })
          if (unknown && error.id !== null) {
            const asking = ask(once, error.id, attempt).finally(() => questions.delete(asking))
            questions.add(asking)
          }
          return undefined
        }
        say({ type: 'ok', time: now(), ...common, ...outcome.done })
        return outcome.result as never
      },
    }
  }

  const chosen = workloads.filter(({ name }) => assignment.workloads.includes(name))
  if (drain) {
    await Promise.all(chosen.map(async (workload) => await workload.drain?.(lane(0, workload))))
  } else {
    await Promise.all(
      chosen.flatMap((workload) =>
        Array.from(
          { length: Math.max(1, Math.round(workload.lanes * assignment.lanes)) },
          async (_, number) => {
            const own = lane(number, workload)
            while (!stopping) {
              await workload.step(own)
              // A server that is down refuses at once.
              await sleep(2)
            }
          },
        ),
      ),
    )
  }
  await Promise.all(questions)
  await once.close()
}

/** What became of it, as an application would ask: until there is an answer. */
async function ask(once: Once, id: string, attempt: string): Promise<void> {
  while (!stopping) {
    const outcome = await once.outcome(id).catch(() => 'pending')
    if (outcome !== 'pending') return say({ type: 'outcome', attempt, outcome })
    await sleep(100)
  }
}

function obey(point: NonNullable<Assignment['point']>): void {
  const { step, when, nth, action, thenKill } = point
  let times = 0
  subscribe(`tracing:pgonce:${step}:${when}`, (event) => {
    times += 1
    if (times !== nth) return
    const { database, transactionId } = event as StepEvent
    say({ type: 'point', point, database })
    if (thenKill) {
      subscribe('tracing:pgonce:decide:asyncEnd', (decided) => {
        if ((decided as StepEvent).transactionId === transactionId) process.kill(process.pid, 'SIGKILL')
      })
    }
    process.kill(process.pid, action === 'kill' ? 'SIGKILL' : 'SIGSTOP')
  })
}

/** As if this machine's clock were wrong and ran fast or slow. The history has a clock of its own. */
function skewClock({ milliseconds, factor }: NonNullable<Assignment['skew']>): void {
  const RealDate = Date
  const began = RealDate.now()
  const wrong = () => began + milliseconds + (RealDate.now() - began) * factor
  class SkewedDate extends RealDate {
    constructor(...values: unknown[]) {
      if (values.length === 0) super(wrong())
      else super(...(values as [number]))
    }

    static override now() {
      return wrong()
    }
  }
  globalThis.Date = SkewedDate as DateConstructor
  const performanceNow = performance.now.bind(performance)
  performance.now = () => performanceNow() * factor
  const real = { ...environment }
  replaceEnvironment({
    ...real,
    now: () => performance.now(),
    sleep: (time, signal) => real.sleep(time / factor, signal),
    after: (time, task) => real.after(time / factor, task),
  })
}

function describe(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string }
  return `${code ?? (error as Error)?.name}: ${message}`.slice(0, 300)
}

/** Neither ours nor an answer of a server. */
function isInternal(error: unknown): boolean {
  if (error instanceof PgonceError) return false
  const { code } = error as { code?: unknown }
  return typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code) || code === 'XX000'
}

function say(line: Line): void {
  const text = Buffer.from(`${JSON.stringify(line)}\n`)
  for (let written = 0; written < text.length; ) written += writeSync(3, text, written)
}
