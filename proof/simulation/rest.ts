/** How a schedule ends: the faults are over, everything comes to rest, recovery cleans up, and the oracle looks. */

import { parseId } from '../../src/commit/gid.ts'
import { readOutcome } from '../../src/commit/outcome.ts'
import { OutcomeUnknownError } from '../../src/errors.ts'
import { runRecovery } from '../../src/recovery/recovery.ts'
import { startServer } from './faults.ts'
import { cutWire, hangUpWire } from './network.ts'
import { stackOf } from './oracle.ts'
import { hasGraveFault } from './plan.ts'
import { decodeGid } from './postgres/once.ts'
import { superuser } from './postgres/server.ts'
import { isRecovering, stopRunning } from './recoverers.ts'
import { addProcess, type Running, type World } from './world.ts'

/** The faults are over: servers are up, messages arrive, and the dead are known to be dead. */
export function heal(here: World): void {
  here.note?.(() => 'the faults are over')
  here.calm = true
  for (const server of here.servers) if (!server.up) startServer(here, server)
  for (const server of here.servers) server.fencedAt = undefined
  for (const { redirected } of here.processes) redirected.clear()
  for (const wire of [...here.lost, ...here.left]) hangUpWire(wire, true)
  // What is held up for longer is given up by TCP.
  for (const process of here.processes) {
    for (const wire of process.wires) {
      const latest = Math.max(wire.up.due, wire.down.due)
      if (latest > here.scheduler.now + 1_000) cutWire(here, wire, 0.1, 0.1)
    }
  }
}

/** Waits until nothing runs any more, and counts what must have been given back. */
export function rest(here: World): void {
  const { scheduler: clock, oracle } = here
  const isBusy = () =>
    isRecovering(here) || here.processes.some(({ alive, context }) => alive && context.background.size > 0)
  for (const process of here.processes)
    if (process.alive && process.recovery) clock.after(0, process, () => stopRunning(here, process))
  clock.runUntil(() => false, clock.now + 1)
  if (!clock.runUntil(() => !isBusy(), clock.now + 3_600_000))
    oracle.violate('everything settles', 'a recovery or a finish in the background goes on for ever')
  // Who is dead is known to be dead now; what was given up is closed.
  for (const process of here.processes) {
    if (!process.alive) for (const wire of process.wires) hangUpWire(wire, true)
  }
  // What was held up comes late, and what waits for it after that; a statement may wait for a branch in doubt, which
  // is not finished yet, until the longest `lockTimeout`.
  const latest = here.processes.flatMap(({ pausedUntil, wires }) => [
    pausedUntil,
    ...[...wires].flatMap(({ up, down }) => [up.due, down.due]),
  ])
  clock.runUntil(() => false, Math.max(clock.now, ...latest) + 12_000)
  for (const process of here.processes) {
    if (!process.alive) continue
    for (const database of process.databases) {
      let free = 0
      while (database.permits.tryTake()) free += 1
      const { maxConnections = 2 } = here.plan.processes[process.number - 1] ?? {}
      if (free !== maxConnections)
        oracle.violate(
          'permits come back',
          `${process.name} has ${free} of ${maxConnections} for ${database.name}`,
        )
    }
    for (const { taken } of process.pools)
      if (taken() > 0)
        oracle.violate('connections come back', `${process.name} has ${taken()} connections left`)
    if (here.plan.seed % 8 === 0) takeAll(here, process)
  }
}

/** All places of its pools can be taken, whatever became of the connections that had them. */
function takeAll({ scheduler: clock, oracle, plan }: World, process: Running): void {
  const { maxConnections = 2 } = plan.processes[process.number - 1] ?? {}
  let missing = 0
  clock.after(0, process, () => {
    for (const database of process.databases) {
      const links = Array.from({ length: maxConnections }, () => database.connect())
      missing += maxConnections
      for (const link of links) {
        link.then(
          () => {
            missing -= 1
          },
          (error: unknown) =>
            oracle.violate('connections come back', `${process.name}, ${database.name}: ${stackOf(error)}`),
        )
      }
      Promise.allSettled(links).then((taken) => {
        for (const one of taken) if (one.status === 'fulfilled') one.value.release()
      })
    }
  })
  clock.runUntil(() => false, clock.now + 1)
  if (!clock.runUntil(() => missing === 0, clock.now + 30_000))
    oracle.violate('connections come back', `${process.name} lacks ${missing} places`)
}

/** One more recoverer, whom nothing disturbs, finishes and purges everything; then the oracle looks at what is left. */
export function recoverAll(here: World): void {
  const { scheduler: clock, oracle } = here
  const last = addProcess(here, 'the last recoverer', superuser, [], 2)
  const run = <T>(what: string, task: () => Promise<T>): T | undefined => {
    let result: T | undefined
    let done = false
    clock.after(0, last, () => {
      task().then(
        (value) => {
          result = value
          done = true
        },
        (error: unknown) => {
          done = true
          oracle.violate('recovery does not throw', `${what}: ${stackOf(error)}`)
        },
      )
    })
    if (!clock.runUntil(() => done, clock.now + 600_000))
      oracle.violate('everything settles', `${what} does not end`)
    return result
  }
  const isOurs = (gid: string) => decodeGid(gid) !== undefined
  const orphans = () => here.servers.flatMap(({ prepared }) => [...prepared.keys()].filter(isOurs))
  for (let turn = 0; turn < 20 && orphans().length > 0; turn += 1) {
    const report = run('recovery', () => runRecovery(last.databases, { purge: false }))
    if (report === undefined) break
    if (report.unreachable.length > 0 || report.unfinished.length > 0)
      oracle.violate('recovery reaches everything', JSON.stringify(report))
    clock.runUntil(() => false, clock.now + 500)
  }
  for (const gid of orphans()) oracle.violate('no orphan remains', gid)

  for (const { error, attempts } of oracle.calls) {
    if (!(error instanceof OutcomeUnknownError) || error.id === null) continue
    const attempt = attempts.at(-1)
    const global = parseId(error.id)
    const home = last.databases[here.databases.findIndex(({ databaseId }) => databaseId === global.home)]
    if (home === undefined || attempt === undefined) continue
    const outcome = run('outcome', async () => {
      await home.identify()
      return await readOutcome(home, global)
    })
    const there = [...attempt.effects].filter(([effect, { tables }]) => tables.effect.has(effect)).length
    if (attempt.id !== global.transactionId) oracle.violate('the id is that of the transaction', error.id)
    if (attempt.effects.size === 0 || hasGraveFault(here.plan)) continue
    if (
      outcome === 'pending' ||
      (outcome === 'committed' && there === 0) ||
      (outcome === 'aborted' && there > 0)
    )
      oracle.violate(
        'the outcome can be asked for',
        `${error.id} is ${outcome}, and ${there} effects are there`,
      )
  }

  // No server fails any more, so nothing that is seen now can be lost: it may be purged at once.
  const rows = () =>
    here.databases.flatMap(({ tables }) => [...tables.global.keys(), ...tables.evidence.keys()])
  const hasHeuristics = here.databases.some(({ tables }) => tables.heuristic.size > 0)
  if (rows().length > 0 || hasHeuristics)
    run('recovery', () => runRecovery(last.databases, { keep: 0, audit: true }))
  // What was lost, or forced against the decision, stands there for people to see.
  const lost = new Set(
    here.databases.flatMap(({ tables: { loss, heuristic } }) => [
      ...[...loss.values()].map(({ id }) => id),
      ...[...heuristic.values()].filter(({ decided, done }) => decided !== done).map(({ id }) => id),
    ]),
  )
  for (const id of rows()) if (!lost.has(id)) oracle.violate('everything is purged in the end', id)
  oracle.checkEffects()
  oracle.checkClaims()
  oracle.checkLosses()
}
