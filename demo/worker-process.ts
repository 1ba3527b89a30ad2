/** A worker as the driver has it: a child process that asks for deliveries until there are none. */
import { type ChildProcess, fork } from 'node:child_process'
import type { DatabaseName, Delivery } from './plan.ts'
import type { FromWorker, ToWorker } from './protocol.ts'

export interface WorkerProcess {
  readonly pid: number | undefined
  /** Answers a fetch. */
  deliver(deliveries: readonly Delivery[]): void
  /** SIGKILL, at once. */
  kill(): void
  /** Resolves when it has ended, with why if that was neither a kill of ours nor the end of the stream. */
  readonly ended: Promise<string | undefined>
}

export interface WorkerOptions {
  readonly urls: Readonly<Record<DatabaseName, string>>
  readonly partition: number
  /** It wants what follows this position; everything before is committed. */
  readonly onFetch: (position: number) => void
  readonly onTrouble: (message: string) => void
}

const program = new URL('./worker.ts', import.meta.url)

export function startWorkerProcess({ urls, partition, onFetch, onTrouble }: WorkerOptions): WorkerProcess {
  const child = fork(program, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
  let killed = false
  let failure: string | undefined
  let said = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said = `${said}${text}`.slice(-4_000)
  })
  child.on('message', (message: FromWorker) => {
    if (killed) return
    if (message.kind === 'fetch') onFetch(message.position)
    else if (message.kind === 'trouble') onTrouble(message.message)
    else failure = message.message
  })
  const ended = new Promise<string | undefined>((resolve) => {
    child.once('error', (error) => resolve(`Worker ${partition + 1} could not be started: ${error.message}`))
    child.once('close', (code, signal) => {
      if (killed || code === 0) return resolve(undefined)
      resolve(`Worker ${partition + 1} ended (${signal ?? `exit code ${code}`}): ${failure ?? said.trim()}`)
    })
  })
  send(child, { kind: 'start', urls, partition })
  return {
    pid: child.pid,
    deliver: (deliveries) => send(child, { kind: 'batch', deliveries }),
    kill() {
      killed = true
      child.kill('SIGKILL')
    },
    ended,
  }
}

/** Whether it arrives is no matter: one that died asks no more, and its successor asks anew. */
function send(child: ChildProcess, message: ToWorker): void {
  if (child.connected) child.send(message, () => {})
}
