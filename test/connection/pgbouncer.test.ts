import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import postgres from 'postgres'
import { client, type Two } from '../support/client.ts'
import { connect, type TestContext } from '../support/database.ts'
import { type EffectsDatabase, twoDatabases } from '../support/effects.ts'
import { until } from '../support/until.ts'

const installed = (() => {
  try {
    execFileSync('pgbouncer', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
})()
// Skipped tests show in the report.
const testBehind = installed ? test : test.skip

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

/**
 * A PgBouncer in transaction mode. It lets through as many transactions as the clients have connections: with
 * fewer it would hold back one that others wait for, where nobody can see it.
 */
async function pgbouncer(t: TestContext, databases: readonly EffectsDatabase[]): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), 'pgonce-bouncer-'))
  await chmod(directory, 0o755)
  const port = await freePort()
  const lines = databases.map(({ name, url }) => {
    const { hostname, port } = new URL(url)
    return `${name} = host=${hostname} port=${port} dbname=${name} user=postgres`
  })
  const users = join(directory, 'users.txt')
  await writeFile(users, '"postgres" ""\n')
  const file = join(directory, 'pgbouncer.ini')
  await writeFile(
    file,
    `[databases]
${lines.join('\n')}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
auth_file = ${users}
pool_mode = transaction
default_pool_size = 8
ignore_startup_parameters = extra_float_digits
`,
  )
  // It refuses to run as root.
  const user = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}
  const child: ChildProcess = spawn('pgbouncer', ['-q', file], { stdio: 'ignore', ...user })
  t.teardown(async () => {
    const ended = new Promise((resolve) => child.once('close', resolve))
    child.kill('SIGKILL')
    await ended
    await rm(directory, { recursive: true, force: true })
  })
  const urls = databases.map(({ name }) => `postgres://postgres@127.0.0.1:${port}/${name}`)
  const probe = connect(t, urls[0] as string, { prepare: false, fetch_types: false, connect_timeout: 1 })
  await until('PgBouncer answers', () =>
    probe`select 1`.then(
      () => true,
      () => false,
    ),
  )
  await probe.end()
  return urls
}

testBehind('Behind PgBouncer in transaction mode everything holds, with `prepare: false`', async (t) => {
  const [a, b] = await twoDatabases(t)
  const urls = await pgbouncer(t, [a, b])
  const [one, two] = urls.map((url) => {
    const sql = postgres(url, { prepare: false, max: 8, onnotice: () => {} })
    t.teardown(() => sql.end({ timeout: 1 }))
    return sql
  })
  if (!one || !two) return t.fail()
  const once = client<Two>(t, { a: one, b: two })
  const ids = Array.from({ length: 50 }, (_, id) => id)
  const deliver = (id: number) =>
    once.process(id % 2 === 0 ? 'a' : 'b', { scope: 's', key: `k${id}` }, async (_, tx) => {
      await tx.a.insertInto('effect').values({ id }).execute()
      await tx.b.insertInto('effect').values({ id }).execute()
    })
  const first = await Promise.all(ids.map(deliver))
  t.true(first.every(({ status }) => status === 'processed'))
  const again = await Promise.all(ids.map(deliver))
  t.true(again.every(({ status }) => status === 'duplicate'))
  t.deepEqual([await a.effects(), await b.effects()], [ids, ids])
  t.like(await once.recovery.run({ keep: 0 }), { purged: 50, unfinished: [], losses: [] })
  await t.throwsAsync(
    once.transaction(async (tx) => {
      await tx.a.insertInto('effect').values({ id: 100 }).execute()
      await tx.b.insertInto('effect').values({ id: 100 }).execute()
      throw new Error('no')
    }),
    { message: 'no' },
  )
  t.deepEqual([await a.effects(), await b.effects()], [ids, ids])
})
