import test from 'ava'
import { connect, testDatabase } from '../support/database.ts'
import { oneValue, rowsOf } from '../support/sql.ts'

/** Claim and effect in one statement, as the documentation has it. */
const forms = {
  key: `
    with c as (select status from once.claim_key('s', $1::text))
    insert into effect (message) select $1 from c where c.status = 'claimed'`,
  'key with a time': `
    with c as (select status from once.claim_key('s', $1::text, occurred_at => '2024-03-01 10:00Z'))
    insert into effect (message) select $1 from c where c.status = 'claimed'`,
  sequence: `
    with c as (select status from once.claim('p', $1::text::bigint, start_at => 1))
    insert into effect (message) select $1 from c where c.status = 'claimed'`,
}

for (const [by, statement] of Object.entries(forms)) {
  test(`Claim by ${by} and effect in one statement are exact under racing calls`, async (t) => {
    const { sql, url } = await testDatabase(t)
    await sql`create table effect (message text)`
    const connections = Array.from({ length: 8 }, () => connect(t, url))
    for (let message = 1; message <= 50; message++) {
      const counts = await Promise.all(
        connections.map(async (one) => (await one.unsafe(statement, [String(message)])).count),
      )
      t.is(
        counts.reduce((sum, count) => sum + count, 0),
        1,
        `message ${message}`,
      )
    }
    t.deepEqual(await rowsOf(sql, 'select count(*)::int, count(distinct message)::int from effect'), [
      [50, 50],
    ])
  })

  test(`Where the effect of a statement that claims by ${by} fails, the message is new again`, async (t) => {
    const { sql, url } = await testDatabase(t)
    await sql`create table effect (message text check (message <> '1'))`
    const one = connect(t, url)
    await t.throwsAsync(one.unsafe(statement, ['1']), { code: '23514' })
    await sql`alter table effect drop constraint effect_message_check`
    t.is((await one.unsafe(statement, ['1'])).count, 1)
    t.is((await one.unsafe(statement, ['1'])).count, 0)
  })
}

test('A batch and its effects in one statement take what is new, each once, under racing calls', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`create table effect (message text)`
  const keys = `
    insert into effect (message)
    select c.key from once.claim_key_batch('s', $1::text[]) c where c.status = 'claimed'`
  const sequences = `
    insert into effect (message) select 'n' || c from once.claim_batch('p', $1::bigint[]) c`
  const connections = Array.from({ length: 8 }, () => connect(t, url))
  for (let round = 0; round < 20; round++) {
    await Promise.all(
      connections.map(async (one, i) => {
        const numbers = Array.from({ length: 20 }, (_, n) => round * 10 + ((n * 7 + i * 3) % 20))
        await one.unsafe(keys, [numbers.map((n) => `k${n}`)])
        await one.unsafe(sequences, [numbers.map(String)])
      }),
    )
  }
  t.is(await oneValue(sql, 'select count(*)::int from effect'), 420)
  t.is(await oneValue(sql, 'select count(distinct message)::int from effect'), 420)
})

test('What no claim can have answered is refused, not taken for a duplicate', async (t) => {
  const { sql } = await testDatabase(t)
  for (const status of ['Claimed', 'foo', '', null])
    await t.throwsAsync(async () => sql`select once.take_effect(${status}, array['select 1'])`, {
      code: 'ONARG',
      message: /no answer of a claim/,
    })
  for (const status of ['claimed', 'duplicate', 'expired'])
    t.is(await oneValue(sql, `select once.take_effect('${status}', array['select 1'])`), status)
})
