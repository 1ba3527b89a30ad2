/**
 * Giving up in time: what a caller waits for ends when the transaction is aborted or late, whatever the servers do.
 */
import { AbortedError } from '../errors.ts'

/** What ends waiting when the transaction is given up. */
export interface Abortion {
  /** Whether it was given up. */
  isOver(): boolean
  race<T>(promise: Promise<T>): Promise<T>
  stop(): void
}

/** An answer that always comes; undefined if the transaction's time is over before. */
export async function answerUntil<T>(signal: AbortSignal, answer: Promise<T>): Promise<T | undefined> {
  const aborted = whenAborted(signal)
  return await aborted
    .race(answer)
    .catch(() => undefined)
    .finally(aborted.stop)
}

export function whenAborted(signal: AbortSignal): Abortion {
  let listener = () => {}
  const aborted = new Promise<never>((_, reject) => {
    listener = () => {
      const reason = signal.reason as Error
      const timedOut = reason?.name === 'TimeoutError'
      reject(
        new AbortedError(
          timedOut ? 'TIMEOUT' : 'ABORTED',
          `The transaction was ${timedOut ? 'not decided in time' : 'aborted'}`,
          {
            detail: 'It is rolled back in every database.',
            cause: reason,
          },
        ),
      )
    }
    if (signal.aborted) listener()
    else signal.addEventListener('abort', listener, { once: true })
  })
  aborted.catch(() => {})
  return {
    isOver: () => signal.aborted,
    race: (promise) => Promise.race([aborted, promise]),
    stop: () => signal.removeEventListener('abort', listener),
  }
}
