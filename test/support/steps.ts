/** Steps of the protocol as they happen, for tests that act at one of them. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Step, StepEvent } from '../../src/index.ts'
import type { TestContext } from './database.ts'

/** Acts when the next such step begins or has ended. Steps are known to the whole process: for serial tests. */
export function at(
  t: TestContext,
  step: Step,
  when: 'start' | 'asyncEnd',
  database: string,
  act: () => void | Promise<void>,
): void {
  const name = `tracing:pgonce:${step}:${when}`
  const listener = (event: unknown) => {
    if ((event as StepEvent).database !== database) return
    unsubscribe(name, listener)
    void act()
  }
  subscribe(name, listener)
  t.teardown(() => unsubscribe(name, listener))
}
