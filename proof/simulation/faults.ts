/** What goes wrong: each fault of a plan strikes at its point, once it has been passed so many times. */

import type { Random } from '../rig/random.ts'
import { cutWire, dropConnections, killProcess } from './network.ts'
import { hasGraveFault } from './plan.ts'
import { isBegun, points } from './points.ts'
import { runInside, terminate } from './postgres/backend.ts'
import { decodeGid } from './postgres/once.ts'
import {
  abort,
  assignXid,
  beginTransaction,
  commitTransaction,
  crash,
  failOver,
  finishPrepared,
  lock,
  type Pause,
  type Prepared,
  prepareTransaction,
  restart,
  type Server,
  type SimulatedDatabase,
  superuser,
  write,
} from './postgres/server.ts'
import { recoverOnce } from './recoverers.ts'
import { addProcess, type Strike, type World } from './world.ts'

export const strike: Strike = (here, fault, point, process, wire, request) => {
  const { scheduler: clock, random: dice, oracle } = here
  const { database } = wire.backend
  const { server } = database
  const { action, time } = fault
  here.note?.(() => `FAULT ${action} at ${points[point]} (${process.name}, ${database.name})`)
  const count = () => here.struck.push({ action, point })
  switch (action) {
    case 'kill':
      if (process.alive) count()
      killProcess(here, process)
      return 0
    case 'crash':
      if (server.up) count()
      crashServer(here, server, time)
      return 0
    case 'fail over':
      if (!server.up) return 0
      count()
      failOver(server, fault.lost)
      endSessions(here, server)
      restartLater(here, server, time)
      return 0
    case 'cut':
      count()
      cutWire(here, wire, dice.between(0.1, time), dice.between(0.1, time))
      return 0
    case 'stall':
      count()
      return request === undefined ? 0 : time
    case 'pause':
      count()
      process.pausedUntil = Math.max(process.pausedUntil, clock.now + time)
      return 0
    case 'jump':
      count()
      process.skew += time
      return 0
    case 'terminate':
      count()
      // Not in the middle of a step of its own.
      clock.after(0, undefined, () => terminate(wire.backend))
      return 0
    case 'refuse':
      if (request === undefined || isBegun(point)) return 0
      count()
      // The last two: a prepared statement is older than what it reads, or gone.
      request.refusal = {
        code: dice.pick(['57014', '57014', '40001', '53200', 'XX000', '0A000', '26000']),
        place: dice.next(),
      }
      return 0
    case 'recover':
      count()
      recoverOnce(here, addProcess(here, `recoverer ${here.processes.length + 1}`, 'app', [], 2), {
        purges: dice.chance(0.5),
        keep: hasGraveFault(here.plan) ? 600_000 : 0,
        audits: false,
      })
      return 0
    case 'roll back by hand':
    case 'commit by hand':
    case 'force': {
      const one = branchesOf(here).find(({ valid, busy }) => valid && !busy)
      if (one === undefined) return 0
      count()
      const commit = action === 'force' ? dice.chance(0.5) : action === 'commit by hand'
      const { gid, owner, transaction } = one
      oracle.byHand.set(gid, commit ? 'commit' : 'rollback')
      runInside(
        transaction.database.server,
        action === 'force'
          ? force(transaction.database, gid, owner, commit)
          : finishPrepared(transaction.database, gid, commit, superuser, () => {}),
      )
      return 0
    }
    case 'forge': {
      const [one] = branchesOf(here)
      const parts = one && decodeGid(one.gid)
      if (one === undefined || parts === undefined) return 0
      count()
      // The UUID of another transaction, under an xid of its own choice.
      const gid = `once:1:${parts.home}:${parts.id}:${Number(parts.xid) - 1 - dice.below(3)}:${parts.participant}`
      if (one.transaction.database.server.prepared.has(gid)) return 0
      oracle.forged.add(gid)
      runInside(one.transaction.database.server, forge(one.transaction.database, gid))
      return 0
    }
    case 'fence':
      if (server.fencedAt !== undefined) return 0
      count()
      server.fencedAt = clock.now
      clock.after(time, undefined, () => {
        server.fencedAt = undefined
      })
      return 0
    case 'redirect': {
      const others = here.databases.filter((one) => one !== database)
      if (others.length === 0 || process.redirected.size > 0) return 0
      count()
      process.redirected.set(database, dice.pick(others))
      return 0
    }
    case 'fill slots': {
      count()
      for (let slot = server.prepared.size; slot < Math.min(server.settings.maxPrepared, 64); slot += 1)
        runInside(server, fillSlot(database, `stranger-${here.effects++}`, time))
      return 0
    }
  }
}

/** What coordinators have prepared, wherever a server is up. */
function branchesOf({ servers, oracle }: World): Prepared[] {
  return servers
    .flatMap(({ up, prepared }) => (up ? [...prepared.values()] : []))
    .filter(({ gid }) => decodeGid(gid) && !oracle.forged.has(gid))
}

function crashServer(here: World, server: Server, downTime: number): void {
  if (!server.up) return
  crash(server)
  endSessions(here, server)
  restartLater(here, server, downTime)
}

/** Connections break, and what runs inside the server ends with it. */
function endSessions(here: World, server: Server): void {
  dropConnections(here, server, here.processes)
  for (const process of here.processes) if (process.host === server) killProcess(here, process)
}

function restartLater(here: World, server: Server, downTime: number): void {
  here.scheduler.after(downTime, undefined, () => {
    if (server.up) return
    startServer(here, server)
  })
}

/** After a crash strangers get the xids that were lost. */
export function startServer(here: World, server: Server): void {
  restart(server)
  here.note?.(() => `server ${server.number} is up`)
  for (let count = server.random.below(4); count > 0; count -= 1) {
    const database = server.databases[server.random.below(server.databases.length)]
    if (database) runInside(server, stranger(database, server.random))
  }
}

function* stranger(database: SimulatedDatabase, dice: Random): Generator<Pause, void> {
  yield dice.between(0.1, 50)
  const transaction = beginTransaction(database)
  assignXid(transaction)
  yield dice.between(0.1, 300)
  if (dice.chance(0.7)) yield* commitTransaction(transaction, () => {})
  else abort(transaction)
}

function* forge(database: SimulatedDatabase, gid: string): Generator<Pause, void> {
  const transaction = beginTransaction(database)
  yield* lock(transaction, 'effect', gid)
  write(transaction, 'effect', gid, {})
  yield* prepareTransaction(transaction, gid, 'app', () => {})
}

/** As once.force: notes the branch, and then the line is typed. */
function* force(
  database: SimulatedDatabase,
  gid: string,
  owner: string,
  commit: boolean,
): Generator<Pause, void> {
  const parts = decodeGid(gid)
  if (parts === undefined) return
  const transaction = beginTransaction(database)
  yield* lock(transaction, 'heuristic', gid)
  write(transaction, 'heuristic', gid, { ...parts, gid, owner, decided: undefined, done: undefined })
  yield* commitTransaction(transaction, () => {})
  yield* finishPrepared(database, gid, commit, superuser, () => {})
}

function* fillSlot(database: SimulatedDatabase, gid: string, time: number): Generator<Pause, void> {
  const transaction = beginTransaction(database)
  assignXid(transaction)
  yield* prepareTransaction(transaction, gid, 'stranger', () => {})
  yield time
  yield* finishPrepared(database, gid, false, 'stranger', () => {})
}
