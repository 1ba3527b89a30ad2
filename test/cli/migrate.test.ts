import test from 'ava'
import { migrationSql, readMigrations } from '../../src/database/migration.ts'
import { pgonceCli } from '../support/cli.ts'
import { emptyDatabase, randomName } from '../support/database.ts'
import { serverUrl } from '../support/servers.ts'

const names = (await readMigrations()).map(({ name }) => name)
const newest = names.at(-1)
const { host } = new URL(serverUrl('a'))

test('pgonce migrate installs into every database given, by URL and by name', async (t) => {
  const [one, two] = [await emptyDatabase(t), await emptyDatabase(t)]
  const first = await pgonce(one.url, '--database', `billing=${two.url}`)
  t.is(first.exitCode, 0, first.stderr)
  t.true(first.stdout.includes(`${one.name}: ${newest} installed`))
  t.true(first.stdout.includes(`billing: ${newest} installed`))
  const second = await pgonce(one.url, '--database', `billing=${two.url}`)
  t.is(second.exitCode, 0)
  t.is(
    second.stdout,
    `${one.name}: schema once is up to date, version ${names.length} (database ${one.name} on ${host})\n` +
      `billing: schema once is up to date, version ${names.length} (database ${two.name} on ${host})\n`,
  )
})

test('pgonce migrate does not take a default for the database that a URL leaves out', async (t) => {
  const { name } = await emptyDatabase(t)
  const without = new URL(serverUrl('a'))
  for (const path of ['', '/']) {
    without.pathname = path
    const { exitCode, stdout, stderr } = await pgonceCli(['migrate', without.href], { PGDATABASE: '' })
    t.is(exitCode, 2)
    t.is(stdout, '')
    t.regex(
      stderr,
      /^pgonce: Which database\? postgres:.* names none\n {2}→ Add its name .*\/orders; or set PGDATABASE/,
    )
  }
  // A default that somebody set is meant.
  const meant = await pgonceCli(['migrate', without.href], { PGDATABASE: name })
  t.is(meant.exitCode, 0, meant.stderr)
  t.is(meant.stdout, `${name}: ${newest} installed (database ${name} on ${host})\n`)
})

test('pgonce migrate --dry-run --json tells programs what would run, and changes nothing', async (t) => {
  const { url, name, sql } = await emptyDatabase(t)
  const { exitCode, stdout } = await pgonce(url, '--dry-run', '--json')
  t.is(exitCode, 0)
  t.deepEqual(JSON.parse(stdout), {
    databases: [
      {
        name: null,
        database: name,
        schemaVersion: 0,
        migrations: names.map((one) => ({ name: one, status: 'pending' })),
      },
    ],
  })
  t.deepEqual([...(await sql`select from pg_namespace where nspname = 'once'`)], [])
})

test('pgonce migrate --sql prints everything, or with a URL what that database lacks', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const all = await pgonce('--sql')
  t.is(all.exitCode, 0, all.stderr)
  t.is(all.stdout, await migrationSql())
  t.is((await pgonce('--sql', url)).stdout, all.stdout)
  await sql.begin((trx) => trx.unsafe(all.stdout))
  t.regex((await pgonce('--sql', url)).stdout, /Nothing to do/)
})

test('two processes that install at the same time both succeed', async (t) => {
  const { url, sql } = await emptyDatabase(t)
  const results = await Promise.all([pgonce(url), pgonce(url)])
  t.deepEqual(
    results.map(({ exitCode }) => exitCode),
    [0, 0],
  )
  t.is((await sql`select from once.migration`).length, names.length)
})

test('pgonce migrate says what is wrong; only a wrong command line exits with 2', async (t) => {
  const { url } = await emptyDatabase(t)
  for (const [args, said, expected] of [
    [[], /Which databases\?/, 2],
    [['mysql://joe:secret@localhost/x'], /Expected a URL/, 2],
    [['postgres://joe:se/secret@localhost/x'], /cannot be read[\s\S]*Percent-encode the password/, 2],
    [[serverUrl('a', randomName('missing'))], /does not exist/, 1],
    [['--database', url], /name=URL/, 2],
    [['--sql', url, url], /one database/, 2],
  ] as const) {
    const { exitCode, stderr, stdout } = await pgonce(...args)
    t.is(exitCode, expected, args.join(' '))
    t.regex(stderr, said)
    t.is(stdout, '')
    t.notRegex(stderr, /secret|\n\s+at /)
  }
})

function pgonce(...args: string[]) {
  return pgonceCli(['migrate', ...args])
}
