/**
 * What happens in a schedule, drawn from its seed: who runs which transactions over which databases, and which
 * faults strike at which points. A plan is plain data, so that it can be printed, run again, and made smaller.
 * Delays and other small chances are drawn while it runs, from streams of the same seed.
 */

import { type Random, random } from '../rig/random.ts'
import type { DriverName } from './drivers.ts'
import { type Kind, kinds, points, reachable, sidesOf } from './points.ts'

export interface Plan {
  readonly seed: number
  /** Milliseconds that most messages take: least and most. */
  readonly delay: readonly [number, number]
  readonly servers: readonly ServerPlan[]
  /** Which server each database is on; their names are a, b, c. */
  readonly databases: readonly number[]
  readonly processes: readonly ProcessPlan[]
  readonly transactions: readonly TransactionPlan[]
  readonly recoverers: readonly RecovererPlan[]
  readonly faults: readonly Fault[]
}

interface ServerPlan {
  readonly maxPrepared: number
  readonly synchronousCommit: string
  readonly isolation: string
  readonly statusReach: number
}

interface ProcessPlan {
  /** One a database. */
  readonly drivers: readonly DriverName[]
  readonly maxConnections: number
  /** Whether it runs a recovery of its own, until its transactions are over. */
  readonly recovers: boolean
}

export interface TransactionPlan {
  readonly process: number
  /** Milliseconds after the beginning. */
  readonly at: number
  readonly operations: readonly Operation[]
  readonly options: {
    readonly timeout: number
    readonly lockTimeout?: number
    readonly idleTimeout?: number
    readonly isolationLevel?: 'read committed' | 'repeatable read' | 'serializable'
    readonly finish?: 'await' | 'background'
    readonly home?: string
    readonly retries?: number
    readonly record?: boolean
  }
  /** Milliseconds after which its signal aborts it. */
  readonly abortAt?: number
}

/**
 * What a handler does in a database: change a row of its own (`insert`), by a function that does not say so
 * (`call`), or one that everybody wants (`update`); read; change nothing (`miss`); what fails only at the end
 * (`defer`, `skew`) or cannot be prepared (`temp`); fail and go on (`swallow`) or give up (`fail`, `throw`).
 */
export interface Operation {
  readonly database: number
  readonly does:
    | 'insert'
    | 'call'
    | 'update'
    | 'read'
    | 'miss'
    | 'defer'
    | 'skew'
    | 'temp'
    | 'swallow'
    | 'fail'
    | 'throw'
  /** Not waited for before the next. */
  readonly aside?: boolean
}

export interface RecovererPlan {
  readonly driver: DriverName
  /** As whom: the role that owns the branches, another that may take it on, or a superuser. */
  readonly login: string
  readonly at: number
  /** Milliseconds between its runs; how many. */
  readonly every: number
  readonly runs: number
  /** Whether it proves and purges, too, and after how many milliseconds. */
  readonly purges: boolean
  readonly keep: number
  /** Whether it audits after each run, too. */
  readonly audits: boolean
}

export type Action =
  | 'kill'
  | 'crash'
  | 'cut'
  | 'stall'
  | 'pause'
  | 'terminate'
  | 'refuse'
  | 'recover'
  | 'jump'
  | 'fail over'
  | 'roll back by hand'
  | 'commit by hand'
  | 'force'
  | 'forge'
  | 'fill slots'

export interface Fault {
  readonly action: Action
  /** The name of the point at which it strikes, and at the how manieth passage. */
  readonly point: string
  readonly passage: number
  /** Milliseconds: how long the server is down, the message held up, the process stopped, how far the clock jumps. */
  readonly time: number
  /** Log records that the standby never got. */
  readonly lost: number
}

const usual: readonly Action[] = [
  'kill',
  'kill',
  'kill',
  'crash',
  'crash',
  'cut',
  'cut',
  'stall',
  'stall',
  'terminate',
  'refuse',
  'pause',
]
const unusual: readonly Action[] = ['recover', 'recover', 'recover', 'jump', 'forge', 'fill slots']
const grave: readonly Action[] = ['fail over', 'fail over', 'roll back by hand', 'commit by hand', 'force']

/** What such a fault loses is younger than what is purged; see the guarantees. */
export function hasGraveFault({ faults }: Plan): boolean {
  return faults.some(({ action }) => grave.includes(action))
}

/** What is passed in most transactions: where most faults are worth the most. */
const busy = [
  'begin global',
  'vote',
  'prepare',
  'commit',
  'commit prepared',
  'rollback prepared',
  'branch outcome',
] as const

/** Every other seed makes for a point that is seldom passed, and strikes there. */
export function planOf(seed: number): Plan {
  return seed % 2 === 0 ? provoke(seed) : drawPlan(seed)
}

/** What leads to a kind of statement: first faults, and who runs what. */
interface Provocation {
  readonly kinds: readonly Kind[]
  /** What strikes first, where, and at the latest at the how manieth passage. */
  readonly action?: Action
  readonly point?: string
  readonly latest?: number
  /** Milliseconds that the first fault takes, at least and at most. */
  readonly time?: readonly [number, number]
  /** What strikes with it, at the same place. */
  readonly also?: Action
  /** Where a message is held up besides. */
  readonly slow?: string
  readonly drivers?: readonly DriverName[]
  /** In each database; two that insert are what is usual. */
  readonly does?: readonly Operation['does'][]
  readonly synchronousCommit?: string
  readonly login?: string
  readonly audits?: boolean
  readonly recoverAt?: number
  readonly runs?: number
  readonly transactions?: number
}

const pair = ['insert', 'insert'] as const

const provocations: readonly Provocation[] = [
  {
    kinds: ['find decisions', 'record loss'],
    action: 'roll back by hand',
    point: 'begin global: done',
  },
  {
    kinds: ['ask about a heuristic', 'judge heuristic'],
    action: 'force',
    point: 'begin global: done',
    audits: true,
  },
  {
    kinds: ['ask about a heuristic', 'judge heuristic'],
    action: 'force',
    point: 'begin global: arrive',
    audits: true,
  },
  { kinds: ['begin', 'assert branch', 'commit'], drivers: ['plain', 'tagged'], does: ['insert'] },
  { kinds: ['check and commit', 'look for prepared', 'begin'], drivers: ['pg', 'reopening'] },
  { kinds: ['vote', 'begin global', 'work'], does: ['call', 'call'] },
  // A connection is lost, and opened anew without a word, while another participant still votes.
  {
    kinds: ['prepare', 'look for prepared'],
    drivers: ['reopening'],
    action: 'terminate',
    point: 'vote: done',
    slow: 'begin global: arrive',
  },
  // Who does not write is no participant.
  { kinds: ['narrow global'], does: ['insert', 'read'] },
  { kinds: ['narrow global'], does: ['insert', 'read', 'call'] },
  { kinds: ['narrow global'], does: ['read', 'call', 'call'] },
  {
    kinds: ['commit'],
    drivers: ['plain', 'postgres.js'],
    does: ['insert', 'read'],
    action: 'refuse',
    point: 'narrow global: arrive',
  },
  {
    kinds: ['note xid', 'rollback', 'several', 'open'],
    drivers: ['pg', 'postgres.js'],
    does: ['insert', 'fail'],
  },
  { kinds: ['rollback prepared'], action: 'refuse', point: 'commit: arrive' },
  { kinds: ['rollback prepared'], action: 'refuse', point: 'begin global: arrive' },
  {
    kinds: ['find own evidence'],
    action: 'stall',
    point: 'commit prepared: send',
    time: [400, 401],
    recoverAt: 60,
  },
  { kinds: ['outcome'], action: 'cut', point: 'commit: done' },
  {
    kinds: ['tell role', 'set role', 'take role again', 'commit prepared'],
    action: 'kill',
    point: 'commit: done',
    login: 'keeper',
  },
  {
    kinds: ['tell role', 'set role', 'take role again', 'rollback prepared'],
    action: 'kill',
    point: 'prepare: done',
    login: 'keeper',
  },
  { kinds: ['list in doubt', 'branch outcome'], action: 'kill', point: 'prepare: answer' },
  { kinds: ['list prepared', 'find evidence', 'mark proven', 'unproven', 'stamp recovery', 'identify'] },
  { kinds: ['list prepared', 'find evidence', 'mark confirmed', 'proven', 'confirmed'] },
  { kinds: ['delete evidence', 'purge', 'mark confirmed', 'confirmed'] },
  { kinds: ['page evidence', 'list heuristics'], audits: true },
  // Recovery asks for the decision just when it falls, and what it does comes before what the coordinator does.
  {
    kinds: ['stamp recovery', 'confirmed', 'delete evidence', 'purge'],
    action: 'stall',
    point: 'commit: arrive',
    time: [2, 20],
    also: 'recover',
    slow: 'commit prepared: send',
  },
  // What was acknowledged is there after a crash, whatever the role's default.
  {
    kinds: ['commit', 'open', 'rollback'],
    action: 'crash',
    point: 'open: send',
    latest: 2,
    transactions: 2,
    does: ['insert'],
    synchronousCommit: 'off',
  },
  { kinds: ['commit prepared'], action: 'crash', point: 'commit: answer', synchronousCommit: 'off' },
  // The home is slow to roll back what a participant refused.
  {
    kinds: ['rollback', 'rollback prepared'],
    action: 'stall',
    point: 'rollback: send',
    does: ['insert', 'defer'],
  },
  // A standby takes over that lacks what recovery has seen already.
  ...(['list in doubt: arrive', 'stamp recovery: done', 'unproven: arrive'] as const).map((point) => ({
    kinds: ['list in doubt', 'stamp recovery', 'mark proven'] as const,
    action: 'fail over' as const,
    point,
    latest: 8,
    runs: 3,
  })),
]

/** What leads to each kind: first the kind is drawn, lest those fall short that few lead to. */
const leading = [
  ...Map.groupBy(
    provocations.flatMap((provocation) => provocation.kinds.map((kind) => ({ kind, provocation }))),
    ({ kind }) => kind,
  ).values(),
]

/** What recovery says comes behind what a coordinator says. */
const firstOfRecovery = kinds.indexOf('list in doubt')

/** The traced steps; those of recovery are taken where a coordinator has died. */
const steps = points.filter((point) => point.startsWith('step '))
const recoverySteps = steps.filter((point) => point.startsWith('step recover'))

function provoke(seed: number): Plan {
  const dice = random(seed)
  const { provocation, kind } = dice.pick(dice.pick(leading))
  const isCoordinators = kinds.indexOf(kind) < firstOfRecovery
  const {
    action,
    point,
    also,
    latest = 1,
    drivers = ['postgres.js'],
    does = pair,
    login = 'app',
    runs = 1,
  } = provocation
  const side = dice.pick(sidesOf(kind))
  const driver = dice.pick(drivers)
  const isGrave = action !== undefined && grave.includes(action)
  const fault = (what: Action, where: string, passage: number, time = timeOf(dice, what)): Fault => ({
    action: what,
    point: where,
    passage,
    time,
    lost: 1 + dice.below(6),
  })
  const server = {
    maxPrepared: 64,
    synchronousCommit: provocation.synchronousCommit ?? 'on',
    isolation: 'read committed',
    statusReach: 1000,
  }
  const first: Fault[] = []
  if (action && point) {
    const passage = 1 + dice.below(latest)
    if (provocation.slow) first.push(fault('stall', provocation.slow, 1, dice.between(20, 400)))
    if (also) first.push(fault(also, point, passage))
    first.push(fault(action, point, passage, provocation.time && dice.between(...provocation.time)))
  }
  return {
    seed,
    delay: [0.05, 1],
    servers: does.length > 2 ? [server, server, server] : [server, server],
    databases: does.length > 2 ? [0, 1, 2] : [0, 1],
    processes: [{ drivers: [driver, driver, driver], maxConnections: 2, recovers: false }],
    transactions: Array.from({ length: provocation.transactions ?? dice.pick([1, 1, 2]) }, (_, number) => ({
      process: 0,
      at: 1 + 10 * number,
      operations: does.map((one, database) => ({ database, does: one })),
      options: { timeout: 60_000 },
    })),
    recoverers: Array.from({ length: dice.pick(isCoordinators ? [0, 1] : [1, 1, 1, 2]) }, (_, number) => ({
      driver: 'postgres.js',
      login,
      at: (provocation.recoverAt ?? 60) + dice.between(1, 100) + 300 * number,
      every: dice.between(1, 300),
      runs,
      purges: true,
      keep: isGrave ? 600_000 : 0,
      audits: provocation.audits ?? false,
    })),
    faults: [
      ...first,
      fault(
        dice.pick(['kill', 'kill', 'kill', 'kill', 'crash', 'crash', 'crash', 'cut', 'stall', 'terminate']),
        dice.chance(0.08) ? dice.pick(action === 'kill' ? recoverySteps : steps) : `${kind}: ${side}`,
        dice.chance(0.8) ? 1 : 1 + dice.below(3),
      ),
    ],
  }
}

function drawPlan(seed: number): Plan {
  const dice = random(seed)
  const databaseCount = dice.chance(0.6) ? 2 : 3
  const serverCount = dice.chance(0.8) ? databaseCount : databaseCount - 1
  const alike = dice.chance(0.6)
  const drivers = (): DriverName[] => {
    const one = driverOf(dice)
    return Array.from({ length: databaseCount }, () => (alike ? one : driverOf(dice)))
  }
  const processes = Array.from({ length: dice.chance(0.7) ? 1 : 2 }, () => ({
    drivers: drivers(),
    maxConnections: 1 + dice.below(3),
    recovers: dice.chance(0.15),
  }))
  const isGrave = dice.chance(0.15)
  const faults = faultsOf(dice, isGrave)
  return {
    seed,
    delay: dice.pick([
      [0.05, 1],
      [0.2, 5],
      [0.05, 40],
    ] as const),
    servers: Array.from({ length: serverCount }, () => ({
      maxPrepared: dice.chance(0.02) ? 0 : dice.chance(0.05) ? 1 : 64,
      synchronousCommit: dice.chance(0.3) ? dice.pick(['off', 'local']) : 'on',
      isolation: dice.chance(0.1) ? dice.pick(['repeatable read', 'serializable']) : 'read committed',
      statusReach: dice.chance(0.1) ? 3 : 1000,
    })),
    databases: Array.from({ length: databaseCount }, (_, index) => index % serverCount),
    processes,
    transactions: Array.from({ length: dice.pick([1, 1, 2, 3]) }, () =>
      transactionOf(dice, processes.length, databaseCount),
    ),
    recoverers: Array.from({ length: dice.pick([0, 1, 1, 2]) }, () => ({
      driver: dice.chance(0.6) ? ('postgres.js' as const) : driverOf(dice),
      login: dice.pick(['app', 'keeper', 'postgres']),
      at: dice.between(1, 500),
      every: dice.between(1, 3000),
      runs: 1 + dice.below(2),
      purges: dice.chance(0.5),
      // What a failover loses is younger than what is purged; see the guarantees.
      keep: isGrave || dice.chance(0.3) ? 600_000 : Math.floor(dice.between(1, 1000)) - 1,
      audits: dice.chance(0.3),
    })),
    faults,
  }
}

function driverOf(dice: Random): DriverName {
  return dice.chance(0.6) ? 'postgres.js' : dice.pick(['pg', 'tagged', 'plain', 'reopening'])
}

function transactionOf(dice: Random, processes: number, databases: number): TransactionPlan {
  const operations: Operation[] = []
  const order = Array.from({ length: databases }, (_, index) => index).sort(() => dice.next() - 0.5)
  const used = order.slice(0, dice.chance(0.1) ? 1 : dice.chance(0.7) ? 2 : databases)
  for (const database of used) {
    const times = dice.chance(0.8) ? 1 : 2
    for (let time = 0; time < times; time += 1) {
      operations.push({ database, does: doing(dice), ...(dice.chance(0.15) ? { aside: true } : {}) })
    }
  }
  if (dice.chance(0.15)) operations.push({ database: dice.pick(used), does: doing(dice) })
  const isolationLevel = dice.chance(0.15)
    ? dice.pick(['read committed', 'repeatable read', 'serializable'] as const)
    : undefined
  return {
    process: dice.below(processes),
    at: dice.chance(0.7) ? dice.between(0.1, 20) : dice.between(1, 2000),
    operations,
    options: {
      timeout: Math.floor(dice.chance(0.6) ? 60_000 : dice.between(20, 20_000)),
      ...(dice.chance(0.3) ? { lockTimeout: Math.floor(dice.between(10, 1000)) } : {}),
      ...(dice.chance(0.2) ? { idleTimeout: Math.floor(dice.between(100, 10_000)) } : {}),
      ...(isolationLevel ? { isolationLevel } : {}),
      ...(dice.chance(0.3) ? { finish: 'background' } : {}),
      ...(dice.chance(0.2) ? { home: nameOf(dice.below(databases)) } : {}),
      ...(dice.chance(0.2) ? { retries: dice.below(3) } : {}),
      ...(dice.chance(0.3) ? { record: true } : {}),
    },
    ...(dice.chance(0.1) ? { abortAt: dice.between(1, 200) } : {}),
  }
}

function doing(dice: Random): Operation['does'] {
  if (dice.chance(0.7)) return 'insert'
  return dice.pick([
    'call',
    'call',
    'update',
    'update',
    'read',
    'read',
    'miss',
    'defer',
    'skew',
    'temp',
    'swallow',
    'fail',
    'throw',
  ])
}

function faultsOf(dice: Random, isGrave: boolean): Fault[] {
  const faults: Fault[] = []
  const count = dice.chance(0.05) ? 0 : 1 + dice.below(3)
  for (let index = 0; index < count; index += 1) {
    faults.push(
      faultOf(
        dice,
        isGrave && index === 0 ? dice.pick(grave) : dice.pick(dice.chance(0.8) ? usual : unusual),
      ),
    )
  }
  return faults
}

function faultOf(dice: Random, action: Action): Fault {
  return {
    action,
    point: dice.chance(0.5) ? busyPoint(dice) : (points[dice.pick(reachable)] as string),
    passage: dice.chance(0.6) ? 1 : 1 + dice.below(5),
    time: timeOf(dice, action),
    lost: 1 + dice.below(6),
  }
}

function busyPoint(dice: Random): string {
  const kind = dice.pick(busy)
  return `${kind}: ${dice.pick(sidesOf(kind))}`
}

function timeOf(dice: Random, action: Action): number {
  switch (action) {
    case 'crash':
    case 'fail over':
      return dice.between(5, 20_000)
    case 'jump':
      return dice.between(100, 1_000_000)
    default:
      // Rarely as long as it takes TCP to give up.
      return dice.chance(0.1) ? dice.between(10_000, 900_000) : dice.between(1, 3_000)
  }
}

export function nameOf(database: number): string {
  return 'abc'[database] as string
}
