/** Processes of a run, none of which is to outlive it: not even one that is stopped. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'

const children = new Set<ChildProcess>()

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

/** Starts a script of ours by the same Node. */
export function startScript(parameters: readonly string[], options: SpawnOptions): ChildProcess {
  const child = spawn(process.execPath, parameters, options)
  children.add(child)
  child.once('exit', () => children.delete(child))
  child.on('error', () => {})
  return child
}
