/**
 * Freezes `sql/` into `migrations/committed/` with graphile-migrate, on a throwaway embedded server.
 *
 *     npm run migrations:rebuild             uncommit the last migration, unless it is released, and commit it anew
 *     npm run migrations:commit -- "message" commit migrations/current.sql as the next migration
 *     npm run migrations:release             record the hashes of everything committed as released
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { appendFile, chmod, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startServer } from '../src/embedded/server.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const committed = join(root, 'migrations/committed')
const current = join(root, 'migrations/current.sql')
const released = join(root, 'migrations/released')

const [command, message] = process.argv.slice(2)
try {
  if (command === 'rebuild') await rebuild()
  else if (command === 'commit') await next(message)
  else if (command === 'release') await release()
  else throw new Error(`Expected rebuild, commit or release, got ${command ?? 'nothing'}`)
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}

async function next(text: string | undefined): Promise<void> {
  if (!text) throw new Error('Expected a message. Type: npm run migrations:commit -- "what it does"')
  await transact(() => withDatabases((env) => commit(env, text)))
}

/**
 * Renews the one migration that is still being written. Same `sql/`, same bytes: the file carries no date.
 */
async function rebuild(): Promise<void> {
  const last = (await committedFiles()).at(-1)
  if (last !== undefined && (await releasedFiles()).has(last)) {
    throw new Error(
      `${last} is released and never changes again. Put the change into migrations/current.sql and type: ` +
        'npm run migrations:commit -- "what it does"',
    )
  }
  await transact(() =>
    withDatabases(async (env) => {
      if (last !== undefined) {
        await graphileMigrate(env, 'uncommit')
        // Uncommitting removes the bookkeeping, not the objects, and ours are not made to be created twice.
        await graphileMigrate(env, 'reset', '--erase')
      }
      await commit(env)
    }),
  )
}

async function commit(env: NodeJS.ProcessEnv, text?: string): Promise<void> {
  await graphileMigrate(env, 'commit', ...(text === undefined ? [] : ['--message', text]))
  // graphile-migrate leaves 0440; what an installed package holds must be readable to every user.
  for (const file of await committedFiles()) await chmod(join(committed, file), 0o644)
}

async function release(): Promise<void> {
  const known = await releasedFiles()
  for (const file of await committedFiles()) {
    if (known.has(file)) continue
    const content = await readFile(join(committed, file))
    const hash = createHash('sha256').update(content).digest('hex')
    await appendFile(released, `${hash}  ${file}\n`)
    console.log(`released ${file}`)
  }
}

/**
 * Puts the folder back as it was when `work` fails. graphile-migrate alone would leave current.sql with its
 * includes written out, which it then refuses to read, and after an uncommit no committed file.
 */
async function transact(work: () => Promise<void>): Promise<void> {
  const before = new Map<string, Buffer>([[current, await readFile(current)]])
  for (const file of await committedFiles())
    before.set(join(committed, file), await readFile(join(committed, file)))
  try {
    await work()
  } catch (error) {
    for (const file of await committedFiles()) await rm(join(committed, file))
    for (const [path, content] of before) await writeFile(path, content)
    throw error
  }
}

async function withDatabases(work: (env: NodeJS.ProcessEnv) => Promise<void>): Promise<void> {
  await using server = await startServer({ settings: { fsync: 'off' } })
  const env = {
    ...process.env,
    DATABASE_URL: server.url('authoring'),
    SHADOW_DATABASE_URL: server.url('shadow'),
    ROOT_DATABASE_URL: server.url('postgres'),
  }
  await graphileMigrate(env, 'reset', '--erase')
  await work(env)
}

function graphileMigrate(env: NodeJS.ProcessEnv, ...args: string[]): Promise<void> {
  const cli = createRequire(import.meta.url).resolve('graphile-migrate/dist/cli.js')
  const child = spawn(process.execPath, [cli, ...args], {
    cwd: root,
    env,
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) resolve()
      else reject(new Error(`graphile-migrate ${args[0]} failed with exit code ${code}, see above`))
    })
  })
}

async function committedFiles(): Promise<string[]> {
  return (await readdir(committed)).filter((file) => file.endsWith('.sql')).sort()
}

async function releasedFiles(): Promise<Set<string>> {
  const lines = (await readFile(released, 'utf8')).split('\n')
  return new Set(
    lines.filter((line) => line !== '' && !line.startsWith('#')).map((line) => line.split(/\s+/)[1] ?? ''),
  )
}
