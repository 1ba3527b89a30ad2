/**
 * What the protocol takes from outside besides SQL: time and chance. The simulation puts a clock and dice of its
 * own in their place, so that a schedule can be run again.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

export interface Environment {
  /** Milliseconds since some moment; never goes back. */
  now(): number
  /** Resolves after so many milliseconds. @throws AbortError when the signal cuts it short */
  sleep(milliseconds: number, signal?: AbortSignal): Promise<void>
  /** Runs a task after so many milliseconds, unless what it returns is called before. */
  after(milliseconds: number, task: () => void): () => void
  /** Runs a task as soon as what is about to be written is written. */
  soon(task: () => void): void
  /** At least 0, less than 1. */
  random(): number
  randomUUID(): string
}

export const environment: Environment = {
  now: () => performance.now(),
  sleep: (milliseconds, signal) => sleep(milliseconds, undefined, signal && { signal }),
  after(milliseconds, task) {
    const timer = setTimeout(task, milliseconds)
    return () => clearTimeout(timer)
  },
  soon: (task) => void setImmediate(task),
  random: () => Math.random(),
  randomUUID: () => randomUUID(),
}

/** For the simulation alone. */
export function replaceEnvironment(other: Environment): void {
  Object.assign(environment, other)
}
