import test from 'ava'
import { testDatabase } from '../support/database.ts'
import { oneValue, openSession, refused, rowsOf, untilBlocked } from '../support/sql.ts'

/** Sequences 0, 2, 4, … of a producer, which leave so many gaps. */
const withGaps = (name: string, gaps: number) =>
  `select count(*)::int from once.claim_batch('${name}', array(select 2 * g::bigint from generate_series(0, ${gaps}) g))`

test('A claim writes and costs no more behind 900 gaps than behind one', async (t) => {
  const { sql, url } = await testDatabase(t)
  for (const gaps of [1, 900]) await oneValue(sql, withGaps(`p${gaps}`, gaps))
  const a = await openSession(t, url)
  const claims = async (gaps: number, first: number) => {
    let bytes = 0
    const began = performance.now()
    for (let n = 0; n < 100; n++) {
      const [[plan] = []] = await a.rows(
        `explain (analyze, wal, format json) select once.claim('p${gaps}', ${2 * gaps + first + n})`,
      )
      bytes += (plan as { Plan: Record<string, number> }[])[0]?.Plan['WAL Bytes'] ?? Number.NaN
    }
    return { bytes: bytes / 100, took: performance.now() - began }
  }
  // The pages themselves are written once after a checkpoint.
  for (const gaps of [1, 900]) await claims(gaps, 1)
  const few = await claims(1, 101)
  const many = await claims(900, 101)
  t.log(`100 claims: ${few.took.toFixed(0)} ms behind one gap, ${many.took.toFixed(0)} ms behind 900`)
  t.true(
    many.bytes > 0 && many.bytes < 2 * few.bytes,
    `${few.bytes} and ${many.bytes} bytes of WAL per claim`,
  )
  // 28 times when the ranges were one value of the producer's row.
  t.true(many.took < 5 * few.took, `${few.took}, ${many.took}`)
  t.is(await oneValue(sql, `select gaps::int from once.producers where producer = 'p900'`), 900)
})

test('A duplicate behind or ahead of the watermark takes no lock and writes nothing', async (t) => {
  const { sql, url } = await testDatabase(t)
  await oneValue(sql, withGaps('p', 50))
  await rowsOf(sql, `select once.claim_batch('p', array[1, 3, 200, 201, 202])`)
  const [a, b] = [await openSession(t, url), await openSession(t, url)]
  await a.sql`begin`
  t.is(await a.value(`select once.claim('p', 5)`), 'claimed')
  const duplicates = [
    `select once.claim('p', 0)`,
    `select once.claim('p', 4)`,
    `select once.claim('p', 50)`,
    `select once.claim('p', 201)`,
    `select once.claim_ranges('p', '{[0,4]}')`,
    `select once.claim_ranges('p', '{[0,4],[50,50],[200,201]}')`,
    `select count(*) from once.claim_batch('p', array[202, 0, 200])`,
  ]
  await b.sql`set lock_timeout = '1s'`
  for (const statement of duplicates) {
    await b.sql`begin`
    t.true(['duplicate', '{}', '0'].includes(String(await b.value(statement))), statement)
    t.false(await b.value('select pg_current_xact_id_if_assigned() is not null'), statement)
    await b.sql`commit`
  }
  const waits = b.value(`select once.claim('p', 5)`)
  await a.sql`commit`
  t.is(await waits, 'duplicate')
})

test('A new producer may begin where its first claim says, and a known one keeps what it has', async (t) => {
  const { sql } = await testDatabase(t)
  const producer = async (name: string) =>
    (await rowsOf(sql, `select watermark, gaps from once.producers where producer = '${name}'`))[0]
  t.is(await oneValue(sql, `select once.claim('counts from 1', 1, start_at => 1)`), 'claimed')
  t.deepEqual(await producer('counts from 1'), ['1', '0'])
  t.is(await oneValue(sql, `select once.claim('counts from 1', 2, start_at => 1)`), 'claimed')
  t.is(await oneValue(sql, `select once.claim('counts from 1', 0, start_at => 0)`), 'duplicate')

  t.is(await oneValue(sql, `select once.claim('first is late', 3, start_at => 1)`), 'claimed')
  t.is(await oneValue(sql, `select once.claim('first is late', 1, start_at => 1)`), 'claimed', 'none is lost')
  t.deepEqual(await producer('first is late'), ['1', '1'])

  t.is(await oneValue(sql, `select once.claim('strict', 1000, 0, true, start_at => 1000)`), 'claimed')
  await refused(
    t,
    oneValue(sql, `select once.claim('strict too', 1001, 0, true, 1000)`),
    'ONGAP',
    'expected sequence 1000',
  )
  t.is(await oneValue(sql, `select once.claim_ranges('ranges', '{[5,9]}', start_at => 5)::text`), '{[5,10)}')
  t.deepEqual(await rowsOf(sql, `select once.claim_batch('batch', array[4, 5, 6], start_at => 5)`), [
    ['5'],
    ['6'],
  ])
  t.deepEqual(await producer('batch'), ['6', '0'])

  t.is(await oneValue(sql, `select once.claim('known', 1)`), 'claimed')
  t.is(await oneValue(sql, `select once.claim('known', 2, start_at => 1)`), 'claimed')
  t.deepEqual(await producer('known'), ['-1', '1'])
  for (const bad of ['-1', '9223372036854775807'])
    await refused(
      t,
      oneValue(sql, `select once.claim('new', 1, start_at => ${bad})`),
      'ONARG',
      'bad start_at',
    )
})

test('Of two first claims of a new producer with different starts the second takes the first one’s', async (t) => {
  const { sql, url } = await testDatabase(t)
  for (const end of ['commit', 'rollback']) {
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await a.sql`begin`
    t.is(await a.value(`select once.claim('${end}', 7, start_at => 7)`), 'claimed')
    const second = b.value(`select once.claim('${end}', 5, start_at => 5)`)
    await untilBlocked(sql, b)
    await a.rows(end)
    t.is(await second, end === 'commit' ? 'duplicate' : 'claimed')
  }
})

test('once.health counts the producers that are close to their limit of gaps', async (t) => {
  const { sql } = await testDatabase(t)
  const finding = async (name: string) =>
    (await rowsOf(sql, `select status, value, hint from once.health where name = '${name}'`))[0]
  for (const [name, gaps] of [
    ['few', 400],
    ['half', 500],
    ['many', 900],
  ] as const)
    await oneValue(sql, withGaps(name, gaps))
  t.deepEqual((await finding('producers_near_gap_limit'))?.slice(0, 2), ['warn', 2])
  t.true(String((await finding('producers_near_gap_limit'))?.[2]).includes('start_at'))
  t.deepEqual((await finding('producer_gaps_ratio'))?.slice(0, 2), ['warn', 0.9])
  await sql`select once.set_watermark('many', 1800, 'given up'), once.set_watermark('half', 1000, 'given up')`
  t.deepEqual(await finding('producers_near_gap_limit'), ['ok', 0, null])
})

test('The count of gaps is the number of ranges ahead, whatever was claimed, closed or given up', async (t) => {
  const { sql } = await testDatabase(t)
  let seed = 7
  const random = (n: number) => {
    seed = (seed * 48271) % 2147483647
    return seed % n
  }
  for (let step = 0; step < 150; step++) {
    const low = random(300)
    if (random(20) === 0) {
      await sql.unsafe(`select once.set_watermark('p', ${low}, 'given up')`).catch((error) => {
        if (error.code !== 'ONARG') throw error
      })
    } else if (random(2) === 0) await rowsOf(sql, `select once.claim('p', ${low})`)
    else
      await rowsOf(sql, `select once.claim_ranges('p', '{[${low},${low + random(4)}],[${random(300)},300]}')`)
    const [[gaps, ranges, wrong] = []] = await rowsOf(
      sql,
      `select p.gaps, count(a.first)::int,
              count(*) filter (where a.first <= p.watermark + 1 or a.last < a.first or exists (
                select from once.claimed_ahead b where b.first <> a.first and b.first <= a.last + 1 and b.last >= a.first - 1))::int
         from once.producer p left join once.claimed_ahead a using (producer) group by p.producer`,
    )
    t.deepEqual([gaps, wrong], [ranges, 0], `step ${step}`)
  }
})
