/** What the commands print: tables for people and JSON for programs on stdout, progress on stderr. */
import { styleText } from 'node:util'
import yoctoSpinner from 'yocto-spinner'

export type Style = 'red' | 'green' | 'yellow' | 'cyan' | 'dim'

/** A cell: plain text, or text with a style that shows on a terminal only. */
export type Cell = string | { readonly text: string; readonly style?: Style }

export interface Row {
  readonly cells: readonly Cell[]
  /** Lines below the row, indented. */
  readonly notes?: readonly string[]
}

/**
 * An aligned table. Nothing is wrapped or cut: ids and lines to type must survive copying.
 *
 * @param color by default whether stdout shows colors
 */
export function table(headings: readonly string[], rows: readonly Row[], color?: boolean): string {
  const head: Row = { cells: headings.map((text) => ({ text: text.toUpperCase(), style: 'dim' })) }
  const all = [head, ...rows].map(({ cells, notes = [] }) => ({
    notes,
    cells: cells.map((cell) => {
      const { text, style } = typeof cell === 'string' ? { text: cell } : cell
      return { text: printable(text), style }
    }),
  }))
  const widthOf = (text = '') => [...text].length
  const widths = headings.map((_, n) => Math.max(...all.map(({ cells }) => widthOf(cells[n]?.text))))
  const lines = all.flatMap(({ cells, notes }) => {
    const padded = cells.map(
      ({ text, style }, n) => paint(text, style, color) + ' '.repeat((widths[n] ?? 0) - widthOf(text)),
    )
    // Two spaces between columns: names may contain one, hardly ever two.
    return [padded.join('  ').trimEnd(), ...notes.map((note) => `    ${printable(note)}`)]
  })
  return lines.join('\n')
}

/** Text in a style, where stdout shows styles. */
export function paint(text: string, style: Style | undefined, color?: boolean): string {
  if (style === undefined || color === false) return text
  return styleText(style, text, { validateStream: color === undefined })
}

/**
 * Text that cannot move a terminal's cursor or hide a part of itself: gids and role names are chosen by
 * whoever may connect to the database.
 */
export function printable(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach the terminal
    /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

/** One line for people. */
export function print(text = ''): void {
  process.stdout.write(`${text}\n`)
}

/** One JSON value on a line of its own. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value))
}

/** Says where we are: on a terminal in place of what was said before, elsewhere on a line of its own. */
export function progress(): { say(text: string): void; end(): void } {
  const spinner = yoctoSpinner({ handleSignals: false })
  return {
    say(text) {
      if (spinner.isSpinning) spinner.text = printable(text)
      else spinner.start(printable(text))
    },
    end: () => void spinner.stop(),
  }
}

const units = [
  [86_400, 'd'],
  [3_600, 'h'],
  [60, 'min'],
] as const

/** A time span as people say it: `12 s`, `3 min`, `5 h`, `2 d`. */
export function sayAge(seconds: number): string {
  // Two of a unit at least, so that the figure is never off by half.
  const [size, unit] = units.find(([size]) => seconds >= 2 * size) ?? [1, 's']
  return `${Math.max(0, Math.round(seconds / size))} ${unit}`
}

/** `1 branch`, `2 branches`. */
export function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`
}
