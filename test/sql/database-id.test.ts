import { randomUUID } from 'node:crypto'
import test, { type ExecutionContext } from 'ava'
import { connect, randomName, type TestDatabase, testDatabase, testRole } from '../support/database.ts'
import { serverUrl } from '../support/servers.ts'
import { oneValue, openSession, refused, rowsOf, sharedDatabase } from '../support/sql.ts'

const shared = sharedDatabase()

/** A copy as `create database … template` makes it; the original must have no sessions. */
async function copyOf(t: ExecutionContext, original: TestDatabase) {
  await original.sql.end()
  const name = randomName('copy')
  const admin = connect(t, serverUrl('a'))
  await admin.unsafe(`create database ${name} template ${original.name}`)
  t.teardown(async () => {
    const again = connect({ teardown: () => {} }, serverUrl('a'))
    await again.unsafe(`drop database ${name} with (force)`)
    await again.end()
  })
  return { copy: connect(t, serverUrl('a', name)), original: connect(t, original.url) }
}

test('The schema has a version, and its first is 1', async (t) => {
  t.is(await oneValue(shared().sql, 'select once.schema_version()'), 1)
})

test('Every database has an id of its own, and only one', async (t) => {
  const { sql } = shared()
  const other = await testDatabase(t)
  const id = await oneValue(sql, 'select once.database_id()')
  t.is(await oneValue(sql, 'select id from once.database'), id)
  t.not(await oneValue(other.sql, 'select once.database_id()'), id)
  const copyRow = `insert into once.database (system_identifier, database_oid) values (1, 1)`
  await refused(t, rowsOf(sql, copyRow), '23505')
  await refused(
    t,
    rowsOf(sql, copyRow.replace('(', '(singleton, ').replace('values (', 'values (false, ')),
    '23514',
  )
})

test('A copied database is noticed, and answers for nobody', async (t) => {
  const database = await testDatabase(t)
  const id = await oneValue(database.sql, 'select once.database_id()')
  const { copy, original } = await copyOf(t, database)
  t.is(await oneValue(original, 'select once.database_id()'), id)
  const words = [`${id}`, 'is a copy', 'once.renew_database_id', 'once.adopt_database_id']
  await refused(t, oneValue(copy, 'select once.database_id()'), 'ONCPY', ...words)
  await refused(
    t,
    oneValue(copy, `select once.branch_outcome('${id}', '${randomUUID()}', '3')`),
    'ONCPY',
    ...words,
  )
  await refused(t, oneValue(copy, `select once.outcome('${id}', '${randomUUID()}', '3')`), 'ONCPY')
  await refused(t, rowsOf(copy, `select * from once.find_decisions('{}')`), 'ONCPY')
  t.is(await oneValue(copy, `select once.claim('p', 0)`), 'claimed', 'its ledger is its own')
})

test('A copy that lives beside its original takes a new database id and drops the original’s decisions', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const id = await oneValue(sql, 'select once.database_id()')
  await sql`select once.claim('p', 0)`
  await sql`select once.claim_key('s', 'k')`
  await sql`select once.take_partition('g', 't', 0)`
  await sql`insert into once.evidence values (${randomUUID()}, ${randomUUID()}, 'b')`
  await sql`select once.record_loss(${randomUUID()}, 'b', ${randomUUID()}, 'lost branch')`
  const purged = randomUUID()
  await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    select id, '{b}', array[gen_random_uuid()] from unnest(${[purged, randomUUID()]}::uuid[]) id`
  await sql`select once.mark_proven(array[${purged}]::uuid[])`
  await sql`select once.mark_confirmed(array[${purged}]::uuid[])`
  await sql`select once.purge(array[${purged}]::uuid[])`

  const { copy } = await copyOf(t, database)
  await refused(t, oneValue(copy, `select once.renew_database_id('')`), 'ONARG', 'reason')
  await refused(t, oneValue(copy, `select once.renew_database_id(null)`), 'ONARG', 'reason')
  const renewed = await oneValue(copy, `select once.renew_database_id('staging copy')`)
  t.not(renewed, id)
  t.is(await oneValue(copy, 'select once.database_id()'), renewed)
  t.deepEqual(
    await rowsOf(
      copy,
      `select (select count(*)::int from once.global_transaction), (select count(*)::int from once.evidence),
              (select count(*)::int from once.loss), (select count(*)::int from once.producer),
              (select count(*)::int from once.message), (select count(*)::int from once.consumer_position),
              (select purged_xid::text from once.database)`,
    ),
    [[0, 0, 0, 1, 1, 1, '0']],
    'nothing was purged under the new id',
  )
  t.deepEqual(await rowsOf(copy, 'select action, subject, reason from once.intervention'), [
    ['renew_database_id', { old: id, new: renewed }, 'staging copy'],
  ])
  t.is(await oneValue(copy, `select once.claim('p', 0)`), 'duplicate')
})

test('A database that replaces its original keeps database id and decisions', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const id = await oneValue(sql, 'select once.database_id()')
  const transaction = randomUUID()
  const [row] = await sql`
    insert into once.global_transaction (transaction_id, participants, database_ids)
    values (${transaction}, '{b}', ${[randomUUID()]}) returning home_xid::text as xid`
  const { copy } = await copyOf(t, database)
  await refused(t, oneValue(copy, `select once.adopt_database_id('')`), 'ONARG', 'reason')
  t.is(await oneValue(copy, `select once.adopt_database_id('restored from dump')`), id)
  t.is(await oneValue(copy, 'select once.database_id()'), id)
  t.is(
    await oneValue(copy, `select once.branch_outcome('${id}', '${transaction}', '${row?.xid}')`),
    'committed',
  )
  t.deepEqual(await rowsOf(copy, 'select action, subject, reason from once.intervention'), [
    ['adopt_database_id', { id }, 'restored from dump'],
  ])
})

test('A copy of the schema alone says what to do, and works after that', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`truncate once.database, once.expiry`
  await refused(t, oneValue(sql, 'select once.database_id()'), 'ONCPY', 'once.renew_database_id')
  const id = await oneValue(sql, `select once.renew_database_id('schema only')`)
  t.is(await oneValue(sql, 'select once.database_id()'), id)
  await sql`select once.set_retention('s', '1 day')`
  t.deepEqual(await rowsOf(sql, 'select action, more from once.expire()'), [
    ['horizon', false],
    ['delete', true],
  ])
})

test('Row level security over the id says so, to whom it hides it, and advises nothing that destroys', async (t) => {
  const database = await testDatabase(t)
  const { sql } = database
  const role = await testRole(t, database)
  await sql`select once.grant_app(${role})`
  await sql`alter table once.database enable row level security`
  const app = await openSession(t, database.urlAs(role))
  const { message, detail, hint } = await refused(
    t,
    app.value('select once.database_id()'),
    'ONRLS',
    `hides the id of database ${database.name} from role ${role}`,
    'alter table once.database disable row level security',
  )
  t.notRegex(`${message} ${detail} ${hint}`, /renew|adopt|copy/)
  t.truthy(await oneValue(sql, 'select once.database_id()'), 'its owner sees it all the same')
  await sql.unsafe(/alter table \S+ disable row level security/.exec(hint)?.[0] ?? 'no statement in the hint')
  t.truthy(await app.value('select once.database_id()'))
})

test('Where decisions are left but not the id, nobody is told to renew it', async (t) => {
  const { sql } = await testDatabase(t)
  await sql`insert into once.global_transaction (transaction_id, participants, database_ids)
            values (gen_random_uuid(), '{}', '{}')`
  await sql`truncate once.database`
  const { hint } = await refused(t, oneValue(sql, 'select once.database_id()'), 'ONCPY', 'is missing')
  t.notRegex(hint, /renew/)
  t.regex(hint, /backup/)
})

test('What people do by hand is recorded with login and time, and waits for its flush', async (t) => {
  const { sql, url } = await testDatabase(t)
  const a = await openSession(t, url)
  await a.sql`set synchronous_commit = off`
  await sql`select once.take_partition('g', 't', 0)`
  await sql`select once.record_loss('11111111-1111-4111-8111-111111111111', 'b', gen_random_uuid(), 'lost branch')`
  const calls = [
    `once.set_watermark('p', 5, 'because')`,
    `once.reset_position('g', 't', 0, 5, 'because')`,
    `once.acknowledge('11111111-1111-4111-8111-111111111111', 'because')`,
    `once.adopt_database_id('because')`,
    `once.renew_database_id('because')`,
  ]
  for (const call of calls) {
    await a.sql`begin`
    await a.rows(`select ${call}`)
    t.is(await a.value('show synchronous_commit'), 'on', call)
    await a.sql`commit`
  }
  t.deepEqual(
    await rowsOf(
      sql,
      `select action from once.intervention
        where login = 'postgres' and reason = 'because' and age(happened_at) < '1 hour' order by intervention_id`,
    ),
    calls.map((call) => [/once\.(\w+)/.exec(call)?.[1]]),
  )
})

test('A name is refused with its length, and a long one is cut in the message', async (t) => {
  const { sql } = shared()
  for (const good of ['x', '😀'.repeat(200)])
    await t.notThrowsAsync(sql`select once.check_name('thing', ${good})`)
  await refused(t, sql`select once.check_name('thing', null)`, 'ONARG', 'bad thing: null', 'got null')
  await refused(t, sql`select once.check_name('thing', '')`, 'ONARG', `bad thing: ''`, 'got 0')
  const { message } = await refused(
    t,
    sql`select once.check_name('thing', ${'y'.repeat(201)})`,
    'ONARG',
    'got 201',
  )
  t.is(message, `bad thing: '${'y'.repeat(40)}'`)
})
