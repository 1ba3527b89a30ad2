/**
 * Runs the tests: `npm test [-- ava's arguments]`. Starts two servers that all test files share, each file
 * with databases of its own in them, and stops them afterwards.
 *
 * PGONCE_TEST_POSTGRES=15|16|17|18 picks the version. `--versions 18,15` runs the suite on each in turn, what does
 * not depend on the version on the first only, and prints what passed and failed in all as the last line.
 */
import { execFile, spawn } from 'node:child_process'
import { glob, mkdtemp, rm, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify, stripVTControlCharacters } from 'node:util'
import {
  chosenVersion,
  type PostgresVersion,
  packageOf,
  parseVersion,
} from '../proof/rig/postgres-version.ts'
import { startServer } from '../src/embedded/server.ts'
import { serverVariables } from './support/servers.ts'

/**
 * What further versions do not run again: it talks to no server, brings its own, or is long and about what the client
 * does, whatever the server.
 */
const independent: ReadonlySet<string> = new Set(
  [
    'proof/chaos/chaos',
    'proof/chaos/checker',
    'proof/rig/proxy',
    'proof/rig/proxy-matrix',
    'demo',
    'cli/dev',
    'cli/main',
    'cli/output',
    'client-input',
    'connection/arrays',
    'connection/giving-up',
    'connection/open',
    'connection/semaphore',
    'connection/streams',
    'embedded',
    'errors',
    'fuzz/options',
    'proof/document',
    'proof/simulation/simulation',
    'proof/model',
    'round-trips',
    'sql/pg-cron',
    'commit/bounds',
    'commit/cancel',
    'commit/ended',
    'commit/gid',
    'commit/outcome',
    'xa/xid',
  ].map((name) => `test/${name}.test.ts`),
)

interface Result {
  readonly version: PostgresVersion
  readonly exitCode: number
  readonly passed: number
  readonly failed: number
  readonly seconds: number
}

const root = join(import.meta.dirname, '..')
const avaProgram = join(root, 'node_modules', 'ava', 'entrypoints', 'cli.js')

// Read from where it always is, so that the next run finds it.
process.env.NODE_COMPILE_CACHE ??= join(tmpdir(), 'pgonce-test-cache')
const inMemory = process.env.TMPDIR === undefined ? await folderInMemory() : undefined
if (inMemory !== undefined) process.env.TMPDIR = inMemory

let interrupted = 0
let stopTests = () => {}
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  // Stay until ava has ended and the servers are stopped. A terminal sends Ctrl-C to ava as well.
  process.on(signal, () => {
    interrupted = code
    stopTests()
  })
}

const [first, second, ...rest] = process.argv.slice(2)
if (first === '--versions') {
  const results: Result[] = []
  for (const version of (second ?? '').split(',').map(parseVersion)) {
    console.log(`# Postgres ${version}`)
    results.push(await runOn(version, results.length === 0 ? rest : await withoutIndependent(rest), true))
    if (interrupted) break
  }
  console.log('')
  for (const { version, exitCode, passed, failed, seconds } of results) {
    const verdict = exitCode === 0 ? 'ok    ' : 'FAILED'
    console.log(`Postgres ${version}  ${verdict}  ${passed} passed, ${failed} failed, ${seconds} s`)
  }
  const sum = (key: 'passed' | 'failed') => results.reduce((total, result) => total + result[key], 0)
  console.log(`${sum('passed')} passed, ${sum('failed')} failed`)
  process.exitCode = interrupted || (results.every((result) => result.exitCode === 0) ? 0 : 1)
} else {
  const { exitCode } = await runOn(chosenVersion(), process.argv.slice(2), false)
  process.exitCode = interrupted || exitCode
}

/** The arguments for a further version: all files but those to which the version makes no difference. */
async function withoutIndependent(rest: readonly string[]): Promise<readonly string[]> {
  if (rest.some((argument) => argument.includes('.test.ts'))) return rest
  const files: string[] = []
  for await (const path of glob('test/**/*.test.ts', { cwd: root })) {
    const file = path.replaceAll('\\', '/')
    if (!independent.has(file)) files.push(file)
  }
  return [...files.sort(), ...rest]
}

/**
 * Where servers keep their files if there is room: on a disk it takes up to thirty times as long to make a database,
 * and there is one for nearly every test. Undefined where there is too little of it, or programs may not be run there.
 */
async function folderInMemory(): Promise<string | undefined> {
  const folder = '/dev/shm'
  try {
    const { bavail, bsize } = await statfs(folder)
    if (bavail * bsize < 6 * 2 ** 30) return undefined
    const probe = await mkdtemp(join(folder, 'pgonce-probe-'))
    try {
      const program = join(probe, 'program')
      await writeFile(program, '#!/bin/sh\n', { mode: 0o755 })
      await promisify(execFile)(program)
    } finally {
      await rm(probe, { recursive: true })
    }
    return folder
  } catch {
    return undefined
  }
}

async function runOn(
  version: PostgresVersion,
  avaArguments: readonly string[],
  counted: boolean,
): Promise<Result> {
  const began = Date.now()
  const settings = {
    // A server that is killed keeps what it wrote as long as the machine stays up.
    fsync: 'off',
    max_prepared_transactions: 200,
    max_connections: 800,
  }
  const start = () => startServer({ package: packageOf(version), settings })
  await using a = await start()
  await using b = await start()

  const child = spawn(process.execPath, [avaProgram, ...avaArguments], {
    cwd: root,
    stdio: ['inherit', counted ? 'pipe' : 'inherit', 'inherit'],
    env: {
      ...process.env,
      PGONCE_TEST_POSTGRES: version,
      [serverVariables.a]: a.url(),
      [serverVariables.b]: b.url(),
    },
  })
  // SIGINT also for SIGTERM: it is what makes ava end its workers.
  stopTests = () => void child.kill('SIGINT')
  if (interrupted) stopTests()
  const ended = new Promise<number>((done, fail) => {
    child.once('error', fail)
    child.once('close', (code) => done(code ?? 1))
  })

  let passed = 0
  let failed = 0
  // ava's own report is read, since its TAP reporter (8.0.0) crashes when a test times out.
  for await (const colored of child.stdout ? createInterface({ input: child.stdout }) : []) {
    console.log(colored)
    const line = stripVTControlCharacters(colored)
    if (/^ {2}[✔√] (?!\[)/.test(line)) passed++
    const count =
      /^ {2}(\d+) (?:(?:tests?|hooks?) failed|tests? remained pending.*|uncaught exceptions?|unhandled rejections?)$/.exec(
        line,
      )
    if (count) failed += Number(count[1])
  }
  const exitCode = await ended
  // What keeps ava from ending well without being a test, as an empty selection, counts as one failure.
  if (exitCode !== 0 && failed === 0) failed = 1
  return { version, exitCode, passed, failed, seconds: Math.round((Date.now() - began) / 1000) }
}
