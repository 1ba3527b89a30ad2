/** One of the threads that run schedules: gets ranges of seeds, gives totals. */
import { parentPort } from 'node:worker_threads'
import { runSeeds } from './run.ts'

export interface Range {
  readonly from: number
  readonly count: number
}

parentPort?.on('message', async ({ from, count }: Range) => {
  try {
    parentPort?.postMessage(await runSeeds(from, count))
  } catch (error) {
    // The listener for rejections that belong to schedules must not swallow what is wrong with the simulation.
    parentPort?.postMessage(error)
  }
})
