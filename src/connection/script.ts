/**
 * What a handler must not send: statements that begin or end a transaction, whatever driver carries them, and COPY
 * through the connection. They are refused before they are sent, since nothing undoes a COMMIT.
 *
 * Only the words that statements begin with count. They are found as Postgres's lexer finds them: comments nest,
 * quotes of all kinds hide semicolons. Where backslashes quote depends on a setting of the session, so such a text is
 * read both ways, and refused if either way ends a transaction.
 *
 * @see https://www.postgresql.org/docs/current/sql-syntax-lexical.html
 */
import { HandlerError, InvalidInputError } from '../errors.ts'

/** @throws HandlerError `ONEND` for what begins or ends a transaction, `COPY` for COPY from or to the client */
export function refuseControl(text: string): void {
  for (const statement of beginnings(text)) {
    if (isControl(statement)) {
      const what = `The handler ran ${statement.trim().toUpperCase()}, which would end its transaction`
      const detail = 'It was not sent, and everything is rolled back.'
      throw new HandlerError('ONEND', what, { detail, hint: endHint })
    }
    if (statement.startsWith('copy ') && /\b(stdin|stdout)\b/i.test(text))
      throw copyRefused(/\bstdout\b/i.test(text))
  }
}

function isControl(statement: string): boolean {
  return (
    /^(begin|commit|end|abort|start transaction|prepare transaction)\b/.test(statement) ||
    (/^rollback\b/.test(statement) && !/^rollback (work |transaction )?to\b/.test(statement))
  )
}

const endHint =
  'Remove it from the handler: return to commit, throw to roll back. SAVEPOINT and ROLLBACK TO are allowed'

function copyRefused(isRead: boolean): HandlerError {
  const what = `The handler ran COPY ${isRead ? '... TO STDOUT' : '... FROM STDIN'}`
  const detail = 'Its rows travel beside the answers, where nobody takes or gives them. It was not sent.'
  const instead = isRead
    ? 'Read them as rows: for await (const row of tx.selectFrom(...).selectAll().stream())'
    : 'Write them as rows: await tx.insertInto(...).values(rows).execute()'
  const hint = `${instead}. Or run COPY outside of the transaction, on a connection of your own`
  return new HandlerError('COPY', what, { detail, hint })
}

/** The first words of each statement in a text, in lower case, single spaces between them. */
export function beginnings(text: string): string[] {
  // Of a single statement only the beginning counts: most have no semicolon, and are long.
  if (!text.includes(';')) return [firstWords(text, 0, text.length, false)]
  const found = statements(text, false)
  return text.includes('\\') ? [...found, ...statements(text, true)] : found
}

function statements(text: string, backslashes: boolean): string[] {
  const found: string[] = []
  for (let at = 0; at < text.length; ) {
    const end = endOf(text, at, backslashes)
    found.push(firstWords(text, at, end, backslashes))
    at = end + 1
  }
  return found
}

/** As many as it takes to tell `rollback to` from `rollback`. */
const enough = 3

function firstWords(text: string, from: number, to: number, backslashes: boolean): string {
  const words: string[] = []
  for (let at = from; at < to && words.length < enough; ) {
    const next = skip(text, at, backslashes)
    if (next > at) {
      // What is in quotes is no keyword; a comment is nothing.
      if (!isComment(text, at)) break
      at = next
      continue
    }
    const match = matchAt(text, at, /[A-Za-z_]+/y)
    if (match) {
      words.push(match[0].toLowerCase())
      at += match[0].length
    } else if (/[\s\uFEFF]/.test(text[at] as string)) at += 1
    else break
  }
  return `${words.join(' ')} `
}

function endOf(text: string, from: number, backslashes: boolean): number {
  for (let at = find(text, from); at < text.length; ) {
    if (text[at] === ';') return at
    at = find(text, Math.max(skip(text, at, backslashes), at + 1))
  }
  return text.length
}

const notable = /[;'"$/-]/g

/** The next place where something can begin or end; most of a text is none. */
function find(text: string, from: number): number {
  return matchAt(text, from, notable)?.index ?? text.length
}

function matchAt(text: string, at: number, pattern: RegExp): RegExpExecArray | null {
  pattern.lastIndex = at
  return pattern.exec(text)
}

function isComment(text: string, at: number): boolean {
  return text.startsWith('--', at) || text.startsWith('/*', at)
}

/** Where the comment or the quoted text that begins here ends; the same place if none begins here. */
function skip(text: string, at: number, backslashes: boolean): number {
  const first = text[at]
  if (first === '-' && text[at + 1] === '-') {
    const end = text.slice(at).search(/[\r\n]/)
    return end < 0 ? text.length : at + end
  }
  if (first === '/' && text[at + 1] === '*') return skipComment(text, at)
  if (first === "'") {
    const isEscape = /[eE]/.test(text[at - 1] ?? '') && !/[\w$]/.test(text[at - 2] ?? '')
    return skipQuoted(text, at, "'", backslashes || isEscape)
  }
  if (first === '"') return skipQuoted(text, at, '"', false)
  if (first === '$' && !/[\w$\x80-\uffff]/.test(text[at - 1] ?? '')) {
    const match = matchAt(text, at, /\$(?:[A-Za-z_\x80-\uffff][\w\x80-\uffff]*)?\$/y)
    if (!match) return at
    const end = text.indexOf(match[0], at + match[0].length)
    return end < 0 ? text.length : end + match[0].length
  }
  return at
}

function skipComment(text: string, from: number): number {
  let depth = 0
  for (let at = from; at < text.length; at += 1) {
    if (text.startsWith('/*', at)) {
      depth += 1
      at += 1
    } else if (text.startsWith('*/', at)) {
      depth -= 1
      at += 1
      if (depth === 0) return at + 1
    }
  }
  return text.length
}

function skipQuoted(text: string, from: number, quote: string, backslashes: boolean): number {
  for (let at = from + 1; at < text.length; at += 1) {
    if (backslashes && text[at] === '\\') at += 1
    else if (text[at] === quote) {
      if (text[at + 1] === quote) at += 1
      else return at + 1
    }
  }
  return text.length
}

/**
 * A text with its parameters written into it. Where backslashes may or may not quote, it depends on the session what
 * is a placeholder; such a text is refused.
 *
 * @param literals of the parameters, in SQL
 * @throws InvalidInputError `ONARG`
 */
export function fillIn(text: string, literals: readonly string[]): string {
  const filled = fill(text, literals, false)
  if (!text.includes('\\') || filled === fill(text, literals, true)) return filled
  const what = 'A query has a backslash in a text that its session may read in two ways'
  throw new InvalidInputError('ONARG', what, { hint: 'Pass the text as a parameter' })
}

function fill(text: string, literals: readonly string[], backslashes: boolean): string {
  let filled = ''
  let taken = 0
  for (let at = find(text, 0); at < text.length; at = find(text, at)) {
    const end = skip(text, at, backslashes)
    const match = end > at ? null : matchAt(text, at, /\$(\d+)/y)
    if (match && !/[\w$\x80-\uffff]/.test(text[at - 1] ?? '')) {
      filled += `${text.slice(taken, at)} ${literals[Number(match[1]) - 1] ?? match[0]} `
      taken = at + match[0].length
    }
    at = Math.max(end, taken, at + 1)
  }
  return filled + text.slice(taken)
}
