import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import test from 'ava'
import { cliProgram, named, pgonceCli } from '../support/cli.ts'
import { randomName, testDatabase } from '../support/database.ts'

const commands = ['migrate', 'doctor', 'in-doubt', 'recover', 'expire']

test('pgonce --version tells the version of the package', async (t) => {
  const manifest = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'))
  t.deepEqual(await pgonceCli(['--version']), { exitCode: 0, stdout: `${manifest.version}\n`, stderr: '' })
})

test('pgonce --help lists the commands, and each explains itself', async (t) => {
  const { stdout, exitCode } = await pgonceCli(['--help'])
  t.is(exitCode, 0)
  for (const command of [...commands, 'dev']) t.regex(stdout, new RegExp(`^  ${command}\\b`, 'm'))
  for (const command of commands) {
    const help = await pgonceCli([command, '--help'])
    t.is(help.exitCode, 0)
    t.regex(help.stdout, /--database <name=URL>/)
    t.regex(help.stdout, /--json/)
  }
})

test('a wrong command line exits with 2, says what was expected, and shows neither a stack nor a password', async (t) => {
  const url = 'postgres://joe:secret@localhost/x'
  for (const [args, said] of [
    [[], /Usage/],
    [[url], /^pgonce: unknown command/],
    [['doctor', `--databse=orders=${url}`], /^pgonce: unknown option/],
    [
      ['doctor', '--database', `orders=${url.replace('secret', 'se/secret')}`],
      /^pgonce: This URL cannot be read/,
    ],
    [['doctor', url.replace('secret', '1/secret')], /^pgonce: This URL cannot be read/],
    [['heal'], /unknown command/],
    [['doctor', '--jsno'], /unknown option/],
    [['doctor'], /Which databases\?[\s\S]*PGONCE_DATABASES/],
    [['in-doubt', '--database', url], /name=URL, got a URL without a name/],
    [['in-doubt', '--database', 'orders'], /name=URL, got "orders"/],
    [['in-doubt', `orders=${url}`], /--database orders=/],
    [['in-doubt', '--database', `orders=${url},billing=${url}`], /by spaces/],
    [['in-doubt', `${url},${url}`], /by spaces/],
    [['in-doubt', '--database', `a b=${url}`], /database name/],
    [['in-doubt', '--database', `a=${url}`, '--database', `a=${url}`], /Two databases are named a/],
    [['recover', 'mysql://joe:secret@localhost/x'], /Expected a URL/],
    [['recover', '--keep', 'long', url], /whole number from 0/],
    [['recover', '--keep', '-1', url], /whole number from 0/],
    [['doctor', '--max-connections', 'many', url], /whole number/],
    [['expire', '--retention', '30 days', url], /scope=interval/],
    [['expire', '--retention', '=30 days', url], /scope=interval/],
    [['dev', '--servers', '0'], /from 1 to 8/],
    [['dev', '--port', '65535'], /beyond 65535/],
    [['dev', '--databases', 'a,a'], /each name once/],
    [['dev', '--databases', 'a,template1'], /template1/],
    [['dev', '--databases', 'a,'], /database name/],
  ] as const) {
    const { exitCode, stdout, stderr } = await pgonceCli(args)
    t.is(exitCode, 2, args.join(' '))
    t.regex(stderr, said, args.join(' '))
    t.is(stdout, '', args.join(' '))
    t.notRegex(stderr, /secret|\n\s+at /)
  }
})

test('databases come from the environment if the command line names none', async (t) => {
  const [orders, billing] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  const env = { PGONCE_DATABASES: ` orders=${orders.url}\n\tbilling=${billing.url} ` }
  const both = await pgonceCli(['in-doubt'], env)
  t.deepEqual(both, { exitCode: 0, stdout: 'Nothing is in doubt in orders, billing.\n', stderr: '' })
  const one = await pgonceCli(['in-doubt', ...named({ alone: orders })], env)
  t.is(one.stdout, 'Nothing is in doubt in alone.\n')
  const bare = await pgonceCli(['in-doubt', orders.url, billing.url], env)
  t.is(bare.stdout, `Nothing is in doubt in ${orders.name}, ${billing.name}.\n`)

  const wrong = await pgonceCli(['in-doubt'], { PGONCE_DATABASES: 'postgres://joe:secret@localhost/x?a=b' })
  t.is(wrong.exitCode, 2)
  t.regex(wrong.stderr, /PGONCE_DATABASES/)
  t.notRegex(wrong.stderr, /secret/)
})

test('every command names the database that does not answer and exits with 1', async (t) => {
  const orders = await testDatabase(t)
  const gone = `postgres://joe:secret@127.0.0.1:1/${randomName('gone')}`
  for (const command of commands) {
    const { exitCode, stdout, stderr } = await pgonceCli([command, ...named({ orders, gone })])
    t.is(exitCode, 1, command)
    t.regex(stdout + stderr, /gone/, command)
    t.regex(stdout + stderr, /ECONNREFUSED/, command)
    t.notRegex(stdout + stderr, /secret|\n\s+at /, command)
  }
})

test('nothing is wrong if the reader of a pipe goes away', async (t) => {
  const { url } = await testDatabase(t)
  const child = spawn(process.execPath, [cliProgram, 'doctor', url], { stdio: ['ignore', 'pipe', 'pipe'] })
  child.stdout.destroy()
  const exit = new Promise<number | null>((resolve) => child.once('close', resolve))
  t.is(await text(child.stderr), '')
  t.is(await exit, 0)
})
