/**
 * What the package brings along beside its code: the migrations, and the version that package.json says.
 */
import { readdir, readFile } from 'node:fs/promises'

/** One released file: SQL without `begin` and `commit`. */
export interface MigrationFile {
  /** The file's name without `.sql`; it begins with the schema version it brings, as in `000001-install`. */
  readonly name: string
  readonly sql: string
}

// From src/ and from dist/ alike.
const committed = new URL('../../migrations/committed/', import.meta.url)
const manifest = new URL('../../package.json', import.meta.url)

/**
 * The migrations that this package ships, in order.
 * @internal
 */
export async function readMigrations(folder: URL = committed): Promise<readonly MigrationFile[]> {
  const files = (await readdir(folder)).filter((file) => file.endsWith('.sql')).sort()
  return Promise.all(
    files.map(async (file) => ({
      name: file.slice(0, -4),
      sql: await readFile(new URL(file, folder), 'utf8'),
    })),
  )
}

/** The schema version that a migration brings, by its name; 0 for none. */
export function versionOf(name: string | undefined): number {
  return name === undefined ? 0 : Number.parseInt(name, 10)
}

export async function packageVersion(): Promise<string> {
  const text = await readFile(manifest, 'utf8')
  return (JSON.parse(text) as { version: string }).version
}
