import test from 'ava'
import { named, pgonceCli } from '../support/cli.ts'
import { emptyDatabase, testDatabase } from '../support/database.ts'

test('expire goes on until nothing is left, and tells what it did', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('stripe', 'new')`
  await sql`insert into once.message_timeless (scope_id, digest, claimed_on)
            select s.scope_id, md5(n::text)::uuid, current_date - 40
              from once.scope s, generate_series(1, 11000) n`
  const first = await pgonceCli([
    'expire',
    '--json',
    '--retention',
    'stripe=30 days',
    ...named({ orders: url }),
  ])
  t.is(first.exitCode, 0, first.stderr)
  const [done] = JSON.parse(first.stdout).databases
  t.like(done, { database: 'orders', busy: false, error: null, steps: 3 })
  const deleted = done.actions.filter(({ action }: { action: string }) => action === 'delete')
  t.deepEqual(deleted, [{ action: 'delete', scope: 'stripe', detail: 'keys without time', count: 11000 }])
  t.regex(first.stderr, /orders: step 1, \d+ done/)
  t.is((await sql`select from once.message_timeless`).length, 1)
  t.deepEqual([...(await sql`select retention::text from once.scope`)], [{ retention: '30 days' }])

  const again = await pgonceCli(['expire', ...named({ orders: url })])
  t.is(again.exitCode, 0)
  t.regex(again.stdout, /^orders +horizon +stripe +older than .* is expired$/m)
  t.regex(again.stdout, /^orders: 0 keys deleted, 0 partitions dropped, 0 created, in 1 step$/m)
})

test('a retention of forever is kept, and one that is no interval is refused', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.set_retention('a=b', '1 day')`
  t.is((await pgonceCli(['expire', '--retention', 'a=b=forever', url])).exitCode, 0)
  t.deepEqual([...(await sql`select scope, retention from once.scope`)], [{ scope: 'a=b', retention: null }])

  const wrong = await pgonceCli(['expire', '--retention', 'a=soon', url])
  t.is(wrong.exitCode, 1)
  t.regex(wrong.stdout, /invalid input syntax for type interval: "soon"/)
})

test('expire goes on to the next database when one fails, and exits with 1', async (t) => {
  const [orders, bare] = [await testDatabase(t), await emptyDatabase(t)]
  const { exitCode, stdout } = await pgonceCli(['expire', ...named({ bare, orders })])
  t.is(exitCode, 1)
  t.regex(stdout, /^bare: .*no schema once/m)
  t.regex(stdout, /^orders: 0 keys deleted/m)
})
