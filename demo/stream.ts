/** The stream: two workers that fetch, and the strikes that the plan has for them and for the servers. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Environment } from './environment.ts'
import { type Plan, partitionCount, type Strike } from './plan.ts'
import { startWorkerProcess, type WorkerProcess } from './worker-process.ts'

export interface StreamOptions {
  readonly signal: AbortSignal
  readonly onEvent: (text: string) => void
  /** Milliseconds without any progress after which the stream is given up. */
  readonly patience: number
}

export interface Stream {
  /** Deliveries whose position is committed, over all partitions. */
  readonly done: number
  readonly workerKills: number
  readonly serverKills: number
  /** Resolves when everything is processed and every strike was made; with why not, if nothing moves any more. */
  readonly ended: Promise<string | undefined>
}

interface Slot {
  process: WorkerProcess
  /** What the next fetch of this process ends: when its last batch went out. */
  sentAt: number | undefined
  /** Its last fetch found nothing left. */
  waiting: boolean
  /** It has said that something failed; once an outage is enough. */
  troubled: boolean
  /** It is to be killed, or its successor has not asked for anything yet. */
  struck: boolean
  position: number
  /** Deliveries handed out so far; those that a kill undid are handed out again. */
  handedOut: number
}

/** What a run has come to. */
interface Run {
  readonly plan: Plan
  readonly environment: Environment
  readonly options: StreamOptions
  readonly slots: Slot[]
  /** Strikes that are still to be made. */
  readonly pending: Strike[]
  /** Strikes that are being made. */
  readonly running: Set<Promise<void>>
  readonly resolve: (stalled: string | undefined) => void
  readonly reject: (error: unknown) => void
  over: boolean
  movedAt: number
  serverBusy: boolean
  workerKills: number
  serverKills: number
  /** How long a transaction takes, in milliseconds, smoothed. */
  usual: number
}

/** Starts two workers and feeds them. `ended` rejects if a worker fails, or with the reason of the signal. */
export function startStream(plan: Plan, environment: Environment, options: StreamOptions): Stream {
  const { promise, resolve, reject } = Promise.withResolvers<string | undefined>()
  const run: Run = {
    ...{ plan, environment, options, resolve, reject },
    slots: [],
    pending: [...plan.strikes],
    running: new Set(),
    over: false,
    movedAt: performance.now(),
    serverBusy: false,
    workerKills: 0,
    serverKills: 0,
    usual: 30,
  }
  const { slots, running } = run
  for (let partition = 0; partition < partitionCount; partition += 1) {
    slots.push({
      process: startWorker(run, partition),
      sentAt: undefined,
      waiting: false,
      troubled: false,
      struck: true,
      position: 0,
      handedOut: 0,
    })
  }
  const { signal, patience } = options
  const onAbort = () => reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  const watching = setInterval(() => {
    const idle = performance.now() - run.movedAt
    if (idle > patience) resolve(`stalled: nothing was processed for ${Math.round(idle / 1000)} s`)
  }, 500)
  const ended = promise.finally(async () => {
    run.over = true
    clearInterval(watching)
    signal.removeEventListener('abort', onAbort)
    for (const { process } of slots) process.kill()
    await Promise.all([...running, ...slots.map(({ process }) => process.ended)])
  })
  return {
    get done() {
      return slots.reduce((sum, { position }) => sum + position, 0)
    },
    get workerKills() {
      return run.workerKills
    },
    get serverKills() {
      return run.serverKills
    },
    ended,
  }
}

function startWorker(run: Run, partition: number): WorkerProcess {
  const { options, environment, slots, reject } = run
  const started = startWorkerProcess({
    urls: environment.urls,
    partition,
    onFetch: (position) => feed(run, partition, position),
    onTrouble(message) {
      const slot = slots[partition] as Slot
      if (!slot.troubled) options.onEvent(`worker ${partition + 1} tries again: ${message}`)
      slot.troubled = true
    },
  })
  void started.ended.then((failure) => {
    if (failure !== undefined && !run.over) reject(new Error(failure))
  })
  return started
}

/** Answers a fetch with what follows a position. */
function feed(run: Run, partition: number, position: number): void {
  const { plan } = run
  const slot = run.slots[partition] as Slot
  const now = performance.now()
  if (slot.sentAt !== undefined) run.usual += (Math.min(now - slot.sentAt, 200) - run.usual) / 8
  run.movedAt = now
  slot.position = position
  slot.struck = false
  slot.troubled = false
  const deliveries = plan.partitions[partition]?.slice(position, position + plan.batch) ?? []
  slot.waiting = deliveries.length === 0
  if (!slot.waiting) {
    slot.process.deliver(deliveries)
    slot.sentAt = now
    slot.handedOut = Math.max(slot.handedOut, position + deliveries.length)
  }
  proceed(run)
}

/** Strikes where it is time, and ends when nothing is left to do. */
function proceed(run: Run): void {
  const { plan, slots, pending, running, resolve, reject } = run
  if (run.over) return
  const progress = slots.reduce((sum, { handedOut }) => sum + handedOut, 0) / plan.deliveries
  for (const strike of pending.filter(({ at }) => at <= progress)) {
    const slot = slots[strike.index] as Slot
    if (strike.target === 'server' ? run.serverBusy : slot.struck) continue
    pending.splice(pending.indexOf(strike), 1)
    const striking = strike.target === 'server' ? strikeServer(run, strike) : strikeWorker(run, strike, slot)
    const done = striking.catch(reject).finally(() => running.delete(done))
    running.add(done)
  }
  const busy = run.serverBusy || pending.length > 0 || slots.some(({ struck, waiting }) => struck || !waiting)
  if (busy) return
  run.over = true
  for (const { process } of slots) process.deliver([])
  void Promise.all(slots.map(({ process }) => process.ended)).then((failures) => {
    const failure = failures.find((text) => text !== undefined)
    if (failure === undefined) resolve(undefined)
    else reject(new Error(failure))
  })
}

async function strikeWorker(run: Run, { index, delay }: Strike, slot: Slot): Promise<void> {
  slot.struck = true
  await sleep(delay * run.usual)
  if (run.over) return
  const { pid, ended } = slot.process
  slot.process.kill()
  run.workerKills += 1
  run.options.onEvent(
    `worker ${index + 1} killed at delivery ${slot.position} of its partition (process ${pid})`,
  )
  await ended
  run.movedAt = performance.now()
  slot.sentAt = undefined
  slot.waiting = false
  if (!run.over) slot.process = startWorker(run, index)
}

async function strikeServer(run: Run, { index, delay, downtime }: Strike): Promise<void> {
  const { onEvent } = run.options
  const server = run.environment.servers[index]
  if (server === undefined) return
  run.serverBusy = true
  await sleep(delay * run.usual)
  if (run.over) return
  await server.stop('immediate')
  run.serverKills += 1
  onEvent(`server ${index + 1} killed`)
  await sleep(downtime)
  if (run.over) return
  await server.start()
  onEvent(`server ${index + 1} is back`)
  run.movedAt = performance.now()
  run.serverBusy = false
  proceed(run)
}
