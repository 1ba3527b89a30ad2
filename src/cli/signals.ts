/** Ctrl-C for commands that stay. */
import { setTimeout as sleep } from 'node:timers/promises'

const exitCodes = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const

/**
 * Aborts at the first signal to stop (Ctrl-C, kill, a closed terminal), so that the command can end cleanly.
 * A second one ends the process at once.
 */
export function interruption(): AbortSignal {
  const controller = new AbortController()
  for (const [signal, exitCode] of Object.entries(exitCodes)) {
    process.on(signal, () => {
      if (controller.signal.aborted) process.exit(exitCode)
      controller.abort(signal)
    })
  }
  return controller.signal
}

/** Waits for the signal, and keeps the process alive meanwhile: a signal handler alone does not. */
export async function aborted(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) await sleep(2 ** 30, undefined, { signal }).catch(() => {})
}
