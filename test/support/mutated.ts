/** Copies of the sources with a seeded bug: what is to find bugs must find these. */
import { chmod, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface Edit {
  /** Path in the project. */
  readonly file: string
  /** Occurs exactly once in the file. */
  readonly find: string
  readonly replace: string
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
export async function withEdited<T>(
  edits: readonly Edit[],
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
