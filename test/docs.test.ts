/**
 * What README.md and docs/ say is true: every code block runs, in the order of its document, against two
 * servers with the databases `orders` and `billing`, and prints what the text says that it prints. Only in
 * README.md is schema once not installed yet.
 *
 *     ```sql [database]     In `orders` unless named. `--> a | b` after a statement is a row of its answer, or
 *                           `--> ERROR code: message`; `…` stands for anything. `\gset` and `\gexec` are psql's. A
 *                           database named x_copy is made from x.
 *     ```ts                 Type-checked and run. `console.log(…) // text` is compared; a comma and "then" part lines.
 *     ```ts client          As ts; makes the client for the blocks after it that make none.
 *     ```sh [interrupt]     Run; `#> text` is a line of its output. With `interrupt`: until its first output, then Ctrl-C.
 *     ```sql situation:x    Run by runbook.test.ts, against that situation made for real.
 *     ```text               Not code, or not to be run here: commands must at least be scripts of package.json.
 */
import { spawn } from 'node:child_process'
import { once as event } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import postgres from 'postgres'
import { chosenVersion, packageOf } from '../proof/rig/postgres-version.ts'
import { migrate } from '../src/database/migrate.ts'
import { type EmbeddedServer, startServer } from '../src/embedded/server.ts'
import { type Block, blocksOf, compare, root, runStatements, situationOf } from './support/documents.ts'

const documents = [
  'README.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  ...(await readdir(join(root, 'docs'))).filter((file) => file.endsWith('.md')).map((file) => `docs/${file}`),
]

// ---------------------------------------------------------------------------------------------------
// A project of a user's, with pgonce from src/, and servers

const servers: EmbeddedServer[] = []
let project = ''

test.before('make a project and start servers', async () => {
  const settings = { fsync: 'off', max_prepared_transactions: 20 }
  const start = () => startServer({ package: packageOf(chosenVersion()), settings })
  servers.push(...(await Promise.all([start(), start()])))

  project = await mkdtemp(join(tmpdir(), 'pgonce-docs-'))
  const modules = join(project, 'node_modules')
  await mkdir(join(modules, 'pgonce'), { recursive: true })
  await mkdir(join(modules, '.bin'))
  for (const name of ['kysely', 'postgres', 'pg', '@types'])
    await symlink(join(root, 'node_modules', name), join(modules, name))
  await symlink(join(root, 'src'), join(modules, 'pgonce', 'src'))
  await writeFile(
    join(modules, 'pgonce', 'package.json'),
    JSON.stringify({
      name: 'pgonce',
      type: 'module',
      exports: { '.': './src/index.ts', './xa': './src/xa/index.ts' },
    }),
  )
  const main = join(root, 'src/cli/main.ts')
  for (const [name, command] of [
    ['pgonce', `'${process.execPath}' '${main}' "$@"`],
    // As npx would, without a second for starting npm.
    ['npx', '"$@"'],
  ]) {
    await writeFile(join(modules, '.bin', `${name}`), `#!/bin/sh\nexec ${command}\n`, { mode: 0o755 })
  }
  await writeFile(join(project, 'package.json'), JSON.stringify({ name: 'shop', type: 'module' }))
})

test.after.always('remove them', async () => {
  await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()))
  if (project !== '') await rm(project, { recursive: true, force: true })
})

// ---------------------------------------------------------------------------------------------------
// The blocks

for (const document of documents) {
  test.serial(`${document}: every block runs and does what it says`, async (t) => {
    t.timeout(120_000)
    const blocks = await blocksOf(document)
    if (blocks.every(({ language }) => language === 'text')) return t.pass()
    const shop = await openShop(document !== 'README.md')
    t.teardown(() => shop.close())
    let client = ''
    for (const block of blocks) {
      const { place, language, words, text } = block
      if (situationOf(block) !== undefined) continue
      if (language === 'sql')
        await runStatements(t, await shop.session(words[0] ?? 'orders'), shop.variables, block)
      else if (language === 'ts') {
        if (words.includes('client')) client = text
        await runProgram(t, shop, block, client)
      } else if (language === 'sh') await runShell(t, shop, block)
      else if (language === 'json') t.notThrows(() => JSON.parse(text), place)
      else t.is(language, 'text', `${place}: a block says what it is`)
    }
    t.pass()
  })
}

test('every TypeScript block compiles', async (t) => {
  t.timeout(120_000)
  const folder = join(project, 'types')
  await mkdir(folder)
  await Promise.all(
    documents.map(async (document) => {
      let client = ''
      for (const block of (await blocksOf(document)).filter(({ language }) => language === 'ts')) {
        if (block.words.includes('client')) client = block.text
        await writeFile(join(folder, nameOf(block)), programOf(block, client))
      }
    }),
  )
  await writeFile(
    join(folder, 'tsconfig.json'),
    JSON.stringify({ extends: join(root, 'tsconfig.json'), include: ['*.ts'] }),
  )
  const { output, status } = await run(join(root, 'node_modules/.bin/tsc'), ['-p', folder], {})
  t.is(status, 0, output)
})

test('commands that are not run here are scripts of the package', async (t) => {
  const { scripts } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
  for (const document of documents) {
    for (const { place, text } of await blocksOf(document)) {
      for (const [, name = ''] of text.matchAll(/\bnpm (?:run )?(?!ci\b|install\b|exec\b)([\w:-]+)/g))
        t.true(name in scripts, `${place}: npm run ${name}`)
    }
  }
})

test('every link leads somewhere', async (t) => {
  const anchors = async (file: string) =>
    [...(await readFile(file, 'utf8')).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
      heading
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    )
  for (const document of documents) {
    const markdown = (await readFile(join(root, document), 'utf8')).replaceAll(/^```[\s\S]*?^```$/gm, '')
    for (const [, target = ''] of markdown.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue
      const [path = '', anchor] = target.split('#')
      const file = path === '' ? join(root, document) : join(root, dirname(document), path)
      t.true(existsSync(file), `${document}: ${target}`)
      if (anchor !== undefined) t.true((await anchors(file)).includes(anchor), `${document}: ${target}`)
    }
  }
})

// ---------------------------------------------------------------------------------------------------
// Databases of a document

interface Shop {
  readonly environment: Record<string, string>
  readonly variables: Map<string, string>
  session(database: string): Promise<postgres.ReservedSql>
  close(): Promise<void>
}

async function openShop(installed: boolean): Promise<Shop> {
  const [a, b] = servers as [EmbeddedServer, EmbeddedServer]
  const homes = new Map([
    ['orders', a],
    ['billing', b],
  ])
  const clients = new Map<string, postgres.Sql>()
  const sessions = new Map<string, Promise<postgres.ReservedSql>>()
  const end = async (database: string) => {
    await clients.get(database)?.end({ timeout: 0 })
    clients.delete(database)
    sessions.delete(database)
  }
  const inside = async (url: string, task: (sql: postgres.Sql) => Promise<unknown>) => {
    const sql = postgres(url, { max: 1, onnotice: () => {} })
    await task(sql).finally(() => sql.end({ timeout: 1 }))
  }
  const clean = async () => {
    for (const server of servers) {
      await inside(server.url(), async (sql) => {
        const branches = await sql<
          { gid: string; database: string }[]
        >`select gid, database from pg_prepared_xacts`
        for (const { gid, database } of branches)
          await inside(server.url(database), (own) => own.unsafe(`rollback prepared '${gid}'`))
        for (const {
          name,
        } of await sql`select datname as name from pg_database where datname !~ '^(postgres|template)'`)
          await sql.unsafe(`drop database ${name} with (force)`)
        for (const {
          name,
        } of await sql`select rolname as name from pg_roles where rolname !~ '^(postgres|pg_)'`)
          await sql.unsafe(`drop role ${name}`)
      })
    }
  }
  await clean()
  for (const [database, server] of homes) {
    await inside(server.url(), (sql) => sql.unsafe(`create database ${database}`))
    if (installed) await migrate(server.url(database))
  }
  return {
    environment: { ORDERS_URL: a.url('orders'), BILLING_URL: b.url('billing') },
    variables: new Map(),
    session(database) {
      let session = sessions.get(database)
      if (session === undefined) {
        session = (async () => {
          const original = /^(.*)_copy$/.exec(database)?.[1]
          const server = homes.get(original ?? database) as EmbeddedServer
          if (original !== undefined) {
            await end(original)
            await inside(server.url(), (sql) =>
              sql.unsafe(`create database ${database} template ${original}`),
            )
          }
          const client = postgres(server.url(database), { max: 1, onnotice: () => {} })
          clients.set(database, client)
          return await client.reserve()
        })()
        sessions.set(database, session)
      }
      return session
    },
    async close() {
      for (const database of [...clients.keys()]) await end(database)
      await clean()
    },
  }
}

// ---------------------------------------------------------------------------------------------------
// TypeScript and shell

function programOf({ text }: Block, client: string): string {
  const whole = /^import \{[^}]*\bpgonce\b/m.test(text) ? text : `${client}\n${text}`
  const isOpen = whole.includes('const once = pgonce') && !/once\.close\(|await using once/.test(whole)
  return `${whole}${isOpen ? '\nawait once.close()\n' : ''}\nexport {}\n`
}

function nameOf({ place }: Block): string {
  return `${place.replaceAll(/[^\w]+/g, '-')}.ts`
}

async function runProgram(t: ExecutionContext, shop: Shop, block: Block, client: string): Promise<void> {
  const file = join(project, nameOf(block))
  await writeFile(file, programOf(block, client))
  const { output, errors, status } = await run(process.execPath, [file], shop.environment)
  t.is(status, 0, `${block.place}\n${output}${errors}`)
  const expected = [...block.text.matchAll(/^.*console\.log\(.*\),? \/\/ (.*)$/gm)].flatMap(([, text = '']) =>
    text.split(', then '),
  )
  if (expected.length > 0) compare(t, block.place, output.trimEnd().split('\n'), expected)
}

async function runShell(t: ExecutionContext, shop: Shop, { place, words, text }: Block): Promise<void> {
  const { output, errors, status } = await run(
    '/bin/sh',
    ['-euc', text],
    shop.environment,
    words.includes('interrupt'),
  )
  const expected = [...text.matchAll(/^#> ?(.*)$/gm)].map(([, line = '']) => line)
  t.is(status, 0, `${place}\n${output}${errors}`)
  if (expected.length > 0) compare(t, place, output.trimEnd().split('\n'), expected)
}

async function run(
  program: string,
  args: readonly string[],
  environment: Record<string, string>,
  interrupt = false,
): Promise<{ output: string; errors: string; status: number | null }> {
  // Without what npm tells its scripts: here is another project.
  const inherited = Object.entries(process.env).filter(([name]) => !/^(npm_|PGONCE_|INIT_CWD)/i.test(name))
  const child = spawn(program, args, {
    cwd: project,
    detached: interrupt,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...Object.fromEntries(inherited),
      PATH: `${join(project, 'node_modules/.bin')}:${process.env.PATH}`,
      NO_COLOR: '1',
      ...environment,
    },
  })
  let output = ''
  let errors = ''
  child.stdout.on('data', (data) => {
    output += data
    if (interrupt && child.pid !== undefined) process.kill(-child.pid, 'SIGINT')
    interrupt = false
  })
  child.stderr.on('data', (data) => {
    errors += data
  })
  const [status, signal] = await event(child, 'close')
  // The shell around the program dies of what the program understands.
  return { output, errors, status: signal === 'SIGINT' ? 0 : status }
}
