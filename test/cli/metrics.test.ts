import test from 'ava'
import { pgonceCli, startCli } from '../support/cli.ts'
import { testDatabase } from '../support/database.ts'
import { serverUrl } from '../support/servers.ts'

test('pgonce metrics prints every check of every database in the exposition format', async (t) => {
  const [one, two] = [await testDatabase(t), await testDatabase(t)]
  const { exitCode, stdout, stderr } = await pgonceCli([
    'metrics',
    '--database',
    `orders=${one.url}`,
    '--database',
    `billing=${two.url}`,
  ])
  t.is(exitCode, 0, stderr)
  for (const line of stdout.split('\n').filter((one) => one !== ''))
    t.regex(
      line,
      /^(# (HELP|TYPE) pgonce_\w+ .+|pgonce_\w+\{database="(orders|billing)"(,check="\w+")?\} -?[\d.e+-]+)$/,
    )
  t.true(stdout.includes('pgonce_up{database="orders"} 1'))
  t.true(stdout.includes('pgonce_unacknowledged_losses{database="billing"} 0'))
  t.regex(stdout, /pgonce_check_status\{database="orders",check="oldest_in_doubt_seconds"\} 0/)
  t.notRegex(stdout, /pgonce_oldest_in_doubt_seconds\{/, 'a check without a value has no sample')
  const checks = await one.sql`select name from once.health`
  for (const { name } of checks) t.true(stdout.includes(`database="orders",check="${name}"`), name)
})

test('A database that does not answer is down in the metrics, and the exit code says so', async (t) => {
  const { url } = await testDatabase(t)
  const { exitCode, stdout, stderr } = await pgonceCli([
    'metrics',
    '--database',
    `orders=${url}`,
    '--database',
    `gone=${serverUrl('a', 'no_such_database')}`,
  ])
  t.is(exitCode, 1)
  t.true(stdout.includes('pgonce_up{database="orders"} 1'))
  t.true(stdout.includes('pgonce_up{database="gone"} 0'))
  t.regex(stderr, /gone: .*does not exist/)
})

test('pgonce metrics --listen serves them anew at each request until it is stopped', async (t) => {
  const { url, sql } = await testDatabase(t)
  const running = startCli(t, ['metrics', '--listen', '0', '--database', `orders=${url}`])
  const address = /http:\S+\/metrics/.exec(await running.line(/metrics; Ctrl-C ends/))?.[0] ?? ''
  t.regex(address, /^http:\/\/127\.0\.0\.1:\d+\/metrics$/)
  const response = await fetch(address)
  t.is(response.status, 200)
  t.regex(response.headers.get('content-type') ?? '', /^text\/plain; version=0\.0\.4/)
  t.true((await response.text()).includes('pgonce_unacknowledged_losses{database="orders"} 0'))
  await sql`insert into once.loss (transaction_id, participant, home, kind) values (gen_random_uuid(), 'b', gen_random_uuid(), 'lost branch')`
  for (;;) {
    const text = await (await fetch(address)).text()
    if (text.includes('pgonce_unacknowledged_losses{database="orders"} 1')) break
  }
  t.is((await fetch(new URL('/', address))).status, 404)
  t.is((await fetch(address, { method: 'POST' })).status, 405)
  t.is((await running.stop('SIGTERM')).exitCode, 0)
})

test('An address that is none is refused before anything is done', async (t) => {
  const { exitCode, stderr } = await pgonceCli([
    'metrics',
    '--listen',
    'everywhere',
    'postgres://localhost/x',
  ])
  t.is(exitCode, 2)
  t.regex(stderr, /Expected \[host:\]port/)
})
