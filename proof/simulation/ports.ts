/**
 * Where the code under test reaches out, for time and chance, and where it tells its steps: all of it belongs to the
 * process whose event is at hand, in the one world that runs.
 */
import { subscribe } from 'node:diagnostics_channel'
import type { StepEvent } from '../../src/commit/channels.ts'
import { replaceEnvironment } from '../../src/environment.ts'
import { pointOf, steps } from './points.ts'
import type { Scheduler } from './scheduler.ts'
import type { Running, World } from './world.ts'

let world: World | undefined

/** Runs a task in a world; one at a time. */
export function within<T>(one: World, task: () => T): T {
  world = one
  try {
    return task()
  } finally {
    world = undefined
  }
}

function running(): { scheduler: Scheduler; process: Running } {
  const process = world?.scheduler.current
  if (world === undefined || process === undefined) throw new Error('Something runs outside every process')
  return { scheduler: world.scheduler, process: process as Running }
}

replaceEnvironment({
  now() {
    const { scheduler: clock, process } = running()
    return clock.now + process.skew
  },
  sleep(milliseconds, signal) {
    const { scheduler: clock, process } = running()
    return new Promise((resolve, reject) => {
      const leave = () => {
        clock.cancel(event)
        reject(new DOMException('This operation was aborted', 'AbortError'))
      }
      const event = clock.after(milliseconds, process, () => {
        signal?.removeEventListener('abort', leave)
        resolve()
      })
      if (signal?.aborted) leave()
      else signal?.addEventListener('abort', leave, { once: true })
    })
  },
  after(milliseconds, task) {
    const { scheduler: clock, process } = running()
    const event = clock.after(milliseconds, process, task)
    return () => clock.cancel(event)
  },
  soon(task) {
    const { scheduler: clock, process } = running()
    clock.after(0, process, task)
  },
  random: () => running().process.random.next(),
  randomUUID() {
    const { random: dice } = running().process
    const digits = () =>
      Math.floor(dice.next() * 0x100000000)
        .toString(16)
        .padStart(8, '0')
    const [one, two, three, four] = [digits(), digits(), digits(), digits()]
    return `${one}-${two.slice(0, 4)}-4${two.slice(5)}-a${three.slice(1, 4)}-${three.slice(4)}${four}`
  },
})

for (const step of steps) {
  const pass = (point: number) => (event: unknown) => {
    const process = world?.scheduler.current as Running | undefined
    if (world === undefined || process === undefined || !process.alive) return
    const { database } = event as StepEvent
    for (const wire of process.wires)
      if (wire.backend.database.name === database) return void world.reach(point, process, wire, undefined)
  }
  subscribe(`tracing:pgonce:${step}:start`, pass(pointOf(`step ${step}: start`)))
  subscribe(`tracing:pgonce:${step}:asyncEnd`, pass(pointOf(`step ${step}: end`)))
}
