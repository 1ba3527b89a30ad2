/** The figures as a table for people, and as one object for programs. */
import type { Figure, Target } from './harness.ts'

export interface Environment {
  readonly processors: number
  readonly node: string
  readonly postgres: string
  readonly quick: boolean
}

/**
 * Every figure by its key; beside them their spread (quartiles), the messages of those that are round trips, the
 * targets that were missed, and where.
 */
export function toJson(figures: readonly Figure[], environment: Environment): Record<string, unknown> {
  const withSpread = figures.flatMap(({ key, spread }) => (spread ? [[key, spread.map(round)] as const] : []))
  const withMessages = figures.flatMap(({ key, messages }) => (messages ? [[key, messages] as const] : []))
  return {
    ...Object.fromEntries(figures.map(({ key, value }) => [key, round(value)])),
    spread: Object.fromEntries(withSpread),
    messages: Object.fromEntries(withMessages),
    missed: figures.filter((figure) => !isMet(figure)).map(({ key }) => key),
    environment,
  }
}

export function printTable(figures: readonly Figure[], { processors, node, postgres }: Environment): void {
  const rows = figures.map((figure) => [
    figure.key,
    show(figure.value),
    figure.spread ? `${show(figure.spread[0])} – ${show(figure.spread[1])}` : '',
    showTarget(figure.target),
    figure.target ? (isMet(figure) ? 'met' : 'MISSED') : '',
    figure.note ?? '',
  ])
  const table = [['figure', 'median', 'middle half', 'target', '', ''], ...rows]
  const widths = table[0]?.map((_, column) => Math.max(...table.map((row) => row[column]?.length ?? 0))) ?? []
  for (const row of table)
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
  console.log(`\n${processors} processors, Node ${node}, Postgres ${postgres}`)
}

function isMet({ value, target }: Figure): boolean {
  if (target === undefined) return true
  if ('atLeast' in target) return value >= target.atLeast
  return 'atMost' in target ? value <= target.atMost : value === target.exactly
}

function showTarget(target: Target | undefined): string {
  if (target === undefined) return ''
  if ('atLeast' in target) return `≥ ${target.atLeast}`
  return 'atMost' in target ? `≤ ${target.atMost}` : `= ${target.exactly}`
}

function show(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toFixed(value < 10 ? 3 : 1)
}

function round(value: number): number {
  return Number(value.toFixed(4))
}
