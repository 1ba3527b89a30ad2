/** What the commands print: tables for people and JSON for programs on stdout, progress on stderr. */
import { styleText } from 'node:util'
import yoctoSpinner from 'yocto-spinner'

export type Style = 'red' | 'green' | 'yellow' | 'cyan' | 'dim'

/** A cell: plain text, or text with a style that shows on a terminal only. */
export type Cell = string | { readonly text: string; readonly style: Style }

export interface Row {
  readonly cells: readonly Cell[]
  /** Lines below the row, indented. */
  readonly notes?: readonly string[]
}

/** Two spaces between columns: names may contain one, hardly ever two. */
const gap = '  '

/**
 * An aligned table. Nothing is wrapped or cut: ids and lines to type must survive copying.
 *
 * @param color by default whether stdout shows colors
 */
export function table(headings: readonly string[], rows: readonly Row[], color?: boolean): string {
  const head: Row = { cells: headings.map((text) => ({ text: text.toUpperCase(), style: 'dim' })) }
  const plain = (cell: Cell = '') => printable(typeof cell === 'string' ? cell : cell.text)
  const widthOf = (text: string) => [...text].length
  const widths = headings.map((_, column) =>
    Math.max(...[head, ...rows].map(({ cells }) => widthOf(plain(cells[column])))),
  )
  const lines = ({ cells, notes = [] }: Row) => {
    const padded = widths.map((width, column) => {
      const cell = cells[column]
      const text = plain(cell)
      const style = typeof cell === 'object' ? cell.style : undefined
      return paint(text, style, color) + ' '.repeat(width - widthOf(text))
    })
    return [padded.join(gap).trimEnd(), ...notes.map((note) => `${gap}${gap}${printable(note)}`)]
  }
  return [head, ...rows].flatMap(lines).join('\n')
}

/** Text in a style, where stdout shows styles. */
export function paint(text: string, style: Style | undefined, color?: boolean): string {
  if (style === undefined || color === false) return text
  return color === true
    ? styleText(style, text, { validateStream: false })
    : styleText(style, text, { stream: process.stdout })
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

/** One JSON value on a line of its own. `bigint` becomes a number where that is exact, else a string. */
export function printJson(value: unknown): void {
  print(
    JSON.stringify(value, (_, inner) => {
      if (typeof inner !== 'bigint') return inner
      return inner <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(inner) : String(inner)
    }),
  )
}

export interface Progress {
  /** Says where we are: on a terminal in place of what was said before, elsewhere on a line of its own. */
  say(text: string): void
  /** Leaves a clean line behind. */
  end(): void
}

export function progress(): Progress {
  const spinner = yoctoSpinner({ handleSignals: false })
  return {
    say(text) {
      if (spinner.isSpinning) spinner.text = printable(text)
      else spinner.start(printable(text))
    },
    end: () => void spinner.stop(),
  }
}

/** A time span as people say it: `12 s`, `3 min`, `5 h`, `2 d`. */
export function sayAge(seconds: number): string {
  const units = [
    [86_400, 'd'],
    [3_600, 'h'],
    [60, 'min'],
  ] as const
  // Two of a unit at least, so that the figure is never off by half.
  const unit = units.find(([size]) => seconds >= 2 * size)
  return unit === undefined
    ? `${Math.max(0, Math.round(seconds))} s`
    : `${Math.round(seconds / unit[0])} ${unit[1]}`
}

/** `1 branch`, `2 branches`. */
export function count(n: number | bigint, one: string, many = `${one}s`): string {
  return `${n} ${Number(n) === 1 ? one : many}`
}
