/** What a proxy is told to do, and what became of it. */
import type { Direction, Message, MessageName } from './protocol.ts'

export interface When {
  /** Who says it. */
  readonly direction: Direction
  /** @defaultValue any */
  readonly message?: MessageName
  /** Matches the statement it is about or answers, or the command tag. @defaultValue any */
  readonly text?: RegExp
  /** Only the so manieth that matches since the rule was given, of all connections; from 1. @defaultValue each */
  readonly nth?: number
}

/**
 * `kill`: both sides are cut off once it has passed. `cut-before`: before it passes. `drop`: it does not pass, nor
 * does what follows in its direction, and after `milliseconds` both sides are cut off. `delay`: it, and what
 * follows in its direction, waits. `stall`: the whole connection waits. `partition-in`: nothing reaches the
 * server, from anybody, for `milliseconds`; what was said arrives afterwards, as TCP has it. `partition-out`: the
 * same for what the server says. `cancel`: it passes, and the server is asked to cancel what this backend runs.
 */
export type Action =
  | 'kill'
  | 'cut-before'
  | 'drop'
  | 'delay'
  | 'stall'
  | 'partition-in'
  | 'partition-out'
  | 'cancel'

export interface Rule {
  readonly when: When
  readonly action: Action
  /** How long what takes time takes. @defaultValue 1000 */
  readonly milliseconds?: number
  /** Of acting on a message that matches. @defaultValue 1 */
  readonly probability?: number
}

/** Where a rule acted. */
export interface Hit {
  readonly name: MessageName
  readonly statement: string | undefined
  readonly tag: string | undefined
  /** The backend's process id, if it was told already. */
  readonly pid: number | undefined
  /** Whether both ends are gone. */
  readonly closed: boolean
}

export interface InjectedRule {
  /** How often it has acted. */
  readonly count: number
  readonly hits: readonly Hit[]
  /** Resolves when nothing that it began goes on any more. */
  over(): Promise<void>
  /** It acts no more; what it began goes on. */
  remove(): void
}

/** A rule at work. */
export interface Injected extends InjectedRule {
  readonly rule: Rule
  /** Counts a message that matches; whether the rule acts on it. */
  isDue(message: Message): boolean
  hit(message: Message, connection: { pid(): number | undefined; closed(): boolean }): void
  begin(work: Promise<unknown>): void
}

/** @param random for a rule with a probability: at least 0, less than 1 */
export function injectedRule(rule: Rule, random: () => number, remove: () => void): Injected {
  const { direction, message: wanted, text, nth } = rule.when
  const hits: Hit[] = []
  const work = new Set<Promise<unknown>>()
  let matched = 0
  return {
    rule,
    hits,
    get count() {
      return hits.length
    },
    isDue({ name, statement, tag, ...message }) {
      if (message.direction !== direction || (wanted !== undefined && name !== wanted)) return false
      if (text !== undefined && !text.test(tag ?? '') && !text.test(statement ?? '')) return false
      matched += 1
      return (nth === undefined || matched === nth) && random() < (rule.probability ?? 1)
    },
    hit({ name, statement, tag }, connection) {
      hits.push({
        name,
        statement,
        tag,
        pid: connection.pid(),
        get closed() {
          return connection.closed()
        },
      })
    },
    begin(some) {
      work.add(some)
      some.finally(() => work.delete(some))
    },
    async over() {
      await Promise.all(work)
    },
    remove,
  }
}
