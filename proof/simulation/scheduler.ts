/**
 * The only thing that happens in a simulation is the next event: an arrival, an answer, a step inside a server, a
 * timer. Time passes between events, never during one.
 *
 * The code under test is made of promises. After each event everything that it set going must have run until it
 * waits for another event, or two events would run into each other. Awaiting a few times would be a guess, and a
 * turn of Node's event loop costs more than most events; V8 can be told to empty the microtask queue at once.
 */
import { setFlagsFromString } from 'node:v8'

// Left on: the flag is that of all threads, and another may be about to read its own.
setFlagsFromString('--allow-natives-syntax')
/** Runs every microtask, those that are added on the way, too. Only to be called while none is running. */
const drain = new Function('%PerformMicrotaskCheckpoint()') as () => void

/** What lives and dies at once: a coordinator or a recoverer with all its promises. */
export interface Process {
  readonly name: string
  alive: boolean
  /** Milliseconds that its clock is ahead. */
  skew: number
  /** Nothing of it runs before: it is stopped, or its machine is. */
  pausedUntil: number
}

interface Scheduled {
  time: number
  readonly order: number
  /** Whose it is; it is dropped when that process dies. */
  readonly owner: Process | undefined
  task: (() => void) | undefined
}

export interface Scheduler {
  /** Milliseconds since the beginning. */
  readonly now: number
  /** The process whose event is at hand; undefined in a server, or on the wire. */
  readonly current: Process | undefined
  readonly events: number
  /** What is due at the same time happens in the order in which it was scheduled. */
  at(time: number, owner: Process | undefined, task: () => void): Scheduled
  after(milliseconds: number, owner: Process | undefined, task: () => void): Scheduled
  cancel(event: Scheduled): void
  /** Runs events until a condition holds, or time or events run out; whether the condition holds. */
  runUntil(condition: () => boolean, time: number): boolean
}

/** More events than any sound schedule has: something turns in circles. */
const mostEvents = 200_000

export function scheduler(): Scheduler {
  const heap: Scheduled[] = []
  let order = 0

  const before = (one: Scheduled, other: Scheduled) =>
    one.time < other.time || (one.time === other.time && one.order < other.order)
  const push = (event: Scheduled) => {
    let at = heap.length
    while (at > 0) {
      const above = (at - 1) >> 1
      const parent = heap[above] as Scheduled
      if (!before(event, parent)) break
      heap[at] = parent
      at = above
    }
    heap[at] = event
  }
  const pop = (): Scheduled | undefined => {
    const top = heap[0]
    const last = heap.pop()
    if (top === undefined || last === undefined || top === last) return top
    let at = 0
    for (;;) {
      let below = 2 * at + 1
      if (below >= heap.length) break
      const right = heap[below + 1]
      if (right !== undefined && before(right, heap[below] as Scheduled)) below += 1
      const child = heap[below] as Scheduled
      if (!before(child, last)) break
      heap[at] = child
      at = below
    }
    heap[at] = last
    return top
  }
  // Fields, not getters: what a getter closes over stays in memory until the next full collection.
  const clock: Mutable<Scheduler> = {
    now: 0,
    current: undefined,
    events: 0,
    at(time, owner, task) {
      const event = { time: Math.max(clock.now, time), order: order++, owner, task }
      push(event)
      return event
    },
    after: (milliseconds, owner, task) => clock.at(clock.now + milliseconds, owner, task),
    cancel(event) {
      event.task = undefined
    },
    runUntil(condition, time) {
      const stop = clock.events + mostEvents
      while (!condition()) {
        const next = heap[0]
        if (next === undefined || next.time > time || clock.events > stop) return false
        pop()
        const { owner, task } = next
        if (task === undefined) continue
        if (owner !== undefined) {
          if (!owner.alive) continue
          if (owner.pausedUntil > next.time) {
            next.time = owner.pausedUntil
            push(next)
            continue
          }
        }
        clock.now = next.time
        clock.events += 1
        clock.current = owner
        task()
        drain()
        clock.current = undefined
      }
      return true
    },
  }
  return clock
}

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] }
