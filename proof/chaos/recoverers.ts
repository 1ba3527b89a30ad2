/** The recoverers of a run, of every kind that there is, which race each other; each that dies is started anew. */
import type { ChildProcess } from 'node:child_process'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { startScript } from './children.ts'
import { type Instructions, type RecovererKind, recovererKinds } from './protocol.ts'

export interface Recoverers {
  readonly working: readonly ChildProcess[]
  stop(): Promise<void>
}

export interface RecoverersOptions {
  readonly directory: string
  readonly environment: NodeJS.ProcessEnv
  /** With proxies before them, and without. */
  readonly urls: Readonly<Record<string, string>>
  readonly direct?: Readonly<Record<string, string>>
  /** Milliseconds for which decisions are kept when they are proven. */
  readonly keep: number
  /** @defaultValue one of each */
  readonly kinds?: readonly RecovererKind[]
}

export async function startRecoverers(options: RecoverersOptions): Promise<Recoverers> {
  const { urls, direct = urls, keep } = options
  const log = await open(join(options.directory, 'recoverers.log'), 'a')
  const commands = (options.kinds ?? recovererKinds).map((kind): readonly string[] => {
    const instructions: Instructions = { kind, urls: kind === 'client' ? urls : direct, keep }
    return [join(import.meta.dirname, 'recoverer.ts'), JSON.stringify(instructions)]
  })
  let stopping = false
  const working: ChildProcess[] = []
  const ends = commands.map(
    (parameters, index) =>
      new Promise<void>((resolve) => {
        const launch = () => {
          if (stopping) return resolve()
          const child = startScript(parameters, {
            env: options.environment,
            stdio: ['ignore', log.fd, log.fd, 'ipc'],
          })
          working[index] = child
          child.once('exit', () => {
            setTimeout(launch, stopping ? 0 : 100)
          })
        }
        launch()
      }),
  )
  return {
    working,
    async stop() {
      stopping = true
      for (const child of working) {
        child.kill('SIGCONT')
        child.kill('SIGKILL')
      }
      await Promise.all(ends)
      await log.close()
    },
  }
}
