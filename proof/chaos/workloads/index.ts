import { bank } from './bank.ts'
import { listAppend } from './list-append.ts'
import { monotonic } from './monotonic.ts'
import { queue } from './queue.ts'
import type { Workload } from './workload.ts'

export const workloads: readonly Workload[] = [bank, listAppend, queue, monotonic]
