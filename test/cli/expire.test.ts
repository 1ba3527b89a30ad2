import test from 'ava'
import { named, pgonceCli } from '../support/cli.ts'
import { emptyDatabase, testDatabase } from '../support/database.ts'
import { openSession } from '../support/sql.ts'

test('expire goes on until nothing is left, and tells what it did', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`select once.claim_key('stripe', 'new')`
  await sql`insert into once.message (scope_id, digest, claimed_on)
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
  t.like(done, { database: 'orders', waits: null, error: null, steps: 4 })
  const deleted = done.actions.filter(({ action }: { action: string }) => action === 'delete')
  t.deepEqual(deleted, [
    { action: 'delete', scope: 'stripe', detail: 'keys past their horizon', count: 11000 },
  ])
  t.regex(first.stderr, /orders: step 1, \d+ done/)
  t.is((await sql`select from once.message`).length, 1)
  t.deepEqual([...(await sql`select retention::text from once.scope`)], [{ retention: '30 days' }])

  const again = await pgonceCli(['expire', ...named({ orders: url })])
  t.is(again.exitCode, 0)
  t.regex(again.stdout, /^orders: 0 keys deleted, in 1 step$/m)

  await sql`select once.claim_key('stripe', 'old', '2024-01-01')`
  const reader = await openSession(t, url)
  await reader.sql`begin isolation level repeatable read`
  await reader.rows('select from once.scope')
  const waits = await pgonceCli(['expire', '--retention', 'stripe=29 days', ...named({ orders: url })])
  t.is(waits.exitCode, 0)
  t.regex(waits.stdout, /^orders +horizon +stripe +older than .* is expired$/m)
  t.regex(
    waits.stdout,
    new RegExp(`^orders: 0 keys deleted, .*; run it again later: .* process ${reader.pid} `, 'm'),
  )
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
