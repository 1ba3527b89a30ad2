/** Keeps what coordinators say: attempts, and from them the history of each workload. */
import type { Completion, Increment, Operation } from './history.ts'
import type { Line } from './protocol.ts'

import type { Part } from './workloads/workload.ts'

type Invoked = Extract<Line, { type: 'invoke' }>
type Completed = Extract<Line, { type: Completion }>

/** Something a client tried, in one transaction. */
export interface Attempt extends Invoked {
  readonly life: number
  /** Undefined while it runs. */
  completion: Completed | undefined
  /** What `once.outcome` said, where the answer to the commit had been lost. */
  outcome: string | undefined
}

export interface Recorder {
  readonly attempts: ReadonlyMap<string, Attempt>
  readonly counts: Readonly<Record<string, Record<Completion, number>>>
  /** Where each producer goes on: with the first number that is not known to have taken effect. */
  readonly resume: ReadonlyMap<string, number>
  record(life: number, line: Line): void
  /** A coordinator is dead: what it had begun is indeterminate. */
  died(life: number, time: number): void
  /** The history of a workload, with its final reads behind. */
  history(workload: string, finalReads: readonly Part[]): Operation[]
}

export function recorder(): Recorder {
  const attempts = new Map<string, Attempt>()
  const open = new Map<number, Set<Attempt>>()
  const resume = new Map<string, number>()
  const counts: Record<string, Record<Completion, number>> = {}

  const delivered = ({ parts: [part] }: Attempt, more: number) => {
    if (part?.f !== 'inc') return
    const { producer, sequence } = part.value as Increment
    resume.set(producer, sequence + more)
  }
  const complete = (attempt: Attempt, completion: Completed) => {
    attempt.completion = completion
    open.get(attempt.life)?.delete(attempt)
    counts[attempt.workload] ??= { ok: 0, fail: 0, info: 0 }
    const tally = counts[attempt.workload] as Record<Completion, number>
    tally[completion.type] += 1
    if (completion.type === 'ok') delivered(attempt, 1)
  }
  return {
    attempts,
    counts,
    resume,
    record(life, line) {
      if (line.type === 'invoke') {
        const attempt: Attempt = { ...line, life, completion: undefined, outcome: undefined }
        attempts.set(line.attempt, attempt)
        delivered(attempt, 0)
        open.set(life, (open.get(life) ?? new Set()).add(attempt))
      } else if (line.type === 'outcome') {
        const attempt = attempts.get(line.attempt)
        if (attempt) attempt.outcome = line.outcome
      } else if (line.type === 'ok' || line.type === 'fail' || line.type === 'info') {
        const attempt = attempts.get(line.attempt)
        if (attempt) complete(attempt, line)
      }
    },
    died(life, time) {
      for (const attempt of open.get(life) ?? [])
        complete(attempt, { type: 'info', time, attempt: attempt.attempt, error: 'its coordinator died' })
      open.delete(life)
    },
    history(workload, finalReads) {
      const unnumbered: (Omit<Operation, 'process' | 'index'> & { lane: string })[] = []
      for (const attempt of attempts.values()) {
        if (attempt.workload !== workload) continue
        attempt.parts.forEach((part, index) => {
          const lane = `${attempt.lane}#${index}`
          unnumbered.push({ lane, type: 'invoke', time: attempt.time, ...part })
          const { completion } = attempt
          if (completion === undefined) return
          const answer = completion.parts?.[index]
          const type = answer?.type ?? completion.type
          const error = answer?.error ?? completion.error
          const value = answer?.value ?? part.value
          unnumbered.push({
            lane,
            type,
            f: part.f,
            value,
            time: completion.time,
            ...(error === undefined ? {} : { error }),
          })
        })
      }
      unnumbered.sort((one, other) => one.time - other.time)
      const end = (unnumbered.at(-1)?.time ?? 0) + 1
      for (const part of finalReads) {
        unnumbered.push({ lane: 'final', type: 'invoke', f: part.f, value: null, time: end })
        unnumbered.push({ lane: 'final', type: 'ok', ...part, time: end })
      }
      // After an operation without a known end its process is gone.
      const processes = new Map<string, number>()
      let next = 0
      return unnumbered.map(({ lane, ...operation }, index) => {
        let process = processes.get(lane)
        if (process === undefined) {
          process = next
          next += 1
          processes.set(lane, process)
        }
        if (operation.type === 'info') processes.delete(lane)
        return { process, ...operation, index }
      })
    },
  }
}
