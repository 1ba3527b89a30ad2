/**
 * Judges what a run did by its history alone. An operation that is indeterminate (`info`) may have happened or
 * not, and neither is a failure; but it happened as a whole or not at all.
 */
import type { Operation } from '../history.ts'
import { type BankOptions, checkBank } from './bank.ts'
import { checkListAppend, type ListAppendOptions } from './list-append.ts'
import { checkMonotonic, type MonotonicOptions } from './monotonic.ts'
import { checkQueue } from './queue.ts'
import type { Verdict } from './verdict.ts'

export type { Isolation } from './list-append.ts'
export type { Anomaly, Verdict } from './verdict.ts'

export const workloads = ['bank', 'list-append', 'queue', 'monotonic'] as const

export type Workload = (typeof workloads)[number]

export interface CheckOptions extends BankOptions, ListAppendOptions, MonotonicOptions {}

/** @throws TypeError if it is no history of this workload */
export function check(
  workload: Workload,
  history: readonly Operation[],
  options: CheckOptions = {},
): Verdict {
  switch (workload) {
    case 'bank':
      return checkBank(history, options)
    case 'list-append':
      return checkListAppend(history, options)
    case 'queue':
      return checkQueue(history)
    case 'monotonic':
      return checkMonotonic(history, options)
  }
}
