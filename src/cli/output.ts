/**
 * What the commands print: tables for people on stdout, JSON for programs on stdout, progress on stderr.
 */
import { stripVTControlCharacters, styleText } from 'node:util'

export type Style = 'red' | 'green' | 'yellow' | 'cyan' | 'dim' | 'bold'

/** A cell: plain text, or text with a style that shows on a terminal only. */
export type Cell = string | { readonly text: string; readonly style: Style }

export interface Row {
  readonly cells: readonly Cell[]
  /** Lines below the row, indented and never wrapped: what to type must survive copying. */
  readonly notes?: readonly string[]
}

export interface TableOptions {
  /** Columns available; undefined: as many as it takes. @defaultValue the terminal's, if stdout is one */
  readonly width?: number | undefined
  /** @defaultValue whether stdout is a terminal that shows colors */
  readonly color?: boolean
}

/** Two spaces between columns: names may contain one, hardly ever two. */
const gap = '  '

/** The last column keeps within the terminal's width, unless that would leave less than this of it. */
const leastLast = 20

/**
 * An aligned table. The last column takes what is left of the terminal's width and goes on in lines below;
 * where stdout is no terminal every row is one line, and nothing is colored.
 */
export function table(headings: readonly string[], rows: readonly Row[], options: TableOptions = {}): string {
  const width = 'width' in options ? options.width : process.stdout.isTTY ? process.stdout.columns : undefined
  const head: Row = {
    cells: headings.map((heading) => ({ text: heading.toUpperCase(), style: 'dim' as const })),
  }
  const last = headings.length - 1
  const widths = headings.map((heading, column) =>
    Math.max(heading.length, ...rows.map(({ cells }) => widthOf(plain(cells[column] ?? '')))),
  )
  const before = widths.slice(0, last).reduce((sum, one) => sum + one + gap.length, 0)
  const room = width === undefined ? Number.POSITIVE_INFINITY : Math.max(width - before, leastLast)
  const lines = ({ cells, notes = [] }: Row) => {
    const styled = (column: number, text: string) => {
      const cell = cells[column] ?? ''
      return paint(text, typeof cell === 'string' ? undefined : cell.style, options.color)
    }
    const first = headings.slice(0, last).map((_, column) => {
      const text = plain(cells[column] ?? '')
      return styled(column, text) + ' '.repeat((widths[column] ?? 0) - widthOf(text))
    })
    const [start = '', ...rest] = wrap(plain(cells[last] ?? ''), room)
    return [
      [...first, styled(last, start)].join(gap).trimEnd(),
      ...rest.map((text) => ' '.repeat(before) + styled(last, text)),
      ...notes.map((note) => `${gap}${gap}${printable(note)}`),
    ]
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

function plain(cell: Cell): string {
  return printable(typeof cell === 'string' ? cell : cell.text)
}

function widthOf(text: string): number {
  return [...stripVTControlCharacters(text)].length
}

/** Between words only: what is longer than a line is an id, and must survive copying. */
function wrap(text: string, room: number): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const line = lines.at(-1)
    if (line !== undefined && widthOf(line) + 1 + widthOf(word) <= room)
      lines[lines.length - 1] = `${line} ${word}`
    else lines.push(word)
  }
  return lines
}

function cut(text: string, room: number): string {
  const characters = [...text]
  return characters.length <= room ? text : `${characters.slice(0, room - 1).join('')}…`
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
  /** Says where we are; on a terminal in place of what was said before. */
  say(text: string): void
  /** Leaves a clean line behind. */
  end(): void
}

/** Progress on stderr: one line that changes on a terminal, elsewhere one line a second at most. */
export function progress(): Progress {
  const { stderr } = process
  let shown = false
  let last = 0
  return {
    say(text) {
      const now = performance.now()
      if (stderr.isTTY) {
        stderr.write(`\r\u001b[2K${cut(printable(text), (stderr.columns ?? 80) - 1)}`)
        shown = true
      } else if (last === 0 || now - last >= 1_000) {
        stderr.write(`${printable(text)}\n`)
        last = now
      }
    },
    end() {
      if (shown) stderr.write('\r\u001b[2K')
      shown = false
    },
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
