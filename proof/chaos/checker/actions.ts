/** Invocations paired with what became of them. */
import type { Completion, Operation } from '../history.ts'

export interface Action {
  readonly process: number
  readonly f: string
  /** `info` if the history ends before the completion, too. */
  readonly type: Completion
  /** What was asked for. */
  readonly asked: unknown
  /** What was answered: the value of the completion, if it is `ok`. */
  readonly answered: unknown
  /** The index of the invocation. */
  readonly index: number
}

/**
 * In the order of the invocations.
 *
 * @throws TypeError if the history is none: a completion without an invocation, or two invocations of a process at once
 */
export function pair(history: readonly Operation[]): Action[] {
  const actions: (Action & { type: Completion; answered: unknown })[] = []
  const open = new Map<number, (typeof actions)[number]>()
  for (const { process, type, f, value, index } of history) {
    const invoked = open.get(process)
    if (type === 'invoke') {
      if (invoked)
        throw new TypeError(`Operation ${index}: process ${process} has one open (${invoked.index})`)
      const action = { process, f, type: 'info' as const, asked: value, answered: undefined, index }
      actions.push(action)
      open.set(process, action)
    } else {
      if (!invoked || invoked.f !== f)
        throw new TypeError(`Operation ${index}: nothing of process ${process} that ${f} could complete`)
      invoked.type = type
      if (type === 'ok') invoked.answered = value
      open.delete(process)
    }
  }
  return actions
}

export function countOf(actions: readonly Action[]): Record<Completion, number> {
  const counts = { ok: 0, fail: 0, info: 0 }
  for (const { type } of actions) counts[type] += 1
  return counts
}
