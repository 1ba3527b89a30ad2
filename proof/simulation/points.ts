/**
 * Where faults can strike: each kind of statement on each side of it, and each step that the code under test
 * traces. A point is a number, so that looking one up costs nothing.
 */

/** What couriers carry. */
const recoverySteps = ['finish', 'prove', 'confirm', 'purge', 'audit', 'judge'] as const
const messages = (['ask', 'answer', 'apply'] as const).flatMap((does) =>
  recoverySteps.map((step) => `${does} ${step}` as const),
)

/** What the client sends: statements by name, and what has none by its purpose. */
export const kinds = [
  'hello',
  'second_net',
  'fence',
  'probe',
  'probe_several',
  'read_probe',
  'identify',
  'open_direct',
  'begin',
  'open',
  'claim_sequence',
  'claim_sequence_with_effects',
  'work',
  'note_xid',
  'prepare_direct',
  'prepare',
  'prepare_shared',
  'decide_direct',
  'decide',
  'decide_shared',
  'commit_direct',
  'commit',
  'commit_shared',
  'rollback_direct',
  'rollback',
  'finish commit',
  'finish rollback',
  'find_evidence',
  'outcome',
  'begin_read_committed',
  'end',
  ...messages,
  'tell_role',
  'take role',
  'set_role',
  'reset role',
] as const

export type Kind = (typeof kinds)[number]

/**
 * A statement's way: the client is about to send it; it has arrived and was not begun; it is durable and not
 * visible yet (only what flushes); it was carried out and not answered; its answer has arrived.
 */
const sides = ['send', 'arrive', 'flushed', 'done', 'answer'] as const

type Side = (typeof sides)[number]

/** What the code under test traces and concerns one database. */
export const steps = ['begin', 'prepare', 'decide', 'finish', 'recover'] as const

/** Kinds whose execution has a moment between its flush and its effect. */
const flushing: ReadonlySet<Kind> = new Set([
  'prepare_direct',
  'prepare',
  'prepare_shared',
  'decide_direct',
  'decide',
  'decide_shared',
  'commit_direct',
  'commit',
  'commit_shared',
  'finish commit',
  'finish rollback',
])

export const points: readonly string[] = [
  ...kinds.flatMap((kind) => sides.map((side) => `${kind}: ${side}`)),
  ...steps.flatMap((step) => [`step ${step}: start`, `step ${step}: end`]),
]

const numbers = new Map<string, number>(points.map((point, number) => [point, number]))

export function pointOf(name: string): number {
  const number = numbers.get(name)
  if (number === undefined) throw new Error(`There is no point ${name}`)
  return number
}

const wayOf = new Map(
  kinds.map((kind) => {
    const way = sides.map((side) => [side, pointOf(`${kind}: ${side}`)])
    return [kind, Object.fromEntries(way) as Record<Side, number>]
  }),
)

/** The points of a statement's way. */
export function pointsOf(kind: Kind): Readonly<Record<Side, number>> {
  return wayOf.get(kind) as Record<Side, number>
}

/** Whether the statement that passes a point has been begun. */
export function isBegun(point: number): boolean {
  return point % sides.length >= sides.indexOf('flushed')
}

/** The sides that a statement of this kind passes. */
export function sidesOf(kind: Kind): readonly Side[] {
  return flushing.has(kind) ? sides : sides.filter((side) => side !== 'flushed')
}

/** The points that a schedule can pass. */
export const reachable: readonly number[] = [
  ...kinds.flatMap((kind) => sidesOf(kind).map((side) => pointsOf(kind)[side])),
  ...steps.flatMap((step) => [pointOf(`step ${step}: start`), pointOf(`step ${step}: end`)]),
]
