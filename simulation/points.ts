/**
 * Where faults can strike: each kind of statement on each side of it, and each step that the code under test
 * traces. A point is a number, so that looking one up costs nothing.
 */

/** What the client sends, one kind a purpose. */
export const kinds = [
  'identify',
  'several',
  'begin',
  'open',
  'work',
  'note xid',
  'check open',
  'begin global',
  'vote',
  'narrow global',
  'prepare',
  'look for prepared',
  'commit',
  'check and commit',
  'rollback',
  'commit prepared',
  'rollback prepared',
  'find own evidence',
  'outcome',
  'check home',
  'list in doubt',
  'decide',
  'unproven',
  'list prepared',
  'find evidence',
  'mark proven',
  'find decisions',
  'record heuristic',
  'proven',
  'mark confirmed',
  'confirmed',
  'delete evidence',
  'forget proven',
  'stamp recovery',
  'page evidence',
  'list forced',
  'decide forced',
  'judge forced',
  'tell role',
  'set role',
  'take role again',
] as const

export type Kind = (typeof kinds)[number]

/**
 * A statement's way: the client is about to send it; it has arrived and was not begun; it is durable and not
 * visible yet (only what flushes); it was carried out and not answered; its answer has arrived.
 */
export const sides = ['send', 'arrive', 'flushed', 'done', 'answer'] as const

export type Side = (typeof sides)[number]

const steps = ['begin', 'vote', 'prepare', 'decide', 'finish', 'recover'] as const

/** Kinds whose execution has a moment between its flush and its effect. */
const flushing: ReadonlySet<Kind> = new Set([
  'prepare',
  'commit',
  'check and commit',
  'commit prepared',
  'rollback prepared',
])

export const points: readonly string[] = [
  ...kinds.flatMap((kind) => sides.map((side) => `${kind}: ${side}`)),
  ...steps.flatMap((step) => [`step ${step}: start`, `step ${step}: end`]),
]

const kindNumbers = new Map<Kind, number>(kinds.map((kind, index) => [kind, index * sides.length]))
const pointNumbers = new Map<string, number>(points.map((point, index) => [point, index]))

/** Of the first side; the others follow. */
export function firstPointOf(kind: Kind): number {
  return kindNumbers.get(kind) as number
}

export const sideNumber = { send: 0, arrive: 1, flushed: 2, done: 3, answer: 4 } as const

export function pointOf(name: string): number {
  const number = pointNumbers.get(name)
  if (number === undefined) throw new Error(`There is no point ${name}`)
  return number
}

/** The points that a schedule can pass. */
export const reachable: readonly number[] = points.flatMap((point, number) => {
  const kind = kinds[Math.floor(number / sides.length)]
  return kind !== undefined && point.endsWith(': flushed') && !flushing.has(kind) ? [] : [number]
})
