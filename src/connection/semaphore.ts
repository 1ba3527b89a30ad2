/** A counting semaphore: first come, first served. */
export interface Semaphore {
  /** Takes a permit if one is free. */
  tryTake(): boolean
  /** Waits for a permit; rejects with the signal's reason, and then holds none. */
  take(signal: AbortSignal): Promise<void>
  give(): void
}

export function semaphore(permits: number): Semaphore {
  let free = permits
  const waiting = new Set<() => void>()
  return {
    tryTake() {
      if (free === 0 || waiting.size > 0) return false
      free -= 1
      return true
    },
    take(signal) {
      if (this.tryTake()) return Promise.resolve()
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason)
        const enter = () => {
          signal.removeEventListener('abort', leave)
          resolve()
        }
        const leave = () => {
          waiting.delete(enter)
          reject(signal.reason)
        }
        waiting.add(enter)
        signal.addEventListener('abort', leave, { once: true })
      })
    },
    give() {
      const [next] = waiting
      if (next === undefined) {
        free += 1
      } else {
        waiting.delete(next)
        next()
      }
    },
  }
}
