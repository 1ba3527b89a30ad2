import test from 'ava'
import fc from 'fast-check'
import type postgres from 'postgres'
import { connect, testDatabase, testRole } from '../support/database.ts'
import {
  freshName,
  oneValue,
  openSession,
  refused,
  rowsOf,
  sharedDatabase,
  untilBlocked,
} from '../support/sql.ts'

const shared = sharedDatabase()

const take = async (sql: postgres.Sql, group: string, owner?: string) =>
  (
    await rowsOf(sql, `select * from once.take_partition('${group}', 't', 0${owner ? `, '${owner}'` : ''})`)
  )[0]
const advance = (sql: postgres.Sql, group: string, call: string) =>
  oneValue(sql, `select once.advance('${group}', 't', 0, ${call})`)
const advanceToken = (sql: postgres.Sql, group: string, call: string) =>
  oneValue(sql, `select once.advance_token('${group}', 't', 0, ${call})`)
const read = async (sql: postgres.Sql, group: string) =>
  (await rowsOf(sql, `select position, token, epoch, owner from once.read_position('${group}', 't', 0)`))[0]

test('Taking a partition gives a new epoch and the position to go on from', async (t) => {
  const { sql } = shared()
  const group = freshName()
  t.is(await read(sql, group), undefined)
  t.deepEqual(await take(sql, group, 'a'), [1, null, null])
  await advance(sql, group, '1, null, 10')
  t.deepEqual(await take(sql, group, 'b'), [2, '10', null])
  t.deepEqual(await read(sql, group), ['10', null, 2, 'b'])
  t.deepEqual(await take(sql, group), [3, '10', null])
  t.deepEqual(await read(sql, group), ['10', null, 3, null], 'the owner goes with the epoch')
  t.deepEqual(
    await rowsOf(sql, `select epoch, position from once.take_partition('${group}', 't', 1)`),
    [[1, null]],
    'partitions are apart',
  )
})

test('A position moves only from where the caller believes it to be', async (t) => {
  const { sql } = shared()
  const group = freshName()
  await take(sql, group)
  await refused(
    t,
    advance(sql, group, '1, 0, 10'),
    'ONCAS',
    'is at its start, not at the expected 0',
    'to 10',
  )
  await advance(sql, group, '1, null, 0')
  await advance(sql, group, '1, 0, 10')
  await refused(
    t,
    advance(sql, group, '1, 0, 10'),
    'ONCAS',
    'is at 10, not at the expected 0',
    'read_position',
  )
  await refused(t, advance(sql, group, '1, null, 10'), 'ONCAS', 'expected its start')
  await advance(sql, group, '1, 10, 10')
  await advance(sql, group, '1, 10, 9223372036854775807')
  t.deepEqual(await read(sql, group), ['9223372036854775807', null, 1, null])
})

test('A position never moves back, below 0 or to nowhere', async (t) => {
  const { sql } = shared()
  const group = freshName()
  await take(sql, group)
  await advance(sql, group, '1, null, 10')
  await refused(t, advance(sql, group, '1, 10, 9'), 'ONARG', '9 after 10', 'reset_position')
  await refused(t, advance(sql, group, '1, 10, null'), 'ONARG', 'bad position')
  await refused(t, advance(sql, group, '1, null, -1'), 'ONARG', 'bad position')
  await refused(t, advanceToken(sql, group, '1, null, null'), 'ONARG', 'bad token')
})

test('Only the newest epoch moves a position; older and invented ones are fenced', async (t) => {
  const { sql } = shared()
  const group = freshName()
  await take(sql, group, `o''neill`)
  await take(sql, group, `o''neill`)
  for (const epoch of ['0', '1', '3', 'null']) {
    await refused(
      t,
      advance(sql, group, `${epoch}, null, 1`),
      'ONFEN',
      'not the current epoch 2',
      `'o''neill'`,
    )
    await refused(t, advanceToken(sql, group, `${epoch}, null, 'x'`), 'ONFEN')
  }
  await take(sql, group)
  await refused(t, advance(sql, group, `2, null, 1`), 'ONFEN', 'an unnamed owner')
})

test('What was never taken cannot be moved or reset, and the hint says how to take it', async (t) => {
  const { sql } = shared()
  const group = freshName(`it's`)
  const quoted = group.replaceAll(`'`, `''`)
  const { hint } = await refused(t, advance(sql, quoted, '1, null, 1'), 'ONTKN', 'never taken')
  await refused(t, advanceToken(sql, quoted, `1, null, 'x'`), 'ONTKN')
  await refused(t, oneValue(sql, `select once.reset_position('${quoted}', 't', 0, 1, 'why')`), 'ONTKN')
  await refused(t, oneValue(sql, `select once.advance(null, null, null, null, null, 1)`), 'ONTKN')
  t.deepEqual(await rowsOf(sql, `select epoch from (${hint}) h`), [[1]])
})

test('An opaque position moves by the same rules, except that it has no order', async (t) => {
  const { sql } = shared()
  const group = freshName()
  await take(sql, group)
  await advanceToken(sql, group, `1, null, 'b'`)
  await advanceToken(sql, group, `1, 'b', 'a'`)
  await refused(t, advanceToken(sql, group, `1, 'b', 'c'`), 'ONCAS', `is at 'a'`, 'expected b')
  await refused(t, advance(sql, group, `1, null, 5`), 'ONCAS', `is at 'a'`)
  t.deepEqual(await take(sql, group), [2, null, 'a'])
  await sql`select once.advance_token(${group}, 't', 0, 2, 'a', ${'😀'.repeat(100_000)})`
  t.is(await oneValue(sql, `select length(token) from once.read_position('${group}', 't', 0)`), 100_000)
})

test('A token cannot move a position that is a number', async (t) => {
  const { sql } = shared()
  const group = freshName()
  await take(sql, group)
  await advance(sql, group, '1, null, 5')
  await refused(t, advanceToken(sql, group, `1, null, 'a'`), 'ONCAS', 'is at 5')
})

test('Group, topic and owner may have any name of 1 to 200 characters, and no other', async (t) => {
  const { sql } = shared()
  for (const name of [`o'neill "&" \\ $$; drop schema once; --`, '😀'.repeat(200), ' ']) {
    const [row] = await sql`select * from once.take_partition(${name}, ${name}, 2147483647, ${name})`
    t.is(row?.epoch, 1)
    await sql`select once.advance(${name}, ${name}, 2147483647, 1, null, 7)`
    await sql`select once.report_end(${name}, 2147483647, 8)`
    const [lag] =
      await sql`select lag, owner from once.lag where consumer_group = ${name} and topic = ${name}`
    t.deepEqual({ ...lag }, { lag: '1', owner: name })
  }
  for (const name of ['', '😀'.repeat(201), 'x'.repeat(10_000), null]) {
    await refused(t, sql`select once.take_partition(${name}, 't', 0)`, 'ONARG', 'bad consumer_group')
    await refused(t, sql`select once.take_partition('g', ${name}, 0)`, 'ONARG', 'bad topic')
    await refused(t, sql`select once.report_end(${name}, 0, 0)`, 'ONARG', 'bad topic')
    if (name !== null)
      await refused(t, sql`select once.take_partition('g', 't', 0, ${name})`, 'ONARG', 'bad owner')
  }
  for (const partition of [-1, null])
    await refused(t, sql`select once.take_partition('g', 't', ${partition})`, 'ONARG', 'bad partition')
})

test('An operator’s reset fences the running consumer and is recorded', async (t) => {
  const { sql } = await testDatabase(t)
  await take(sql, 'g', 'a')
  await advance(sql, 'g', '1, null, 10')
  t.is(await oneValue(sql, `select once.reset_position('g', 't', 0, 3, 'replay after bug 17')`), 2)
  await refused(t, advance(sql, 'g', '1, 10, 11'), 'ONFEN')
  t.deepEqual(await read(sql, 'g'), ['3', null, 2, null])
  t.is(await oneValue(sql, `select once.reset_position('g', 't', 0, null, 'other source', 'tok')`), 3)
  t.deepEqual(await take(sql, 'g'), [4, null, 'tok'])
  t.is(await oneValue(sql, `select once.reset_position('g', 't', 0, null, 'all over')`), 5)
  t.deepEqual(await take(sql, 'g'), [6, null, null])
  t.deepEqual(
    await rowsOf(
      sql,
      'select action, subject, reason, login from once.intervention order by intervention_id',
    ),
    [
      [
        'reset_position',
        { consumer_group: 'g', topic: 't', partition: 0, from: '10', to: '3' },
        'replay after bug 17',
        'postgres',
      ],
      [
        'reset_position',
        { consumer_group: 'g', topic: 't', partition: 0, from: '3', to: 'tok' },
        'other source',
        'postgres',
      ],
      [
        'reset_position',
        { consumer_group: 'g', topic: 't', partition: 0, from: 'tok', to: null },
        'all over',
        'postgres',
      ],
    ],
  )
  await refused(t, oneValue(sql, `select once.reset_position('g', 't', 0, 3, '')`), 'ONARG', 'reason')
  await refused(t, oneValue(sql, `select once.reset_position('g', 't', 0, 3, null)`), 'ONARG', 'reason')
  await refused(t, oneValue(sql, `select once.reset_position('g', 't', 0, -3, 'x')`), 'ONARG', 'bad position')
  await refused(
    t,
    oneValue(sql, `select once.reset_position('g', 't', 0, 3, 'x', 'y')`),
    'ONARG',
    'bad position',
  )
  t.deepEqual(await read(sql, 'g'), [null, null, 6, null])
})

test('The lag is a number only where both position and end are known', async (t) => {
  const { sql } = await testDatabase(t)
  for (const group of ['moved', 'ahead', 'at the start', 'token', 'no end']) await take(sql, group)
  await advance(sql, 'moved', '1, null, 10')
  await advance(sql, 'ahead', '1, null, 100')
  await advanceToken(sql, 'token', `1, null, 'x'`)
  await rowsOf(sql, `select once.take_partition('no end', 'other', 0)`)
  await rowsOf(sql, `select once.advance('no end', 'other', 0, 1, null, 5)`)
  await sql`select once.report_end('t', 0, 42)`
  t.deepEqual(
    await rowsOf(
      sql,
      `select consumer_group, position, token, end_position, lag from once.lag
        where topic = 'other' or consumer_group <> 'no end' order by 1`,
    ),
    [
      ['ahead', '100', null, '42', '0'],
      ['at the start', null, null, '42', null],
      ['moved', '10', null, '42', '32'],
      ['no end', '5', null, null, null],
      ['token', null, 'x', '42', null],
    ],
  )
  t.is(await oneValue(sql, `select bool_and(idle >= '0') from once.lag`), true)
})

test('Reports of an end may come in any order: it never moves back', async (t) => {
  const { sql } = shared()
  const topic = freshName()
  for (const end of [5, 9, 7, 0]) await sql`select once.report_end(${topic}, 0, ${end})`
  t.is(await oneValue(sql, `select end_position from once.topic_end where topic = '${topic}'`), '9')
  for (const bad of ['0, -1', '0, null', '-1, 5', 'null, 5'])
    await refused(t, oneValue(sql, `select once.report_end('${topic}', ${bad})`), 'ONARG', 'bad end')
})

test('Whoever takes a partition waits for a move under way, and starts after it', async (t) => {
  const { sql, url } = shared()
  for (const [end, position] of [
    ['commit', '10'],
    ['rollback', '5'],
  ] as const) {
    const group = freshName()
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await take(a.sql, group)
    await advance(a.sql, group, '1, null, 5')
    await a.sql`begin`
    await advance(a.sql, group, '1, 5, 10')
    const taken = take(b.sql, group)
    await untilBlocked(sql, b)
    await a.rows(end)
    t.deepEqual(await taken, [2, position, null])
    await refused(t, advance(a.sql, group, `1, ${position}, 11`), 'ONFEN')
  }
})

test('A move that waits for a taker is fenced if the taker commits', async (t) => {
  const { sql, url } = shared()
  for (const [end, code] of [
    ['commit', 'ONFEN'],
    ['rollback', 'moved'],
  ] as const) {
    const group = freshName()
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await take(a.sql, group)
    await b.sql`begin`
    t.deepEqual(await take(b.sql, group), [2, null, null])
    const move = advance(a.sql, group, '1, null, 1')
    await untilBlocked(sql, a)
    await b.rows(end)
    if (code === 'moved') await t.notThrowsAsync(move)
    else await refused(t, move, code)
  }
})

test('Of two first takers one waits, and each gets an epoch of its own', async (t) => {
  const { sql, url } = shared()
  for (const [end, epoch] of [
    ['commit', 2],
    ['rollback', 1],
  ] as const) {
    const group = freshName()
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await a.sql`begin`
    t.deepEqual(await take(a.sql, group), [1, null, null])
    const taken = take(b.sql, group)
    await untilBlocked(sql, b)
    await a.rows(end)
    t.deepEqual(await taken, [epoch, null, null])
  }
})

test('Of two moves from one position only one is made, under every isolation level', async (t) => {
  const { sql, url } = shared()
  for (const [isolation, code] of [
    ['read committed', 'ONCAS'],
    ['repeatable read', '40001'],
    ['serializable', '40001'],
  ] as const) {
    const group = freshName()
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await take(sql, group)
    await b.rows(`set default_transaction_isolation = '${isolation}'`)
    await a.sql`begin`
    await advance(a.sql, group, '1, null, 5')
    const second = advance(b.sql, group, '1, null, 6')
    await untilBlocked(sql, b)
    await a.sql`commit`
    await refused(t, second, code)
    t.deepEqual(await read(sql, group), ['5', null, 1, null])
  }
})

test('A prepared move holds the partition until it is finished', async (t) => {
  const { sql, url } = shared()
  for (const [finish, position] of [
    ['commit', '5'],
    ['rollback', null],
  ] as const) {
    const group = freshName()
    const [a, b] = [await openSession(t, url), await openSession(t, url)]
    await take(sql, group)
    await a.sql`begin`
    await advance(a.sql, group, '1, null, 5')
    await a.rows(`prepare transaction 'position-${a.pid}'`)
    const taken = take(b.sql, group)
    await untilBlocked(sql, b)
    await a.rows(`${finish} prepared 'position-${a.pid}'`)
    t.deepEqual(await taken, [2, position, null])
  }
})

test('What moves or takes waits for its flush although the default is synchronous_commit = off', async (t) => {
  const database = await testDatabase(t)
  const role = await testRole(t, database)
  await database.sql`select once.grant_app(${role})`
  await database.sql.unsafe(`alter role ${role} in database ${database.name} set synchronous_commit = off`)
  const a = await openSession(t, database.urlAs(role))
  for (const call of [
    `once.take_partition('g', 't', 0)`,
    `once.advance('g', 't', 0, 1, null, 5)`,
    `once.take_partition('h', 't', 0)`,
    `once.advance_token('h', 't', 0, 1, null, 'x')`,
  ]) {
    t.is(await a.value('show synchronous_commit'), 'off')
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
})

interface Model {
  position: number | null
  token: string | null
  epoch: number
}

const epochs = fc.integer({ min: -1, max: 1 })
const place = fc.option(fc.nat(6), { freq: 4 })
const word = fc.option(fc.constantFrom('a', 'b', 'c'), { freq: 4 })
const commands = fc.array(
  fc.oneof(
    { weight: 2, arbitrary: fc.constant({ what: 'take' as const }) },
    // Most moves start from the true position: a blind guess would hardly ever be right.
    {
      weight: 6,
      arbitrary: fc.record({
        what: fc.constant('advance' as const),
        off: epochs,
        guess: fc.option(place),
        next: fc.nat(9),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        what: fc.constant('token' as const),
        off: epochs,
        guess: fc.option(word),
        next: fc.constantFrom('a', 'b', 'c'),
      }),
    },
    { weight: 1, arbitrary: fc.record({ what: fc.constant('reset' as const), position: place }) },
    { weight: 1, arbitrary: fc.record({ what: fc.constant('reset token' as const), token: word }) },
  ),
  { maxLength: 20 },
)

test('Any takes, moves and resets are answered as a plain record would answer them', async (t) => {
  const { sql } = await testDatabase(t)
  let run = 0
  const codes = new Map<string, number>()
  await fc.assert(
    fc.asyncProperty(commands, async (list) => {
      const group = `g${run++}`
      const state: { model?: Model } = {}
      for (const command of list) {
        const { model } = state
        let query: PromiseLike<unknown>
        let expected = model ? 'done' : 'ONTKN'
        if (command.what === 'take') {
          query = take(sql, group)
          expected = 'done'
          state.model = { position: null, token: null, ...model, epoch: (model?.epoch ?? 0) + 1 }
        } else if (command.what === 'reset' || command.what === 'reset token') {
          const position = command.what === 'reset' ? command.position : null
          const token = command.what === 'reset token' ? command.token : null
          query = sql`select once.reset_position(${group}, 't', 0, ${position}, 'test', ${token})`
          if (model) state.model = { position, token, epoch: model.epoch + 1 }
        } else {
          const epoch = (model?.epoch ?? 0) + (command.off === 0 || run % 3 ? 0 : command.off)
          if (command.what === 'advance') {
            const from = command.guess === null ? (model?.position ?? null) : command.guess
            query = sql`select once.advance(${group}, 't', 0, ${epoch}, ${from}, ${command.next})`
            if (from !== null && command.next < from) expected = 'ONARG'
            else if (model && epoch !== model.epoch) expected = 'ONFEN'
            else if (model && (model.token !== null || model.position !== from)) expected = 'ONCAS'
            if (model && expected === 'done') state.model = { ...model, position: command.next }
          } else {
            const from = command.guess === null ? (model?.token ?? null) : command.guess
            query = sql`select once.advance_token(${group}, 't', 0, ${epoch}, ${from}, ${command.next})`
            if (model && epoch !== model.epoch) expected = 'ONFEN'
            else if (model && (model.position !== null || model.token !== from)) expected = 'ONCAS'
            if (model && expected === 'done') state.model = { ...model, token: command.next }
          }
        }
        const answer = await Promise.resolve(query).then(
          () => 'done',
          (error) => String(error.code),
        )
        t.is(answer, expected, JSON.stringify(command))
        codes.set(answer, (codes.get(answer) ?? 0) + 1)
        const row = await read(sql, group)
        const { model: now } = state
        t.deepEqual(
          row?.slice(0, 3),
          now && [now.position === null ? null : String(now.position), now.token, now.epoch],
        )
      }
    }),
    { numRuns: 100 },
  )
  for (const code of ['done', 'ONTKN', 'ONCAS', 'ONARG']) t.true((codes.get(code) ?? 0) > 5, code)
})

test('Consumers that take the partition from each other process every message once, in order', async (t) => {
  const { sql, url } = await testDatabase(t)
  await sql`create table effect (position bigint)`
  const total = 60
  const consumer = async (worker: postgres.Sql, seed: number) => {
    let fenced = 0
    for (let random = seed; ; ) {
      const [taken] = await worker<{ epoch: number; position: string | null }[]>`
        select epoch, position from once.take_partition('g', 't', 0)`
      if (!taken) throw new Error('take_partition gave no row')
      let at = taken.position === null ? null : Number(taken.position)
      try {
        while ((at ?? 0) < total) {
          random = (random * 48271) % 2147483647
          const from = at
          const next = Math.min(total, (from ?? 0) + 1 + (random % 3))
          await worker.begin(async (trx) => {
            await trx`insert into effect select generate_series(${from ?? 0}::int, ${next - 1}::int)`
            await trx`select once.advance('g', 't', 0, ${taken.epoch}, ${from}, ${next})`
          })
          at = next
          // Lose the partition now and then, as in a rebalance: take it again.
          if (random % 7 === 0) break
        }
        if ((at ?? 0) >= total) return fenced
      } catch (error) {
        if ((error as { code?: string }).code !== 'ONFEN') throw error
        fenced++
      }
    }
  }
  const fenced = await Promise.all([11, 23, 37].map((seed) => consumer(connect(t, url), seed)))
  t.log(`fenced ${fenced.join(', ')} times`)
  t.deepEqual(
    await rowsOf(sql, 'select position::int from effect order by position'),
    Array.from({ length: total }, (_, i) => [i]),
  )
})
