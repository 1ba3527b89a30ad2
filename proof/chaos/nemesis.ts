/** What breaks things: one loop for each kind of fault, with a rate of its own, and the fates of coordinators. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Random } from '../rig/random.ts'
import type { Fate } from './coordinators.ts'
import type { Assignment, Point } from './protocol.ts'
import type { Cluster, Name } from './servers.ts'

export const faults = [
  'kill',
  'point',
  'stop',
  'stall',
  'skew',
  'recoverer',
  'server',
  'server-at-point',
  'pause',
  'proxy',
  'partition',
  'disk',
] as const

export type Fault = (typeof faults)[number]

/** How often each was done. */
export type Tally = Record<string, number>

export interface NemesisOptions {
  readonly faults: ReadonlySet<Fault>
  readonly random: Random
  readonly cluster: Cluster
  readonly tally: Tally
  /** Mean milliseconds between two crashes of servers. */
  readonly serverEvery: number
  readonly proxyEvery: number
  /** Processes to stop and go on: coordinators, and recoverers to end as well. */
  readonly coordinators: () => readonly { kill(signal: NodeJS.Signals): boolean }[]
  readonly recoverers: () => readonly { kill(signal: NodeJS.Signals): boolean }[]
  readonly proxy: (fault: 'message' | 'partition', name: Name) => Promise<string | undefined>
}

export function count(tally: Tally, what: string): void {
  tally[what] = (tally[what] ?? 0) + 1
}

/** Runs until the signal says stop, and leaves nothing broken. */
export async function runNemesis(options: NemesisOptions, signal: AbortSignal): Promise<void> {
  const { random, cluster, tally } = options
  /** None of none. */
  const pick = <T>(list: readonly T[]): T | undefined => random.pick(list)
  const between = (low: number, high: number) => low + random.next() * (high - low)

  const every = async (fault: Fault, mean: number, act: () => Promise<void>) => {
    if (!options.faults.has(fault)) return
    const running = new Set<Promise<void>>()
    while (!signal.aborted) {
      // Exponential, so that faults meet each other.
      const pause = Math.min(-Math.log(1 - random.next()) * mean, mean * 4)
      await sleep(pause, undefined, { signal }).catch(() => {})
      if (signal.aborted) break
      const done: Promise<void> = act().finally(() => running.delete(done))
      running.add(done)
      if (running.size > 4) await Promise.race(running)
    }
    await Promise.all(running)
  }
  const stopFor = async (process: { kill(signal: NodeJS.Signals): boolean } | undefined, time: number) => {
    if (!process?.kill('SIGSTOP')) return
    await sleep(time)
    process.kill('SIGCONT')
  }
  const interfere = async (fault: 'message' | 'partition') => {
    const done = await options.proxy(fault, pick(cluster.nodes)?.name ?? 'a')
    if (done !== undefined) count(tally, `proxy: ${done}`)
  }

  await Promise.all([
    every('stop', 3_000, async () => {
      count(tally, 'coordinator stops')
      await stopFor(pick(options.coordinators()), between(100, 2_500))
    }),
    every('recoverer', 2_500, async () => {
      const recoverer = pick(options.recoverers())
      if (random.chance(0.5)) {
        count(tally, 'recoverer kills')
        recoverer?.kill('SIGKILL')
      } else {
        count(tally, 'recoverer stops')
        await stopFor(recoverer, between(100, 3_000))
      }
    }),
    every('server', options.serverEvery, async () => {
      const how = random.chance(0.5) ? 'kill' : 'immediate'
      await pick(cluster.nodes)?.crash(how, random.chance(0.3) ? between(200, 2_000) : 0)
      count(tally, `server crashes (${how})`)
    }),
    every('pause', 10_000, async () => {
      count(tally, 'server pauses')
      await pick(cluster.nodes)?.pause(between(200, 2_500))
    }),
    every('proxy', options.proxyEvery, async () => {
      await interfere('message')
    }),
    every('partition', 8_000, async () => {
      await interfere('partition')
    }),
    every('disk', 15_000, async () => {
      for (const node of cluster.nodes) {
        if (node.fillDisk === undefined) continue
        count(tally, `disk full (server ${await node.fillDisk(between(300, 2_000))})`)
      }
    }),
  ])
}

/** How a coordinator is to end, by the faults that are wanted. */
export function chooseFate(wanted: ReadonlySet<Fault>, random: Random, meanLife: number): Fate {
  const after = meanLife * (0.4 + 1.2 * random.next())
  const fates: (() => Fate)[] = []
  if (wanted.has('kill')) for (let n = 0; n < 4; n += 1) fates.push(() => ({ kind: 'kill', after }))
  if (wanted.has('point'))
    for (let n = 0; n < 4; n += 1) fates.push(() => ({ kind: 'point', point: choosePoint(random, 'kill') }))
  if (wanted.has('stall'))
    fates.push(() => ({
      kind: 'stall',
      point: chooseWindow(random),
      milliseconds: 900 + random.next() * 1_500,
    }))
  if (wanted.has('server-at-point')) fates.push(() => ({ kind: 'crash', point: chooseWindow(random) }))
  const choice = random.pick(fates)
  return choice?.() ?? { kind: 'live', after: after * 4 }
}

function choosePoint(random: Random, action: Point['action']): Point {
  const steps = ['begin', 'claim', 'vote', 'prepare', 'decide', 'finish'] as const
  // The dangerous ones more often.
  const step = random.chance(0.6) ? random.pick(['prepare', 'decide', 'finish'] as const) : random.pick(steps)
  return {
    step: step ?? 'decide',
    when: random.chance(0.5) ? 'start' : 'asyncEnd',
    nth: 1 + Math.floor(random.next() ** 2 * 30),
    action,
  }
}

/** Between the first PREPARE and the decision. */
function chooseWindow(random: Random): Point {
  return {
    ...(random.chance(0.6)
      ? { step: 'decide' as const, when: 'start' as const }
      : { step: 'prepare' as const, when: 'asyncEnd' as const }),
    nth: 1 + Math.floor(random.next() ** 2 * 12),
    action: 'stop',
    thenKill: random.chance(0.5),
  }
}

/** One coordinator in four has a wrong clock. */
export function chooseSkew(wanted: ReadonlySet<Fault>, random: Random): Assignment['skew'] {
  if (!wanted.has('skew') || !random.chance(0.25)) return undefined
  const year = 365 * 86_400_000
  return { milliseconds: Math.round((random.next() * 2 - 1) * year), factor: random.chance(0.5) ? 3 : 0.5 }
}
