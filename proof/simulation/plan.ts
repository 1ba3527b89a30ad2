/**
 * What happens in a schedule, drawn from its seed: who runs which transactions over which databases, and which
 * faults strike at which points. A plan is plain data, so that it can be printed, run again, and made smaller.
 * Delays and other small chances are drawn while it runs, from streams of the same seed.
 */
import { type Random, random } from '../rig/random.ts'
import type { DriverPlan, ForeignDriver } from './drivers.ts'
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
  readonly drivers: readonly DriverPlan[]
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
  readonly claim?: Claim
}

/**
 * The message that a transaction claims, and where: before its handler runs, behind it (`late`), or with effects known
 * beforehand, in one round trip and without a handler (`alone`).
 */
export interface Claim {
  readonly database: number
  readonly sequence: number
  readonly when: 'first' | 'late' | 'alone'
}

/**
 * What a handler does in a database: change a row of its own (`insert`; `attempt`: whether that fails or not), by a
 * function that does not say so (`call`), or one that everybody wants (`update`); `read`, `stream`; change nothing
 * (`miss`), say `nothing`; what fails only at the end (`defer`, `skew`) or cannot be prepared (`temp`); change the
 * session, at once (`set`, `set local`, `role`, `lock`) or at the end (`soften`); end its transaction (`end`), so that
 * nobody sees it (`smuggle`); fail and go on (`swallow`) or give up (`fail`, `throw`).
 */
export interface Operation {
  readonly database: number
  readonly does:
    | 'insert'
    | 'attempt'
    | 'call'
    | 'update'
    | 'read'
    | 'stream'
    | 'nothing'
    | 'miss'
    | 'defer'
    | 'skew'
    | 'temp'
    | 'set'
    | 'set local'
    | 'role'
    | 'lock'
    | 'soften'
    | 'end'
    | 'smuggle'
    | 'swallow'
    | 'fail'
    | 'throw'
  /** Not waited for before the next, or never. */
  readonly aside?: true | 'never'
}

export interface RecovererPlan {
  readonly driver: DriverPlan
  /** `once.recover()` in each database, instead of a process that has connections to all. */
  readonly inside: boolean
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
  | 'fence'
  | 'redirect'

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
const unusual: readonly Action[] = ['recover', 'recover', 'recover', 'jump', 'forge', 'fill slots', 'fence']
const grave: readonly Action[] = ['fail over', 'fail over', 'roll back by hand', 'commit by hand', 'force']

/** What such a fault loses is younger than what is purged; see the guarantees. */
export function hasGraveFault({ faults }: Plan): boolean {
  return faults.some(({ action }) => grave.includes(action))
}

/** What is passed in most transactions: where most faults are worth the most. */
const busy = [
  'open_direct',
  'prepare_direct',
  'decide_direct',
  'commit_direct',
  'prepare',
  'decide',
  'commit',
  'prepare_shared',
  'decide_shared',
  'commit_shared',
  'finish commit',
  'finish rollback',
  'answer finish',
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
  readonly drivers?: readonly DriverPlan[]
  readonly recoverer?: DriverPlan
  /** In each database; two that insert are what is usual. */
  readonly does?: readonly Operation['does'][]
  readonly synchronousCommit?: string
  readonly login?: string
  readonly audits?: boolean
  readonly keep?: number
  readonly recoverAt?: number
  readonly runs?: number
  readonly transactions?: number
  /** Milliseconds between two transactions. */
  readonly apart?: number
  /** Of this many messages, each transaction claims one. */
  readonly messages?: number
  readonly when?: Claim['when']
  readonly options?: Partial<TransactionPlan['options']>
  /** No fault besides. */
  readonly alone?: true
}

const pair = ['insert', 'insert'] as const

const driver: ForeignDriver = {
  tags: false,
  several: 'all',
  reopens: false,
  queues: false,
  changes: undefined,
}
const foreign: readonly ForeignDriver[] = [driver, { ...driver, tags: true, queues: true }]
const reopening: ForeignDriver = { ...driver, reopens: true }

const ofCommits: readonly Provocation[] = [
  { kinds: ['prepare_direct', 'decide_direct', 'work'], does: ['call', 'call'] },
  {
    kinds: ['begin', 'open', 'commit', 'probe', 'probe_several', 'read_probe'],
    drivers: foreign,
    does: ['insert'],
  },
  { kinds: ['begin', 'open', 'prepare', 'decide'], drivers: [...foreign, reopening, 'pooled'] },
  { kinds: ['hello', 'second_net', 'open_direct'], does: ['insert', 'stream'], transactions: 2 },
  { kinds: ['prepare_shared', 'decide_shared'], drivers: ['pooled'] },
  { kinds: ['commit_shared'], does: ['insert'], drivers: ['pooled'] },
  // A connection is lost, and opened again without a word, while others are asked.
  {
    kinds: ['prepare', 'note_xid'],
    drivers: [reopening],
    action: 'terminate',
    point: 'note_xid: done',
    slow: 'prepare: send',
  },
  // Who does not write is no participant.
  { kinds: ['commit_direct', 'note_xid'], does: ['insert', 'read'] },
  { kinds: ['commit_direct', 'note_xid'], does: ['read', 'call', 'stream'] },
  { kinds: ['commit', 'note_xid'], does: ['read', 'call', 'call'], drivers: foreign },
  { kinds: ['commit_direct'], does: ['insert', 'read'], action: 'refuse', point: 'commit_direct: arrive' },
  {
    kinds: ['commit_direct', 'decide_direct'],
    does: ['insert', 'skew', 'insert'],
    options: { isolationLevel: 'serializable' },
  },
  { kinds: ['note_xid', 'rollback_direct', 'open_direct'], does: ['insert', 'fail'] },
  { kinds: ['rollback', 'open'], does: ['insert', 'fail'], drivers: foreign },
  {
    kinds: ['rollback_direct'],
    does: ['insert', 'lock', 'fail'],
    action: 'refuse',
    point: 'rollback_direct: arrive',
    transactions: 2,
  },
  { kinds: ['finish rollback'], action: 'refuse', point: 'decide_direct: arrive' },
  { kinds: ['finish rollback'], action: 'refuse', point: 'decide: arrive', drivers: foreign },
  {
    kinds: ['finish rollback'],
    action: 'refuse',
    point: 'prepare_direct: arrive',
    does: ['insert', 'insert', 'insert'],
  },
  // The home is slow to roll back what a participant refused.
  {
    kinds: ['rollback_direct', 'finish rollback'],
    action: 'stall',
    point: 'rollback_direct: send',
    does: ['insert', 'insert', 'defer'],
  },
  // The transaction is given up before a branch is refused that nobody waits for any more.
  {
    kinds: ['prepare_direct', 'open_direct'],
    action: 'stall',
    point: 'prepare_direct: arrive',
    time: [400, 900],
    does: ['insert', 'defer'],
    options: { timeout: 300 },
    transactions: 3,
    apart: 320,
  },
  {
    kinds: ['find_evidence'],
    action: 'stall',
    point: 'finish commit: send',
    time: [400, 401],
    recoverAt: 60,
  },
  { kinds: ['outcome', 'begin_read_committed', 'end'], action: 'cut', point: 'decide_direct: done' },
  { kinds: ['outcome'], action: 'cut', point: 'decide: done', drivers: foreign },
  // What was acknowledged is there after a crash, whatever the role's default, and whatever a handler sets.
  {
    kinds: ['commit_direct', 'open_direct', 'rollback_direct'],
    action: 'crash',
    point: 'open_direct: send',
    latest: 2,
    transactions: 2,
    does: ['insert'],
    synchronousCommit: 'off',
  },
  {
    kinds: ['commit', 'open', 'rollback'],
    action: 'crash',
    point: 'open: send',
    latest: 2,
    transactions: 2,
    does: ['insert'],
    drivers: foreign,
    synchronousCommit: 'off',
  },
  { kinds: ['finish commit'], action: 'crash', point: 'decide_direct: answer', synchronousCommit: 'off' },
  {
    kinds: ['finish commit'],
    action: 'crash',
    point: 'decide: answer',
    drivers: foreign,
    synchronousCommit: 'off',
  },
  ...(['set', 'set local', 'soften'] as const).flatMap((does) => [
    { kinds: ['decide_direct', 'prepare_direct'] as const, does: [does, 'insert'] as const, transactions: 2 },
    { kinds: ['commit_direct'] as const, does: [does] as const, transactions: 2 },
    { kinds: ['decide', 'commit'] as const, does: [does, 'insert'] as const, drivers: foreign },
  ]),
  ...(['set', 'set local', 'soften'] as const).map((does) => ({
    kinds: ['commit_direct', 'open_direct'] as const,
    action: 'crash' as const,
    point: 'open_direct: send',
    latest: 2,
    transactions: 2,
    does: [does] as const,
  })),
  { kinds: ['commit_direct', 'rollback_direct'], does: ['temp'], transactions: 3 },
  { kinds: ['commit_shared'], does: ['set'], drivers: ['pooled'], transactions: 3 },
  ...(['role', 'lock'] as const).flatMap((does) => [
    { kinds: ['commit_direct', 'open_direct'] as const, does: [does] as const, transactions: 3 },
    { kinds: ['finish commit', 'prepare_direct'] as const, does: ['insert', does] as const, transactions: 3 },
    { kinds: ['prepare', 'decide'] as const, does: [does, 'insert'] as const, drivers: foreign },
    {
      kinds: ['prepare_shared', 'decide_shared', 'finish commit'] as const,
      does: ['insert', does] as const,
      drivers: ['pooled'] as const,
      transactions: 3,
    },
    {
      kinds: ['commit_shared', 'rollback'] as const,
      does: [does, 'throw'] as const,
      drivers: ['pooled'] as const,
      transactions: 3,
    },
    {
      kinds: ['commit_shared'] as const,
      does: [does] as const,
      drivers: ['pooled'] as const,
      transactions: 3,
    },
  ]),
  // BEGIN fails, and what was sent behind it must not take effect.
  ...(['open_direct: arrive', 'begin: arrive'] as const).flatMap((point) => [
    {
      kinds: ['open_direct', 'work'] as const,
      action: 'refuse' as const,
      point,
      does: ['attempt'] as const,
      drivers: ['own', 'own', 'pooled', driver] as const,
    },
    {
      kinds: ['open_direct', 'work'] as const,
      action: 'refuse' as const,
      point,
      latest: 2,
      does: ['attempt', 'attempt'] as const,
      drivers: ['own', 'own', 'pooled', driver] as const,
    },
  ]),
  { kinds: ['work', 'commit_direct'], does: ['insert', 'end'] },
  { kinds: ['work', 'commit'], does: ['insert', 'end'], drivers: foreign },
  { kinds: ['prepare_direct', 'decide_direct'], does: ['insert', 'insert', 'smuggle'] },
  // Drivers that cannot be seen to do what they are asked.
  {
    kinds: ['probe_several', 'read_probe', 'commit'],
    drivers: [
      { ...driver, several: 'refused' },
      { ...driver, several: 'first' },
      { ...driver, several: 'nested' },
      { ...driver, changes: 'case' },
    ],
  },
  { kinds: ['claim_sequence', 'commit_direct'], messages: 1, transactions: 3, does: ['insert'] },
  { kinds: ['claim_sequence', 'decide_direct'], messages: 2, transactions: 3 },
  {
    kinds: ['claim_sequence', 'work'],
    messages: 1,
    when: 'late',
    drivers: [reopening],
    action: 'terminate',
    point: 'work: answer',
  },
  { kinds: ['claim_sequence', 'commit'], messages: 1, transactions: 2, does: ['insert'], drivers: foreign },
  ...(['own', driver, reopening, 'pooled'] as const).flatMap((one) => [
    {
      kinds: ['claim_sequence_with_effects'] as const,
      messages: 1,
      when: 'alone' as const,
      transactions: 3,
      apart: 1,
      does: ['insert'] as const,
      drivers: [one],
    },
    {
      kinds: ['claim_sequence_with_effects'] as const,
      messages: 1,
      when: 'alone' as const,
      transactions: 2,
      does: ['insert'] as const,
      drivers: [one],
      action: 'refuse' as const,
      point: one === 'own' ? 'open_direct: arrive' : 'begin: arrive',
    },
  ]),
  // An address leads to another database, and who comes there believes it is the one from before.
  ...(['decide_direct: answer', 'finish commit: answer'] as const).map((point) => ({
    kinds: ['decide_direct', 'prepare_direct', 'identify'] as const,
    action: 'redirect' as const,
    also: 'terminate' as const,
    point,
    transactions: 2,
  })),
  {
    kinds: ['fence', 'hello'],
    action: 'fence',
    point: 'commit_direct: answer',
    latest: 4,
    time: [3_000, 3_001],
    does: ['insert'],
    transactions: 14,
    apart: 300,
    alone: true,
  },
  { kinds: ['fence', 'hello', 'begin'], action: 'fence', point: 'hello: send', latest: 3 },
]

const ofRecovery: readonly Provocation[] = [
  {
    kinds: ['answer prove', 'apply prove'],
    action: 'roll back by hand',
    point: 'decide_direct: arrive',
  },
  {
    kinds: ['ask judge', 'answer judge', 'apply judge'],
    action: 'force',
    point: 'decide_direct: arrive',
    audits: true,
  },
  {
    kinds: ['ask judge', 'answer judge', 'apply judge'],
    action: 'force',
    point: 'decide_direct: done',
    audits: true,
  },
  ...(['decide_direct: done', 'prepare_direct: done'] as const).flatMap((point) => {
    const kind: Kind = point === 'prepare_direct: done' ? 'finish rollback' : 'finish commit'
    const killed = { action: 'kill' as const, point, login: 'keeper' }
    return [
      { ...killed, kinds: ['take role', 'reset role', kind] as const },
      { ...killed, kinds: ['tell_role', 'take role', 'set_role', kind] as const, recoverer: driver },
    ]
  }),
  {
    kinds: ['ask finish', 'answer finish', 'apply finish'],
    action: 'kill',
    point: 'prepare_direct: answer',
  },
  { kinds: ['answer finish', 'apply finish'], action: 'kill', also: 'forge', point: 'decide_direct: done' },
  { kinds: ['ask prove', 'answer prove', 'apply prove', 'identify'] },
  { kinds: ['ask confirm', 'answer confirm', 'apply confirm'] },
  { kinds: ['ask purge', 'answer purge', 'apply purge'] },
  { kinds: ['ask audit', 'answer audit', 'apply audit', 'ask judge'], audits: true, keep: 600_000 },
  // Recovery asks for the decision just when it falls, and what it does comes before what the coordinator does.
  {
    kinds: ['ask confirm', 'ask purge', 'answer purge', 'apply purge'],
    action: 'stall',
    point: 'decide_direct: arrive',
    time: [2, 20],
    also: 'recover',
    slow: 'finish commit: send',
  },
  // A standby takes over that lacks what recovery has seen already.
  ...(['ask finish: arrive', 'ask purge: done', 'ask prove: arrive'] as const).map((point) => ({
    kinds: ['ask finish', 'ask purge', 'apply prove'] as const,
    action: 'fail over' as const,
    point,
    latest: 8,
    runs: 3,
  })),
]

const provocations = [...ofCommits, ...ofRecovery]

/** What leads to each kind: first the kind is drawn, lest those fall short that few lead to. */
const leading = [
  ...Map.groupBy(
    provocations.flatMap((provocation) => provocation.kinds.map((kind) => ({ kind, provocation }))),
    ({ kind }) => kind,
  ).values(),
]

/** What recovery says comes behind what a coordinator says. */
const firstOfRecovery = kinds.indexOf('ask finish')

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
    drivers = ['own'],
    recoverer = 'own',
    does = pair,
    login = 'app',
    runs = 1,
  } = provocation
  const side = dice.pick(sidesOf(kind))
  const one = dice.pick(drivers)
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
    processes: [{ drivers: [one, one, one], maxConnections: 2, recovers: false }],
    transactions: Array.from({ length: provocation.transactions ?? dice.pick([1, 1, 2]) }, (_, number) => ({
      process: 0,
      at: 1 + (provocation.apart ?? 10) * number,
      operations: operationsOf(dice, does),
      options: { timeout: 60_000, ...provocation.options },
      ...(provocation.messages
        ? {
            claim: {
              database: 0,
              sequence: 1 + dice.below(provocation.messages),
              when: provocation.when ?? 'first',
            },
          }
        : {}),
    })),
    recoverers: Array.from({ length: dice.pick(isCoordinators ? [0, 1] : [1, 1, 1, 2]) }, (_, number) => ({
      driver: recoverer,
      inside: provocation.recoverer === undefined && dice.chance(0.25),
      login,
      at: (provocation.recoverAt ?? 60) + dice.between(1, 100) + 300 * number,
      every: dice.between(1, 300),
      runs,
      purges: true,
      keep: provocation.keep ?? (isGrave ? 600_000 : 0),
      audits: provocation.audits ?? false,
    })),
    faults: [
      ...first,
      ...(provocation.alone
        ? []
        : [
            fault(
              dice.pick([
                ...['kill', 'kill', 'kill', 'kill', 'crash', 'crash', 'crash'],
                ...['cut', 'stall', 'terminate'],
              ] as Action[]),
              dice.chance(0.08) ? dice.pick(action === 'kill' ? recoverySteps : steps) : `${kind}: ${side}`,
              dice.chance(0.8) ? 1 : 1 + dice.below(3),
            ),
          ]),
    ],
  }
}

/** What only changes the session changes a row, too: without one there is nothing to be lost. */
function operationsOf(dice: Random, does: readonly Operation['does'][]): Operation[] {
  return does.flatMap((one, database): Operation[] =>
    ['set', 'set local', 'soften', 'role', 'lock', 'smuggle'].includes(one)
      ? dice.chance(0.5)
        ? [
            { database, does: 'insert' },
            { database, does: one },
          ]
        : [
            { database, does: one },
            { database, does: 'insert' },
          ]
      : [{ database, does: one }],
  )
}

function drawPlan(seed: number): Plan {
  const dice = random(seed)
  const databaseCount = dice.chance(0.6) ? 2 : 3
  const serverCount = dice.chance(0.8) ? databaseCount : databaseCount - 1
  const alike = dice.chance(0.6)
  const drivers = (): DriverPlan[] => {
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
      driver: dice.chance(0.6) ? ('own' as const) : driverOf(dice),
      inside: dice.chance(0.25),
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

function driverOf(dice: Random): DriverPlan {
  if (dice.chance(0.6)) return 'own'
  if (dice.chance(0.2)) return 'pooled'
  return {
    tags: dice.chance(0.5),
    several: dice.chance(0.8) ? 'all' : dice.pick(['refused', 'first', 'nested']),
    reopens: dice.chance(0.5),
    queues: dice.chance(0.5),
    changes: dice.chance(0.9) ? undefined : dice.pick(['case', 'number', 'null']),
  }
}

function transactionOf(dice: Random, processes: number, databases: number): TransactionPlan {
  const operations: Operation[] = []
  const order = Array.from({ length: databases }, (_, index) => index).sort(() => dice.next() - 0.5)
  const used = order.slice(0, dice.chance(0.1) ? 1 : dice.chance(0.7) ? 2 : databases)
  for (const database of used) {
    const times = dice.chance(0.8) ? 1 : 2
    for (let time = 0; time < times; time += 1) {
      operations.push({ database, does: doing(dice), ...asideOf(dice) })
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
    ...(dice.chance(0.2)
      ? {
          claim: {
            database: dice.pick(used),
            sequence: 1 + dice.below(2),
            when: dice.pick(['first', 'late', 'alone']),
          },
        }
      : {}),
  }
}

function asideOf(dice: Random): Pick<Operation, 'aside'> {
  if (!dice.chance(0.17)) return {}
  return { aside: dice.chance(0.85) ? true : 'never' }
}

function doing(dice: Random): Operation['does'] {
  if (dice.chance(0.7)) return 'insert'
  return dice.pick([
    ...([
      'call',
      'call',
      'update',
      'update',
      'read',
      'read',
      'attempt',
      'stream',
      'nothing',
      'miss',
    ] as const),
    ...(['defer', 'skew', 'temp', 'set', 'set local', 'role', 'lock', 'soften', 'end', 'smuggle'] as const),
    ...(['swallow', 'fail', 'throw'] as const),
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
