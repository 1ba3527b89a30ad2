/**
 * Giving up in time: what a caller waits for ends when the transaction is aborted or late, whatever the servers do.
 */
import { environment } from '../environment.ts'
import { AbortedError } from '../errors.ts'

/** What ends waiting when the transaction is given up. */
export class Deadline {
  /** For those who wait with a signal. */
  readonly signal: AbortSignal
  /** Whether the time is over, as opposed to the caller's signal. */
  readonly late: AbortSignal
  readonly stop: () => void
  readonly #over: Promise<never>

  /**
   * @param timeout milliseconds
   * @param signal the caller's; a reason that throws when it is looked at is a reason all the same
   */
  constructor(timeout: number, signal: AbortSignal | undefined) {
    // AbortSignal.timeout() would do, but costs more, and its timers stay behind: one for each transaction of
    // the last minute.
    const late = new AbortController()
    const stopTimer = environment.after(timeout, () => late.abort())
    const both = signal ? AbortSignal.any([signal, late.signal]) : late.signal
    const { promise: over, reject } = Promise.withResolvers<never>()
    over.catch(() => {})
    const giveUp = () => {
      const cause = signal?.aborted ? signal.reason : undefined
      const options = { detail: 'It is rolled back in every database.', cause }
      if (late.signal.aborted || isTimeout(both))
        reject(new AbortedError('TIMEOUT', 'The transaction was not decided in time', options))
      else reject(new AbortedError('ABORTED', 'The transaction was aborted', options))
    }
    if (both.aborted) giveUp()
    else both.addEventListener('abort', giveUp, { once: true })
    this.signal = both
    this.late = late.signal
    this.#over = over
    this.stop = () => {
      stopTimer()
      both.removeEventListener('abort', giveUp)
    }
  }

  race<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([this.#over, promise])
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
