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

/** Starts two workers and feeds them. `ended` rejects if a worker fails, or with the reason of the signal. */
export function startStream(plan: Plan, { servers, urls }: Environment, options: StreamOptions): Stream {
  const { signal, onEvent, patience } = options
  const { promise, resolve, reject } = Promise.withResolvers<string | undefined>()
  const pending = [...plan.strikes]
  const running = new Set<Promise<void>>()
  let over = false
  let movedAt = performance.now()
  let serverBusy = false
  let workerKills = 0
  let serverKills = 0
  /** How long a transaction takes, in milliseconds, smoothed. */
  let usual = 30

  const startOne = (partition: number): WorkerProcess => {
    const started = startWorkerProcess({
      urls,
      partition,
      onFetch: (position) => onFetch(slots[partition] as Slot, partition, position),
      onTrouble: (message) => onTrouble(slots[partition] as Slot, partition, message),
    })
    void started.ended.then((failure) => {
      if (failure !== undefined && !over) reject(new Error(failure))
    })
    return started
  }
  const slots: Slot[] = []
  for (let partition = 0; partition < partitionCount; partition += 1) {
    slots.push({
      process: startOne(partition),
      sentAt: undefined,
      waiting: false,
      troubled: false,
      struck: true,
      position: 0,
      handedOut: 0,
    })
  }

  const onFetch = (slot: Slot, partition: number, position: number): void => {
    const now = performance.now()
    if (slot.sentAt !== undefined) usual += (Math.min(now - slot.sentAt, 200) - usual) / 8
    movedAt = now
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
    proceed()
  }

  const onTrouble = (slot: Slot, partition: number, message: string): void => {
    if (!slot.troubled) onEvent(`worker ${partition + 1} tries again: ${message}`)
    slot.troubled = true
  }

  /** Strikes where it is time, and ends when nothing is left to do. */
  const proceed = (): void => {
    if (over) return
    const progress = slots.reduce((sum, { handedOut }) => sum + handedOut, 0) / plan.deliveries
    for (const strike of pending.filter(({ at }) => at <= progress)) {
      const slot = slots[strike.index]
      if (strike.target === 'server' ? serverBusy : slot === undefined || slot.struck) continue
      pending.splice(pending.indexOf(strike), 1)
      const striking = strike.target === 'server' ? strikeServer(strike) : strikeWorker(strike, slot)
      const done = striking.catch(reject).finally(() => running.delete(done))
      running.add(done)
    }
    const busy = serverBusy || pending.length > 0 || slots.some(({ struck, waiting }) => struck || !waiting)
    if (busy) return
    over = true
    for (const { process } of slots) process.deliver([])
    void Promise.all(slots.map(({ process }) => process.ended)).then((failures) => {
      const failure = failures.find((text) => text !== undefined)
      if (failure === undefined) resolve(undefined)
      else reject(new Error(failure))
    })
  }

  const strikeWorker = async ({ index, delay }: Strike, slot: Slot | undefined): Promise<void> => {
    if (slot === undefined) return
    slot.struck = true
    await sleep(delay * usual)
    if (over) return
    const { pid, ended } = slot.process
    slot.process.kill()
    workerKills += 1
    onEvent(`worker ${index + 1} killed at delivery ${slot.position} of its partition (process ${pid})`)
    await ended
    movedAt = performance.now()
    slot.sentAt = undefined
    slot.waiting = false
    if (!over) slot.process = startOne(index)
  }

  const strikeServer = async ({ index, delay, downtime }: Strike): Promise<void> => {
    const server = servers[index]
    if (server === undefined) return
    serverBusy = true
    await sleep(delay * usual)
    if (over) return
    await server.stop('immediate')
    serverKills += 1
    onEvent(`server ${index + 1} killed`)
    await sleep(downtime)
    if (over) return
    await server.start()
    onEvent(`server ${index + 1} is back`)
    movedAt = performance.now()
    serverBusy = false
    proceed()
  }

  const onAbort = () => reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  const watching = setInterval(() => {
    const idle = performance.now() - movedAt
    if (idle > patience) resolve(`stalled: nothing was processed for ${Math.round(idle / 1000)} s`)
  }, 500)
  const ended = promise.finally(async () => {
    over = true
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
      return workerKills
    },
    get serverKills() {
      return serverKills
    },
    ended,
  }
}
