/**
 * Giving up in time: what a caller waits for ends when the transaction is aborted or late, whatever the servers do.
 */
import { environment } from '../environment.ts'
import { AbortedError } from '../errors.ts'

/** What ends waiting when the transaction is given up. */
export class Deadline {
  /** For those who wait with a signal. */
  readonly signal: AbortSignal
  readonly #late = new AbortController()
  readonly #over: Promise<never>
  readonly #stopTimer: () => void
  #listener = () => {}

  /**
   * @param timeout milliseconds
   * @param signal the caller's; a reason that throws when it is looked at is a reason all the same
   */
  constructor(timeout: number, signal: AbortSignal | undefined) {
    // AbortSignal.timeout() would do, but costs more, and its timers stay behind: one for each transaction of
    // the last minute.
    this.#stopTimer = environment.after(timeout, () => this.#late.abort())
    const both = signal ? AbortSignal.any([signal, this.late]) : this.late
    this.signal = both
    this.#over = new Promise<never>((_, reject) => {
      this.#listener = () => {
        const cause = signal?.aborted ? signal.reason : undefined
        const options = { detail: 'It is rolled back in every database.', cause }
        const isLate = this.late.aborted || isTimeout(both)
        if (isLate) reject(new AbortedError('TIMEOUT', 'The transaction was not decided in time', options))
        else reject(new AbortedError('ABORTED', 'The transaction was aborted', options))
      }
    })
    this.#over.catch(() => {})
    if (both.aborted) this.#listener()
    else both.addEventListener('abort', this.#listener, { once: true })
  }

  /** Whether the time is over, as opposed to the caller's signal. */
  get late(): AbortSignal {
    return this.#late.signal
  }

  race<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([this.#over, promise])
  }

  stop(): void {
    this.#stopTimer()
    this.signal.removeEventListener('abort', this.#listener)
  }
}

/** An answer that always comes; undefined if the signal comes before. */
export function answerUntil<T>(signal: AbortSignal, answer: Promise<T>): Promise<T | undefined> {
  if (signal.aborted) return Promise.resolve(undefined)
  return new Promise((resolve) => {
    const give = (value: T | undefined) => {
      signal.removeEventListener('abort', leave)
      resolve(value)
    }
    const leave = () => give(undefined)
    signal.addEventListener('abort', leave, { once: true })
    answer.then(give, leave)
  })
}

/** A reason is anything, with getters that throw in turn. */
function isTimeout(signal: AbortSignal): boolean {
  try {
    return (signal.reason as Error | undefined)?.name === 'TimeoutError'
  } catch {
    return false
  }
}
