/**
 * Seeded bugs: what is to find bugs must find these. Each is a copy of the sources with a few places replaced, and a
 * search that ends when something is violated.
 */
import { chmod, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { refuse } from '../../scripts/command.ts'

export interface Edit {
  /** Path in the project. */
  readonly file: string
  /** Occurs exactly once in the file. */
  readonly find: string
  readonly replace: string
}

export interface Mutant {
  readonly name: string
  /** What goes wrong with it. */
  readonly what: string
  readonly edits: readonly Edit[]
}

/** What a search came to. */
export interface Search {
  /** What was violated; undefined: the mutant survived. */
  readonly by: string | undefined
  /** How long it took, in words. */
  readonly after: string
  /** Why the catch does not count. */
  readonly falseAlarm?: string | undefined
}

const root = join(import.meta.dirname, '../..')

/** The edited texts, by file. @throws if a place is not there, or more than once */
export async function edited(edits: readonly Edit[]): Promise<Map<string, string>> {
  const texts = new Map<string, string>()
  for (const { file, find, replace } of edits) {
    const text = texts.get(file) ?? (await readFile(join(root, file), 'utf8'))
    const times = text.split(find).length - 1
    if (times !== 1) throw new Error(`${file} has this ${times} times, expected once: ${find}`)
    texts.set(
      file,
      text.replace(find, () => replace),
    )
  }
  return texts
}

/** Makes a copy of parts of the project, edited, for as long as a task runs. */
export async function withMutant<T>(
  { edits }: Pick<Mutant, 'edits'>,
  parts: readonly string[],
  task: (copy: string) => Promise<T>,
): Promise<T> {
  const texts = await edited(edits)
  const copy = await mkdtemp(join(tmpdir(), 'pgonce-mutant-'))
  try {
    // Servers may run as another user, who must come through.
    await chmod(copy, 0o755)
    for (const part of parts)
      await cp(join(root, part), join(copy, part), { recursive: true, verbatimSymlinks: true })
    await symlink(join(root, 'node_modules'), join(copy, 'node_modules'))
    for (const [file, text] of texts) await writeFile(join(copy, file), text)
    return await task(copy)
  } finally {
    await rm(copy, { recursive: true, force: true })
  }
}

/** The mutants whose names contain one of these words, separated by commas; all without any. Ends where there is none. */
export function chooseMutants<M extends Mutant>(
  mutants: readonly M[],
  words: string | undefined,
): readonly M[] {
  const wanted = (words ?? '').split(',')
  const chosen = mutants.filter(({ name }) => wanted.some((word) => name.includes(word)))
  if (chosen.length === 0)
    refuse(`No mutant is named ${words}. There are:\n  ${mutants.map(({ name }) => name).join('\n  ')}`)
  return chosen
}

/** Searches for each, so many at once; tells of each on stderr, and of all in a table. Whether each was caught. */
export async function runMutants<M extends Mutant>(
  chosen: readonly M[],
  search: (mutant: M) => Promise<Search>,
  { atOnce = 1, json = false }: { readonly atOnce?: number; readonly json?: boolean } = {},
): Promise<boolean> {
  const found = new Map<M, Search>()
  const waiting = chosen.values()
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (const mutant of waiting) {
        const one = await search(mutant)
        found.set(mutant, one)
        process.stderr.write(`${mutant.name}: ${tell(one)}\n`)
      }
    }),
  )
  const rows = chosen.map((mutant) => ({
    mutant: mutant.name,
    what: mutant.what,
    ...(found.get(mutant) as Search),
  }))
  if (json) process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`)
  else {
    console.log('| mutant | what it does | caught after | by |\n|---|---|---|---|')
    for (const { mutant, what, after, by } of rows)
      console.log(`| ${mutant} | ${what} | ${by === undefined ? 'never' : after} | ${by ?? ''} |`)
  }
  return rows.every(({ by, falseAlarm }) => by !== undefined && falseAlarm === undefined)
}

function tell({ by, after, falseAlarm }: Search): string {
  if (by === undefined) return `SURVIVED ${after}`
  return `caught after ${after}, “${by}”${falseAlarm === undefined ? '' : `; A FALSE ALARM: ${falseAlarm}`}`
}
