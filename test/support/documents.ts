/**
 * Markdown whose code blocks are executed: taking blocks out, running SQL as psql would, comparing.
 *
 * @see test/docs.test.ts for the form of blocks
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { ExecutionContext } from 'ava'
import type postgres from 'postgres'

export const root = fileURLToPath(new URL('../..', import.meta.url))

export interface Block {
  readonly place: string
  readonly language: string
  readonly words: readonly string[]
  readonly text: string
}

export async function blocksOf(document: string): Promise<Block[]> {
  const markdown = await readFile(join(root, document), 'utf8')
  return [...markdown.matchAll(/^```(\S*) *(.*)\n([\s\S]*?)^```$/gm)].map((match) => ({
    place: `${document}:${markdown.slice(0, match.index).split('\n').length}`,
    language: match[1] ?? '',
    words: (match[2] ?? '').split(' ').filter(Boolean),
    text: match[3] ?? '',
  }))
}

/** The situation that must be made for a block: `vacuum-stuck` of a block marked `situation:vacuum-stuck`. */
export function situationOf({ words }: Block): string | undefined {
  return words.find((word) => word.startsWith('situation:'))?.slice('situation:'.length)
}

// ---------------------------------------------------------------------------------------------------
// SQL, as psql would run it

export interface Statement {
  readonly text: string
  readonly terminator: string
  readonly expected: string[]
}

export function statementsOf(text: string): Statement[] {
  const statements: Statement[] = []
  let buffer = ''
  const tokens =
    /'(?:[^']|'')*'|"[^"]*"|\$(\w*)\$[\s\S]*?\$\1\$|--> ?([^\n]*)|--[^\n]*|\\g(?:exec|set)|;|\s+|[^'"$\\;\s-]+|./g
  for (const [token, , expected] of text.matchAll(tokens)) {
    if (expected !== undefined) statements.at(-1)?.expected.push(expected.trimEnd())
    else if (token === ';' || token.startsWith('\\g')) {
      statements.push({ text: buffer.trim(), terminator: token, expected: [] })
      buffer = ''
    } else if (!token.startsWith('--')) buffer += token
  }
  if (buffer.trim() !== '') throw new Error(`A statement does not end: ${buffer.trim()}`)
  return statements
}

/** Runs a block in one session. Variables are psql's: `:'name'` reads, `\gset` writes. */
export async function runStatements(
  t: ExecutionContext,
  session: postgres.Sql | postgres.ReservedSql,
  variables: Map<string, string>,
  { place, text }: Block,
): Promise<void> {
  const ask = async (statement: string) => await session.unsafe(statement).raw()
  for (const { text: statement, terminator, expected } of statementsOf(text)) {
    const name = `${place}: ${statement}`
    const filled = statement.replaceAll(/(?<!:):'(\w+)'/g, (_, variable) => {
      const value = variables.get(variable)
      if (value === undefined) throw new Error(`${place}: no variable ${variable}`)
      return `'${value.replaceAll("'", "''")}'`
    })
    let actual: string[]
    try {
      const answer = await ask(filled)
      const rows = [...answer].map((row) =>
        (row as unknown as (Buffer | null)[]).map((cell) => cell?.toString() ?? 'null'),
      )
      if (terminator === '\\gset') {
        t.is(rows.length, 1, name)
        for (const [index, { name: variable }] of answer.columns.entries())
          variables.set(variable, rows[0]?.[index] ?? '')
      }
      if (terminator === '\\gexec') for (const cell of rows.flat()) await ask(cell)
      actual = rows.map((row) => row.join(' | '))
    } catch (error) {
      const { code, message } = error as { code: string; message: string }
      actual = [`ERROR ${code}: ${message}`]
      if (expected.length === 0) t.fail(`${name}\n${actual[0]}`)
    }
    if (expected.length > 0) compare(t, name, actual, expected)
  }
}

/** Line by line; `…` in what is expected stands for anything. */
export function compare(
  t: ExecutionContext,
  name: string,
  actual: readonly string[],
  expected: readonly string[],
): void {
  const pattern = (line: string) =>
    new RegExp(
      `^${line
        .split('…')
        .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&'))
        .join('.*')}$`,
      's',
    )
  const alike =
    actual.length === expected.length &&
    expected.every((line, index) => pattern(line).test(actual[index] ?? ''))
  if (!alike) t.deepEqual(actual, expected, name)
}
