/** Recovery while faults may still strike: beside the calls of a coordinator, and by processes of its own. */

import { codeOf } from '../../src/errors.ts'
import { audit, runRecovery, startRecovery } from '../../src/recovery/recovery.ts'
import { recoverInside } from './inside.ts'
import { stackOf } from './oracle.ts'
import type { RecovererPlan } from './plan.ts'
import type { Process } from './scheduler.ts'
import { addProcess, type Running, type World } from './world.ts'

/** Recovery beside a coordinator's calls. */
export function startRunning(here: World, process: Running): void {
  process.recovery = startRecovery(process.databases, { interval: 250 })
  // Not for as long as calls may wait: a thousand runs would tell no more.
  here.scheduler.after(800, process, () => stopRunning(here, process))
}

export function stopRunning(here: World, { recovery }: Running): void {
  if (recovery) track(here, recovery.stop())
}

export function recoverOnce(
  here: World,
  process: Running,
  { keep, purges, audits }: Pick<RecovererPlan, 'keep' | 'purges' | 'audits'>,
): void {
  here.scheduler.after(0, process, () => {
    track(
      here,
      runRecovery(process.databases, { keep, purge: purges }).then(async () => {
        if (audits) await audit(process.databases)
      }),
    )
  })
}

/** The same by `once.recover()`, which somebody calls in each database: a backend there for each. */
export function recoverInsideOnce(here: World, { login, keep, purges, audits }: RecovererPlan): void {
  const steps = [
    'finish',
    ...(purges ? ['prove', 'confirm', 'purge'] : []),
    ...(audits ? ['audit', 'judge'] : []),
  ]
  for (const database of here.databases) {
    if (!database.server.up) continue
    const process = addProcess(here, `once.recover() in ${database.name}`, login, [], 2)
    process.host = database.server
    here.scheduler.after(0, process, () =>
      track(here, ends(recoverInside(here, process, database, steps, keep))),
    )
  }

  /** It may fail, as any function may when it cannot reach its own database. */
  async function ends(recovering: Promise<void>): Promise<void> {
    await recovering.catch((error: unknown) => {
      if (codeOf(error) === undefined) throw error
    })
  }
}

function track(here: World, promise: Promise<unknown>): void {
  const one = { process: here.scheduler.current as Process }
  here.open.add(one)
  promise
    .catch((error: unknown) => {
      here.oracle.violate('recovery does not throw', `${one.process.name}: ${stackOf(error)}`)
    })
    .then(() => here.open.delete(one))
}

/** Whether a process that lives has a recovery to end. */
export function isRecovering({ open }: World): boolean {
  for (const { process } of open) if (process.alive) return true
  return false
}
