/**
 * The coordinators of a run: a few places, at each of which one process works until it dies and the next takes
 * over. Spare processes stand warm, so that a kill costs little time.
 */
import type { ChildProcess } from 'node:child_process'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { startScript } from './children.ts'
import type { Assignment, Line, Point } from './protocol.ts'
import type { Recorder } from './recorder.ts'

/** What is to become of a coordinator. */
export type Fate =
  /** SIGKILL after so many milliseconds. */
  | { readonly kind: 'kill'; readonly after: number }
  /** SIGKILL at a point of the protocol. */
  | { readonly kind: 'point'; readonly point: Point }
  /** SIGSTOP at a point, for longer than servers wait for it, then SIGCONT. */
  | { readonly kind: 'stall'; readonly point: Point; readonly milliseconds: number }
  /** SIGSTOP at a point, then the server of that moment crashes, then SIGCONT. */
  | { readonly kind: 'crash'; readonly point: Point }
  /** It is left alone for so many milliseconds, and then asked to stop. */
  | { readonly kind: 'live'; readonly after: number }

export interface CoordinatorEvents {
  readonly killed: (at: 'any moment' | 'a point') => void
  readonly stalled: () => void
  readonly skewed: () => void
  /** The server of this database is to crash now; resolves when it is back. */
  readonly crashAt: (database: string) => Promise<void>
}

export interface CoordinatorsOptions {
  readonly slots: number
  readonly directory: string
  readonly environment: NodeJS.ProcessEnv
  readonly recorder: Recorder
  readonly events: CoordinatorEvents
  readonly now: () => number
  /** Everything of an assignment that changes from one coordinator to the next. */
  readonly assign: (slot: number, life: number) => Assignment
  readonly fate: () => Fate
}

export interface Coordinators {
  /** Processes at work now, for SIGSTOP and SIGCONT. */
  readonly working: ReadonlySet<ChildProcess>
  /** Asks everybody to stop, and after a while ends those who do not. */
  stop(patience: number): Promise<void>
  /** One more coordinator, which nobody kills, until it ends or the time is over. */
  runOnce(assignment: Assignment, patience: number): Promise<void>
}

interface Spare {
  readonly child: ChildProcess
  /** Where its lines go once it works. */
  listener: (line: Line) => void
  readonly drained: Promise<void>
  readonly exited: Promise<void>
}

/** The longest that a coordinator lives on that never reaches its point. */
const longestLife = 4_000

export async function startCoordinators(options: CoordinatorsOptions): Promise<Coordinators> {
  const { recorder, events } = options
  const log: FileHandle = await open(join(options.directory, 'coordinators.log'), 'a')
  const working = new Set<ChildProcess>()
  const spares: Promise<Spare>[] = []
  let stopping = false
  let lives = 0

  const prepare = () => void spares.push(spawnWorker(options.environment, log.fd))
  const take = async (): Promise<Spare> => {
    prepare()
    return await (spares.shift() as Promise<Spare>)
  }
  /** Runs one coordinator to its end, whatever that is. */
  const live = async (assignment: Assignment, fate: Fate): Promise<void> => {
    const spare = await take()
    const { child } = spare
    const { life } = assignment
    const point = 'point' in fate ? fate.point : undefined
    let atPoint = false
    let began = false
    let ended = false
    spare.listener = (line) => {
      began = true
      if (line.type !== 'point') return recorder.record(life, line)
      if (fate.kind === 'point') {
        atPoint = true
      } else if (fate.kind === 'stall') {
        events.stalled()
        setTimeout(() => child.kill('SIGCONT'), fate.milliseconds)
      } else if (fate.kind === 'crash') {
        void events.crashAt(line.database).finally(() => child.kill('SIGCONT'))
      }
    }
    working.add(child)
    child.send({ go: { ...assignment, point } })
    if (assignment.skew) events.skewed()
    void spare.exited.then(() => {
      ended = true
    })
    const killer = (async () => {
      // Counted from its first operation, however slow this machine is.
      while (!began && !ended && !stopping) await sleep(20)
      const until = performance.now() + ('after' in fate ? fate.after : longestLife)
      while (!ended && !stopping && performance.now() < until) await sleep(20)
      if (ended || stopping) return
      if (fate.kind !== 'live') child.kill('SIGKILL')
      else if (child.connected) child.send({ stop: true })
    })()
    await spare.exited
    await killer
    working.delete(child)
    if (child.signalCode === 'SIGKILL') events.killed(atPoint ? 'a point' : 'any moment')
    await spare.drained
    recorder.died(life, options.now())
  }

  for (let index = 0; index < 2; index += 1) prepare()
  const running = Promise.all(
    Array.from({ length: options.slots }, async (_, slot) => {
      while (!stopping) {
        lives += 1
        await live(options.assign(slot, lives), options.fate())
      }
    }),
  )
  return {
    working,
    async stop(patience) {
      stopping = true
      for (const child of working) {
        child.kill('SIGCONT')
        if (child.connected) child.send({ stop: true })
      }
      const timer = setTimeout(() => {
        for (const child of working) child.kill('SIGKILL')
      }, patience)
      await running
      clearTimeout(timer)
      for (const spare of await Promise.all(spares)) spare.child.kill('SIGKILL')
      await log.close()
    },
    async runOnce(assignment, patience) {
      lives += 1
      const spare = await spawnWorker(options.environment, 'ignore')
      spare.listener = (line) => recorder.record(assignment.life, line)
      spare.child.send({ go: assignment })
      const timer = setTimeout(() => spare.child.kill('SIGKILL'), patience)
      await spare.exited
      clearTimeout(timer)
      await spare.drained
      recorder.died(assignment.life, options.now())
    },
  }
}

async function spawnWorker(environment: NodeJS.ProcessEnv, log: number | 'ignore'): Promise<Spare> {
  const child = startScript([join(import.meta.dirname, 'worker.ts')], {
    env: environment,
    stdio: ['ignore', log, log, 'pipe', 'ipc'],
  })
  const lines = createInterface({ input: child.stdio[3] as Readable })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const drained = new Promise<void>((resolve) => lines.once('close', () => resolve()))
  let ready: () => void = () => {}
  const warm = new Promise<void>((resolve) => {
    ready = resolve
  })
  const spare: Spare = { child, listener: () => {}, exited, drained }
  lines.on('line', (text) => {
    let line: Line
    try {
      line = JSON.parse(text) as Line
    } catch {
      // Its last line, in the middle of which it was killed: what it says had not begun.
      return
    }
    if (line.type === 'ready') ready()
    else spare.listener(line)
  })
  await Promise.race([warm, exited])
  if (child.exitCode !== null || child.signalCode !== null)
    throw new Error(`A coordinator ended before it began (${child.exitCode ?? child.signalCode})`)
  return spare
}
