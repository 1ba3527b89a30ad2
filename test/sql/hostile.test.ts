/**
 * What each role may do was granted on purpose (roles.test.ts). Here they try what they must not: a login that
 * may connect and nothing more, applications that mean each other ill, and the people who only watch or recover.
 */
import { randomUUID } from 'node:crypto'
import test from 'ava'
import { pgonce } from '../../src/index.ts'
import { named, pgonceCli } from '../support/cli.ts'
import { client, kyselyOnPg } from '../support/client.ts'
import {
  connect,
  emptyDatabase,
  fileContext,
  randomName,
  type TestContext,
  type TestDatabase,
  testRole,
} from '../support/database.ts'
import { type EffectsDatabase, effectsDatabase } from '../support/effects.ts'
import { type LeftBehind, leaveOrphan } from '../support/orphan.ts'
import { isPending, oneValue, openSession, refused, rowsOf, untilBlocked } from '../support/sql.ts'
import { gexec, prepare } from '../support/strangers.ts'

interface Effects {
  readonly effect: { readonly id: number }
}

const grants = ['app', 'recover', 'monitor', 'operator'] as const
type Role = (typeof grants)[number] | 'hostile'

interface Stage {
  readonly home: EffectsDatabase
  readonly branch: EffectsDatabase
  /** Role names. In both databases, each with what its grant gives; `hostile` with none. */
  readonly roles: Readonly<Record<Role, string>>
  /** Prepared by the application; its home has committed. */
  readonly orphan: LeftBehind
}

/** Two databases of one cluster, every role, and a branch in doubt. */
async function makeStage(t: TestContext, outcome: 'committed' | 'aborted' = 'committed'): Promise<Stage> {
  const home = await effectsDatabase(t)
  const branch = await effectsDatabase(t)
  const roles: Record<string, string> = { hostile: await testRole(t, [home, branch]) }
  for (const grant of grants) {
    // As the manual advises: who finishes for others has their rights only where it takes them on.
    const role = await testRole(t, [home, branch], grant === 'app' ? '' : 'noinherit')
    roles[grant] = role
    for (const { sql } of [home, branch]) {
      await sql.unsafe(`select once.grant_${grant}('${role}')`)
      if (grant === 'app') await sql.unsafe(`grant select, insert on effect to ${role}`)
    }
  }
  for (const finisher of ['recover', 'operator'])
    await home.sql.unsafe(`grant ${roles.app} to ${roles[finisher]}`)
  const stage = { home, branch, roles: roles as Stage['roles'] }
  const sql = connect(t, branch.urlAs(stage.roles.app))
  const orphan = await leaveOrphan(home, { sql }, 1, outcome)
  return { ...stage, orphan }
}

const recover = async (stage: Pick<Stage, 'home' | 'branch'>, role = 'postgres') => {
  await using once = pgonce<Record<string, object>>({
    databases: { orders: stage.home.urlAs(role), billing: stage.branch.urlAs(role) },
  })
  return await once.recovery.run()
}

const gidsIn = async ({ sql, name }: TestDatabase) =>
  (await rowsOf(sql, `select gid from pg_prepared_xacts where database = '${name}'`)).flat().toSorted()

const withXid = (gid: string, xid: string) => gid.replace(/:\d+:(?=[^:]+$)/, `:${xid}:`)
const withParticipant = (gid: string, participant: string) => gid.replace(/[^:]+$/, participant)

// ---------------------------------------------------------------------------------------------------
// A login that may connect and nothing more

const ofAll = fileContext(test.after.always)
let shared: Stage
test.before(async () => {
  shared = await makeStage(ofAll)
  const { sql } = shared.branch
  await sql.unsafe(`
    select once.claim('p', 0);
    select once.claim_key('s', 'k', '2024-01-01');
    select once.take_partition('g', 't', 0);
    create extension dblink;
    create server peer foreign data wrapper dblink_fdw options (dbname 'postgres');
    create user mapping for postgres server peer options (user 'postgres', password 'secret')`)
})

/** A statement of the login's, and the only answer that is right. */
type Attempt = [title: string, statement: (stage: Stage) => string, code: string]

const attempts: readonly Attempt[] = [
  // Finishing
  ['commit a branch that is decided', ({ orphan }) => `commit prepared '${orphan.gid}'`, '42501'],
  ['roll back a branch that is decided', ({ orphan }) => `rollback prepared '${orphan.gid}'`, '42501'],
  ['take on the role that prepared it', ({ roles }) => `set role ${roles.app}`, '42501'],
  ['be that role from the start', ({ roles }) => `set session authorization ${roles.app}`, '42501'],
  ['become a member of it', ({ roles }) => `grant ${roles.app} to ${roles.hostile}`, '42501'],
  [
    'become a member of the superusers’ monitors',
    ({ roles }) => `grant pg_monitor to ${roles.hostile}`,
    '42501',
  ],
  ['change its password', ({ roles }) => `alter role ${roles.app} password 'x'`, '42501'],
  ['rename it', ({ roles }) => `alter role ${roles.app} rename to gone`, '42501'],
  ['drop it', ({ roles }) => `drop role ${roles.app}`, '42501'],
  ['make itself a superuser', ({ roles }) => `alter role ${roles.hostile} superuser`, '42501'],
  ['take over what it owns', ({ roles }) => `reassign owned by ${roles.app} to ${roles.hostile}`, '42501'],
  [
    'end sessions of ours',
    () =>
      `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres' and datname = current_database()`,
    '42501',
  ],
  // Granting
  [
    'grant itself the application’s rights',
    ({ roles }) => `select once.grant_app('${roles.hostile}')`,
    '42501',
  ],
  ['grant itself the schema', ({ roles }) => `grant usage on schema once to ${roles.hostile}`, '42501'],
  ['grant itself a table', ({ roles }) => `grant select on once.evidence to ${roles.hostile}`, '42501'],
  [
    'grant itself the vote that makes a branch ours',
    ({ roles }) => `grant execute on function once.vote(uuid, uuid, text, uuid) to ${roles.hostile}`,
    '42501',
  ],
  [
    'revoke the vote of the application',
    ({ roles }) => `revoke execute on function once.vote(uuid, uuid, text, uuid) from ${roles.app}`,
    '42501',
  ],
  // Putting its own in the place of ours
  ['create a table in schema once', () => 'create table once.mine (n int)', '42501'],
  [
    'create a function in schema once',
    () => 'create function once.vote(text) returns int language sql return 1',
    '42501',
  ],
  [
    'create an operator in schema once',
    () => 'create operator once.= (function = int4eq, leftarg = int, rightarg = int)',
    '42501',
  ],
  ['create a domain in schema once', () => 'create domain once.date as pg_catalog.date', '42501'],
  [
    'create a function in pg_catalog',
    () => 'create function pg_catalog.pg_xact_status(text) returns int language sql return 1',
    '42501',
  ],
  ['create a schema', () => 'create schema mine', '42501'],
  ['create a table in schema public', () => 'create table public.mine (n int)', '42501'],
  ['take over the schema', ({ roles }) => `alter schema once owner to ${roles.hostile}`, '42501'],
  ['drop the schema', () => 'drop schema once cascade', '42501'],
  ['rename the schema', () => 'alter schema once rename to twice', '42501'],
  ['change a function', () => 'alter function once.vote(uuid, uuid, text, uuid) security definer', '42501'],
  [
    'attach a trigger to the ledger',
    () =>
      'create trigger x before update on once.producer for each row execute function suppress_redundant_updates_trigger()',
    '42501',
  ],
  [
    'attach a rule to the ledger',
    () => 'create rule x as on insert to once.message do instead nothing',
    '42501',
  ],
  [
    'hold evidence by a foreign key of a temporary table',
    () => 'create temp table mine (n text references once.producer)',
    '42501',
  ],
  ['inherit from a table of ours', () => 'create temp table mine () inherits (once.evidence)', '42501'],
  [
    'change the database’s settings',
    ({ branch }) => `alter database ${branch.name} set search_path = pg_temp`,
    '42501',
  ],
  [
    'change the application’s settings',
    ({ roles }) => `alter role ${roles.app} set search_path = pg_temp`,
    '42501',
  ],
  ['change the server’s settings', () => `alter system set max_prepared_transactions = 0`, '42501'],
  [
    'make the owner’s commits asynchronous',
    () => `alter role postgres set synchronous_commit = off`,
    '42501',
  ],
  ['install an extension', () => 'create extension postgres_fdw', '42501'],
  [
    'install an event trigger',
    () => 'create event trigger x on ddl_command_start execute function suppress_redundant_updates_trigger()',
    '42501',
  ],
  ['publish our tables', () => 'create publication x for table once.evidence', '42501'],
  // Learning
  ['read evidence', () => 'select * from once.evidence', '42501'],
  [
    'read it through a view of its own',
    () => 'create temp view mine as select * from once.evidence',
    '42501',
  ],
  ['read it through EXPLAIN', () => 'explain select * from once.evidence', '42501'],
  ['copy it out', () => 'copy once.evidence to stdout', '42501'],
  ['name one of our tables', () => `select 'once.evidence'::regclass`, '42501'],
  ['read a sequence of ours', () => 'select last_value from once.scope_scope_id_seq', '42501'],
  ['read a table’s file', () => `select pg_read_file('PG_VERSION')`, '42501'],
  ['run a program', () => `copy (select 1) to program 'true'`, '42501'],
  ['ask for a decision in a block of code', () => 'do $$ begin perform once.database_id(); end $$', '42501'],
  ['see the operator’s list', () => 'select * from once.in_doubt', '42501'],
  ['use the peer’s server', () => `select dblink_connect('x', 'peer')`, '42704'],
  // Holding us up
  ['lock the ledger', () => 'lock table once.producer in access share mode', '42501'],
  ['lock a catalog', () => 'lock table pg_catalog.pg_proc in share mode', '42501'],
  ['lock the rows of a catalog', () => 'select from pg_catalog.pg_namespace for share', '42501'],
  ['vacuum our tables away', () => 'truncate once.evidence', '42501'],
  ['rebuild our indexes', () => 'reindex table once.evidence', '42501'],
  ['cluster our tables', () => 'alter table once.evidence set unlogged', '42501'],
]

for (const [title, statement, code] of attempts) {
  test(`A login that may connect and nothing more cannot ${title}`, async (t) => {
    const a = await openSession(t, shared.branch.urlAs(shared.roles.hostile))
    if (/^lock/.test(statement(shared))) await a.sql`begin`
    await refused(t, a.rows(statement(shared)), code)
    t.deepEqual(await gidsIn(shared.branch), [shared.orphan.gid])
  })
}

test('A login that may connect and nothing more cannot finish a branch from another database', async (t) => {
  const { home, roles, orphan } = shared
  const a = await openSession(t, home.urlAs(roles.hostile))
  await refused(t, a.rows(`commit prepared '${orphan.gid}'`), '42501')
  await refused(t, a.rows(`rollback prepared '${orphan.gid}'`), '42501')
})

test('A login that may connect and nothing more learns nothing from statistics, sessions and catalogs', async (t) => {
  const a = await openSession(t, shared.branch.urlAs(shared.roles.hostile))
  t.deepEqual(await a.rows(`select * from pg_stats where schemaname = 'once'`), [])
  t.deepEqual(
    await a.rows(`select distinct query from pg_stat_activity where usename <> current_user and query <> ''`),
    [['<insufficient privilege>']],
  )
  t.deepEqual(await a.rows('select distinct umoptions from pg_user_mappings'), [[null]])
  t.deepEqual(await a.rows(`select * from information_schema.tables where table_schema = 'once'`), [])
})

test('Settings that a login forges for itself give it nothing', async (t) => {
  const { branch, roles, orphan } = shared
  const a = await openSession(t, branch.urlAs(roles.hostile))
  await a.rows(`set once.transaction = '${orphan.transactionId} ${roles.app}'`)
  await a.rows('set search_path = once, public')
  for (const call of [`vote('${orphan.transactionId}', '${randomUUID()}', 'x')`, 'database_id()'])
    await refused(t, a.rows(`select ${call}`), '42883')
  await refused(t, a.rows('select * from evidence'), '42P01')
})

test('Advisory locks that a login holds keep nobody waiting', async (t) => {
  const { branch, roles } = shared
  const a = await openSession(t, branch.urlAs(roles.hostile))
  await a.sql`begin`
  await a.rows('select pg_advisory_xact_lock(n) from generate_series(0, 500) n')
  const app = await openSession(t, branch.urlAs(roles.app))
  await app.rows(`set lock_timeout = '5s'`)
  t.is(await app.value(`select once.claim('advisory', 0)`), 'claimed')
  t.is(await app.value(`select status from once.claim_key('advisory', 'k', '2024-02-02')`), 'claimed')
  await a.sql`rollback`
})

// ---------------------------------------------------------------------------------------------------
// gids: anybody may prepare under any name

for (const where of ['the branch’s database', 'another database of the cluster'] as const) {
  test(`Whoever squats a gid in ${where} before it is prepared makes the transaction fail whole`, async (t) => {
    const { home, branch, roles } = await makeStage(t)
    await recover({ home, branch })
    // On a connection that we know little of the session can tell the transaction's id.
    const once = client<{ orders: Effects; billing: Effects }>(t, {
      orders: kyselyOnPg<Effects>(t, home.urlAs(roles.app)),
      billing: branch.urlAs(roles.app),
    })
    const own = await emptyDatabase(t)
    const squatter = where === 'the branch’s database' ? branch : own
    let gid = ''
    const failure = await t.throwsAsync(
      once.transaction(
        async (tx) => {
          await tx.orders.insertInto('effect').values({ id: 2 }).execute()
          await tx.billing.insertInto('effect').values({ id: 2 }).execute()
          // What a guess would have to hit: 122 random bits. It is told here.
          const id = await tx.orders
            .selectNoFrom((eb) => [
              eb.fn<string>('current_setting', [eb.val('once.transaction')]).as('mark'),
              eb.fn<string>('once.database_id', []).as('home'),
              eb.fn<string>('pg_current_xact_id', []).as('xid'),
            ])
            .executeTakeFirstOrThrow()
          gid = `once:1:${id.home}:${id.mark.slice(0, 36)}:${id.xid}:billing`
          await prepare(t, squatter.urlAs(roles.hostile), gid, 'select pg_current_xact_id()')
        },
        { home: 'orders', retries: 0 },
      ),
    )
    t.regex(String(failure?.message) + String((failure?.cause as Error)?.message), /already in use/)
    t.deepEqual([await home.effects(), await branch.effects()], [[], [1]])
    t.deepEqual(await gidsIn(squatter), [gid], 'and the squatter’s is left alone')
    const report = await recover({ home, branch })
    t.deepEqual([report.committed, report.rolledBack, report.losses, report.unfinished], [0, 0, [], []])
    t.deepEqual(await gidsIn(squatter), [gid])
  })
}

for (const outcome of ['committed', 'aborted'] as const) {
  test(`Copies of the gid of a transaction that ${outcome} neither decide for it nor are decided with it`, async (t) => {
    const stage = await makeStage(t, outcome)
    const { home, branch, roles, orphan } = stage
    const copies = [
      withParticipant(orphan.gid, 'other'),
      withXid(orphan.gid, '1152921504606846976'),
      withXid(orphan.gid, '3'),
      orphan.gid.toUpperCase().replace('ONCE', 'once'),
      ` ${orphan.gid}`,
      `${orphan.gid}\n`,
    ]
    for (const gid of copies)
      await prepare(t, branch.urlAs(roles.hostile), gid, 'select pg_current_xact_id()')
    const elsewhere = withParticipant(orphan.gid, 'elsewhere')
    await prepare(t, home.urlAs(roles.hostile), elsewhere, 'select pg_current_xact_id()')
    await refused(t, prepare(t, branch.urlAs(roles.hostile), orphan.gid, 'select 1'), '42710')

    const { committed, rolledBack, unfinished, losses } = await recover(stage, roles.recover)
    t.deepEqual(
      { committed, rolledBack, unfinished, losses },
      {
        committed: outcome === 'committed' ? 1 : 0,
        rolledBack: outcome === 'aborted' ? 1 : 0,
        unfinished: [],
        losses: [],
      },
    )
    t.deepEqual(await branch.effects(), outcome === 'committed' ? [1] : [])
    t.deepEqual(await gidsIn(branch), copies.toSorted())
    t.deepEqual(await gidsIn(home), [elsewhere])
    t.is((await rowsOf(branch.sql, 'select from once.resolve()')).length, 0)
    t.is((await rowsOf(branch.sql, 'select from once.in_doubt where not ours')).length, copies.length)
  })
}

test('Hundreds of prepared transactions of a stranger under our prefix keep nobody from recovering, nor for long', async (t) => {
  const stage = await makeStage(t)
  const { home, branch, roles, orphan } = stage
  await branch.sql`create extension dblink`
  await home.sql`create extension dblink`
  const id = () => `${randomUUID()}:${randomUUID()}`
  const odd = (n: number) =>
    [
      `once:1:${id()}:9999999999999999999:billing`,
      `once:1:${id()}:0:billing`,
      `once:1:${id()}:-1:${n}`,
      `once:2:${id()}:3:${n}`,
      `once:${':'.repeat(100)}${n}`,
      `once:1:${n}`,
      `once:1:'; drop schema once; --${n}`,
      `once:1:${id()}:3:${'x'.repeat(64)}`,
      `once:1:%s%I%L\\${n}`,
      `once:${'\u{1f600}'.repeat(40)}${n}`,
      `once:\u001b[2J\u009b\u202e${n}`,
    ][n % 11] as string
  for (let n = 0; n < 66; n += 1)
    await prepare(
      t,
      (n % 6 === 5 ? home : branch).urlAs(roles.hostile),
      odd(n),
      'select pg_current_xact_id()',
    )
  const before = [await gidsIn(home), (await gidsIn(branch)).filter((gid) => gid !== orphan.gid)]

  for (const role of ['recover', 'monitor', 'operator'] as const) {
    const a = await openSession(t, branch.urlAs(roles[role]))
    for (const view of [
      'branch',
      'in_doubt',
      ...(role === 'recover' ? [] : ['in_doubt_elsewhere']),
      'health',
    ]) {
      const began = performance.now()
      await t.notThrowsAsync(a.rows(`select * from once.${view}`), view)
      const took = performance.now() - began
      t.true(took < 5_000, `${view} took ${took} ms`)
    }
    t.deepEqual(await a.rows('select gid from once.in_doubt where ours'), [[orphan.gid]])
  }
  t.deepEqual(await rowsOf(branch.sql, 'select action, subject from once.recover()'), [
    ['committed', orphan.gid],
  ])
  const { unfinished, unreachable, losses, proven } = await recover(stage, roles.recover)
  t.deepEqual(
    { unfinished, unreachable, losses, proven },
    { unfinished: [], unreachable: [], losses: [], proven: 1 },
  )
  t.deepEqual([await gidsIn(home), await gidsIn(branch)], before, 'nothing of it was touched')

  const { stdout, exitCode } = await pgonceCli(['in-doubt', ...named({ home, branch })])
  t.is(exitCode, 0)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach the terminal
  t.notRegex(stdout, /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e]/)
  t.true(stdout.includes('\\u001b[2J\\u009b\\u202e'))
})

test('Whatever a gid looks like, it is taken apart without an error and in no time', async (t) => {
  const parts = [
    'once:',
    '1',
    ':',
    randomUUID(),
    '_',
    'citus_',
    'pg_gid_',
    '_sa_',
    '__pgdog_2pc_',
    '/',
    '=',
    '==',
  ]
  const fill = ['0', '9', 'A', '+', '-', 'f', 'é', '\n', '%', "'", '\\', ' ']
  const gids = [...parts, ''].flatMap((first) =>
    [...parts, ''].flatMap((second) =>
      fill.flatMap((filler) =>
        [1, 19, 40, 90, 180].map((n) =>
          `${first}${filler.repeat(n)}${second}${filler.repeat(n % 5)}`.slice(0, 199),
        ),
      ),
    ),
  )
  for (const format of ['1', '201', '-1', '2147483648'])
    for (const n of [0, 1, 2, 3, 4, 37, 38, 39, 180])
      for (const tail of ['', '!', '_', '=', '_=', '_A', '_AAA=', '_QQ==', '_AAAA_'])
        gids.push(`${format}_${'A'.repeat(n)}${tail}`)
  const began = performance.now()
  const rows = await shared.branch.sql`
    select manager from unnest(array(select jsonb_array_elements_text(${JSON.stringify(gids)}::text::jsonb))) g (gid), once.decode_gid(g.gid)`
  const took = performance.now() - began
  t.is(rows.length, gids.length)
  t.true(gids.length > 10_000)
  t.true(took / gids.length < 2, `${took / gids.length} ms each`)
  t.false(rows.some(({ manager }) => manager === 'pgonce'))
})

test('A stranger under the name of a branch that was forced does not keep its home from being heard', async (t) => {
  const { home, branch, roles, orphan } = await makeStage(t)
  const { id, xid, own } = (
    await branch.sql`select g.home as id, g.home_xid as xid, g.gid as own from once.branch g where g.ours`
  )[0] as Record<string, string>
  await branch.sql`insert into once.heuristic (gid, transaction_id, home, home_xid, participant, owner, outcome, reason)
    values (${String(own)}, ${orphan.transactionId}, ${String(id)}, ${String(xid)}, 'billing', ${roles.app}, 'rollback', 'gone')`
  await branch.sql.unsafe(`rollback prepared '${orphan.gid}'`)
  await prepare(t, branch.urlAs(roles.hostile), orphan.gid, 'select pg_current_xact_id()')
  await using once = pgonce<Record<string, object>>({ databases: { orders: home.url, billing: branch.url } })
  await once.recovery.audit()
  t.deepEqual(await rowsOf(branch.sql, 'select outcome from once.heuristics'), [['mixed']])
})

test('A role whose name is an attack is quoted in every line to type', async (t) => {
  const stage = await makeStage(t)
  const { home, branch, roles } = stage
  const name = `${randomName('evil')}"'; */ drop table effect; --\u001b[2J`
  const quoted = String(await oneValue(branch.sql, `select quote_ident('${name.replaceAll("'", "''")}')`))
  await branch.sql.unsafe(`create role ${quoted} login`)
  t.teardown(async () => {
    const never = { teardown: () => {} }
    for (const [{ url }, what] of [
      [home, 'owned by'],
      [branch, 'owned by'],
      [home, 'role'],
    ] as const) {
      const again = connect(never, url)
      await again.unsafe(`drop ${what} ${quoted}`)
      await again.end()
    }
  })
  for (const { sql } of [home, branch]) {
    await sql`select once.grant_app(${name})`
    await sql.unsafe(`grant insert on effect to ${quoted}; grant ${quoted} to ${roles.recover}`)
  }
  const sql = connect(t, branch.urlAs(name))
  await leaveOrphan(home, { sql }, 7)
  const recoverer = connect(t, branch.urlAs(roles.recover))
  const lines = await rowsOf(
    branch.sql,
    `select * from once.branch where ours and owner = '${name.replaceAll("'", "''")}'`,
  )
  t.is(lines.length, 1)
  // Resolving here needs the home's answer, which is in another database: recovery asks both.
  const { committed, unfinished } = await recover(stage, roles.recover)
  t.deepEqual({ committed, unfinished }, { committed: 2, unfinished: [] })
  t.deepEqual(await branch.effects(), [1, 7])

  const homeId = await oneValue(branch.sql, 'select once.database_id()')
  await sql.unsafe(`begin; select pg_current_xact_id()`)
  await sql.unsafe(`prepare transaction 'once:1:${homeId}:${randomUUID()}:3:here'`)
  const typed = await gexec(recoverer, 'select once.resolve()')
  t.is(typed.length, 3)
  t.deepEqual(await gidsIn(branch), [])
  t.deepEqual(await branch.effects(), [1, 7])
})

// ---------------------------------------------------------------------------------------------------
// An application against another

test('Evidence that was forged for somebody else’s transaction makes it roll back, never half commit', async (t) => {
  const { home, branch, roles } = await makeStage(t)
  await recover({ home, branch })
  const forger = await openSession(t, branch.urlAs(roles.app))
  const once = client<{ orders: Effects; billing: Effects }>(t, {
    orders: kyselyOnPg<Effects>(t, home.url),
    billing: branch.url,
  })
  await t.throwsAsync(
    once.transaction(
      async (tx) => {
        await tx.orders.insertInto('effect').values({ id: 2 }).execute()
        await tx.billing.insertInto('effect').values({ id: 2 }).execute()
        const { mark } = await tx.orders
          .selectNoFrom((eb) => eb.fn<string>('current_setting', [eb.val('once.transaction')]).as('mark'))
          .executeTakeFirstOrThrow()
        await forger.rows(`insert into once.evidence (transaction_id, home, participant)
          values ('${mark.slice(0, 36)}', '${randomUUID()}', 'billing')`)
      },
      { retries: 0 },
    ),
    { message: /evidence_pkey/ },
  )
  t.deepEqual([await home.effects(), await branch.effects()], [[], [1]])
  t.deepEqual(await gidsIn(branch), [])
})

test('Evidence for a branch that is prepared cannot be forged', async (t) => {
  const { branch, roles, orphan } = await makeStage(t)
  const forger = await openSession(t, branch.urlAs(roles.app))
  const forged = forger
    .rows(`insert into once.evidence (transaction_id, home, participant)
           values ('${orphan.transactionId}', '${randomUUID()}', 'x')`)
    .catch((error) => error.code)
  await untilBlocked(branch.sql, forger)
  t.true(await isPending(forged))
  t.deepEqual(await rowsOf(branch.sql, `select once.find_evidence('{${orphan.transactionId}}')`), [])
  await branch.sql.unsafe(`commit prepared '${orphan.gid}'`)
  t.is(await forged, '23505')
})

test('A decision that was forged for somebody else’s transaction is none', async (t) => {
  const { home, branch, roles } = await makeStage(t, 'aborted')
  const id = randomUUID()
  const forger = await openSession(t, home.urlAs(roles.app))
  const row = `insert into once.global_transaction (transaction_id, participants, database_ids) values ('${id}', '{}', '{}')`
  const a = await openSession(t, home.url)
  await a.sql`begin`
  await a.rows(`select set_config('once.transaction', '${id} ' || current_user, true)`)
  const xid = await a.value('select pg_current_xact_id()::text')
  await forger.rows(row)
  const homeId = await a.value('select once.database_id()')
  t.is(await forger.value(`select once.branch_outcome('${homeId}', '${id}', '${xid}')`), 'pending')
  await refused(
    t,
    a.rows(
      `select once.begin_global('${id}', '{b}', '{${await oneValue(branch.sql, 'select once.database_id()')}}')`,
    ),
    '23505',
  )
  await a.sql`rollback`
  t.is(await forger.value(`select once.branch_outcome('${homeId}', '${id}', '${xid}')`), 'aborted')
  t.is(await forger.value(`select once.outcome('${homeId}', '${id}', '${xid}')`), 'aborted')
})

test('A second vote of one branch is refused, and evidence from before is never taken for its own', async (t) => {
  const { branch, roles } = await makeStage(t)
  for (const [first, second] of [
    ['a', 'a'],
    ['a', 'b'],
  ]) {
    const id = randomUUID()
    const a = await openSession(t, branch.urlAs(roles.app))
    await a.sql`begin`
    await a.rows(`select set_config('once.transaction', '${id} ' || current_user, true)`)
    await a.rows('select pg_current_xact_id()')
    t.true(await a.value(`select once.vote('${id}', '${randomUUID()}', '${first}')`))
    await refused(t, a.rows(`select once.vote('${id}', '${randomUUID()}', '${second}')`), '23505')
    await a.sql`rollback`
  }
})

test('A decision and evidence with absurd names, and gids with absurd numbers, hold up nobody else’s recovery', async (t) => {
  const stage = await makeStage(t)
  const { home, branch, roles, orphan } = stage
  const participant = await oneValue(branch.sql, 'select once.database_id()')
  const a = await openSession(t, home.urlAs(roles.app))
  const b = await openSession(t, branch.urlAs(roles.app))
  const long = `(select string_agg(md5(n::text), ',') from generate_series(1, 1000) n)`
  for (const names of [`array[${long}]`, `array['a,b"\\{}']`, 'array[null]::text[]', `array['']`])
    await a.rows(`insert into once.global_transaction (transaction_id, participants, database_ids)
                  values (gen_random_uuid(), ${names}, array['${participant}']::uuid[])`)
  await a.rows(`insert into once.global_transaction (transaction_id, participants, database_ids)
                values (gen_random_uuid(), '{x}', array[null]::uuid[])`)
  await b.rows(`insert into once.evidence (transaction_id, home, participant)
                values (gen_random_uuid(), '${orphan.gid.split(':')[2]}', ${long})`)
  const odd = ['0', '1', '007', '4294967296', '9223372036854775807', '9999999999999999999']
  for (const xid of odd)
    await prepare(
      t,
      branch.urlAs(roles.app),
      withXid(orphan.gid, xid).replace(orphan.transactionId, randomUUID()),
      'select pg_current_xact_id()',
    )

  await using once = pgonce<Record<string, object>>({
    databases: { orders: home.urlAs(roles.recover), billing: branch.urlAs(roles.recover) },
  })
  const report = await once.recovery.run()
  t.deepEqual(
    [report.committed, report.rolledBack, report.unfinished, report.unreachable],
    [1, odd.length, [], []],
  )
  const [proven] =
    await home.sql`select proven_at from once.global_transaction where transaction_id = ${orphan.transactionId}`
  t.truthy(proven?.proven_at)
  t.is(report.losses.length, 4)
  t.is((await once.recovery.audit()).length, 1)
  t.deepEqual(await gidsIn(branch), [])
})

// ---------------------------------------------------------------------------------------------------
// What each role tries beyond its own

type Overreach = readonly [role: Role, title: string, statement: (stage: Stage) => string]

const overreach: readonly Overreach[] = [
  ['app', 'undo a claim by key', () => 'delete from once.message'],
  ['app', 'move a claim to another key', () => 'update once.message set digest = gen_random_uuid()'],
  ['app', 'delete a producer', () => 'delete from once.producer'],
  ['app', 'move a watermark as an operator', () => `select once.set_watermark('p', 5, 'x')`],
  ['app', 'move a position back as an operator', () => `select once.reset_position('g', 't', 0, 0, 'x')`],
  ['app', 'delete evidence', () => 'delete from once.evidence'],
  ['app', 'name another home in evidence', () => 'update once.evidence set home = gen_random_uuid()'],
  ['app', 'name another participant in evidence', () => `update once.evidence set participant = 'x'`],
  [
    'app',
    'delete evidence by the handshake',
    ({ orphan }) => `select once.delete_evidence('${randomUUID()}', '{${orphan.transactionId}}')`,
  ],
  ['app', 'delete a decision', () => 'delete from once.global_transaction'],
  ['app', 'change a decision', () => `update once.global_transaction set participants = '{}'`],
  ['app', 'mark a decision proven', () => 'update once.global_transaction set proven_at = now()'],
  [
    'app',
    'decide under another xid',
    () =>
      `insert into once.global_transaction (transaction_id, home_xid, participants, database_ids) values (gen_random_uuid(), '3', '{}', '{}')`,
  ],
  ['app', 'lock the ledger', () => 'lock table once.message in share mode'],
  ['app', 'hold up whoever expires keys', () => 'select from once.expiry for update'],
  ['app', 'hold up whoever records that it recovered', () => 'select from once.recovery for update'],
  ['app', 'force an outcome', ({ orphan }) => `select once.force('${orphan.gid}', 'rollback', 'x')`],
  ['app', 'see the losses', () => 'select * from once.loss'],
  ['recover', 'claim a message', () => `select once.claim('p', 9)`],
  ['recover', 'claim a key', () => `select once.claim_key('s', 'x')`],
  ['recover', 'read the ledger', () => 'select * from once.message'],
  ['recover', 'write to the ledger', () => `update once.producer set watermark = 99`],
  ['recover', 'move a position', () => `update once.consumer_position set "position" = 9`],
  ['recover', 'take a partition', () => `select once.take_partition('g', 't', 0)`],
  [
    'recover',
    'insert a decision',
    () =>
      `insert into once.global_transaction (transaction_id, participants, database_ids) values (gen_random_uuid(), '{}', '{}')`,
  ],
  [
    'recover',
    'insert evidence',
    () =>
      `insert into once.evidence (transaction_id, home, participant) values (gen_random_uuid(), gen_random_uuid(), 'x')`,
  ],
  ['recover', 'say who forced a branch', () => `update once.heuristic set forced_by = 'x'`],
  ['recover', 'force an outcome', ({ orphan }) => `select once.force('${orphan.gid}', 'rollback', 'x')`],
  ['recover', 'acknowledge a loss', () => 'update once.loss set acknowledged_at = now()'],
  ['recover', 'change the database id', () => 'update once.database set id = gen_random_uuid()'],
  [
    'recover',
    'name another peer',
    () => `insert into once.peer (database_id, server) values (gen_random_uuid(), 'peer')`,
  ],
  ['monitor', 'record a recovery that did not happen', () => `select once.stamp_recovery('x', true)`],
  ['monitor', 'write into the record of recoveries', () => `update once.recovery set recovered_at = now()`],
  ['monitor', 'mark decisions proven', () => `select once.mark_proven('{}')`],
  ['monitor', 'delete evidence', () => 'delete from once.evidence'],
  ['monitor', 'recover', () => 'select once.recover()'],
  ['monitor', 'expire keys', () => 'select once.expire()'],
  ['monitor', 'acknowledge a loss', () => `select once.acknowledge('${randomUUID()}', 'x')`],
  ['monitor', 'report the end of a partition', () => `select once.report_end('t', 0, 1)`],
  ['monitor', 'read results', () => 'select result from once.message'],
  ['operator', 'claim a message', () => `select once.claim('p', 9)`],
  [
    'operator',
    'insert a decision',
    () =>
      `insert into once.global_transaction (transaction_id, participants, database_ids) values (gen_random_uuid(), '{}', '{}')`,
  ],
  [
    'operator',
    'insert evidence',
    () =>
      `insert into once.evidence (transaction_id, home, participant) values (gen_random_uuid(), gen_random_uuid(), 'x')`,
  ],
  [
    'operator',
    'intervene in another’s name',
    () => `insert into once.intervention (login, action, subject, reason) values ('x', 'x', '{}', 'x')`,
  ],
  [
    'operator',
    'intervene at another time',
    () =>
      `insert into once.intervention (happened_at, action, subject, reason) values ('2000-01-01', 'x', '{}', 'x')`,
  ],
  ['operator', 'take an intervention back', () => 'delete from once.intervention'],
  ['operator', 'change an intervention', () => `update once.intervention set reason = 'x'`],
  ['operator', 'force in another’s name', () => `update once.heuristic set forced_by = 'x'`],
  ['operator', 'take a forced outcome back', () => 'delete from once.heuristic'],
  ['operator', 'take a loss back', () => 'delete from once.loss'],
  ['operator', 'change the database id', () => `select once.renew_database_id('x')`],
  ['operator', 'grant', ({ roles }) => `select once.grant_app('${roles.operator}')`],
]

const saidOf = {
  app: 'An application',
  recover: 'A recoverer',
  monitor: 'A monitor',
  operator: 'An operator',
  hostile: 'A login',
}

for (const [role, title, statement] of overreach) {
  test(`${saidOf[role]} cannot ${title}`, async (t) => {
    const a = await openSession(t, shared.branch.urlAs(shared.roles[role]))
    if (/^lock/.test(statement(shared))) await a.sql`begin`
    await refused(t, a.rows(statement(shared)), '42501')
  })
}

test('A recoverer’s own types and tables never run code with the rights of the ledger’s owner', async (t) => {
  const { branch, roles } = await makeStage(t)
  await branch.sql.unsafe(`select once.claim_key('s', 'k', '2024-01-01'); select once.claim_key('s', 'k');
    update once.message set claimed_on = '2024-01-01' where claimed_on is not null;
    select once.set_retention('s', '1 day')`)
  const a = await openSession(t, branch.urlAs(roles.recover))
  await a.sql.unsafe(`
    create temp table seen (who name);
    create function pg_temp.trap(anyelement) returns boolean language plpgsql as $$
    begin
      insert into pg_temp.seen values (current_user);
      return true;
    end $$;
    create function pg_temp.now() returns timestamptz language sql as $$ select pg_temp.trap(1); select '1999-01-01'::timestamptz $$;
    create function pg_temp.to_char(date, text) returns text language sql as $$ select pg_temp.trap(1); select 'x' $$;
    create function pg_temp.equal(date, date) returns boolean language sql as $$ select pg_temp.trap(1) $$;
    create operator pg_temp.< (function = pg_temp.equal, leftarg = date, rightarg = date)`)
  for (const type of [
    'date',
    'text',
    'uuid',
    'xid',
    'tid',
    'regclass',
    'int8',
    'bool',
    'timestamptz',
    'interval',
    'oid',
  ])
    await a.sql.unsafe(`create domain pg_temp."${type}" as pg_catalog."${type}" check (pg_temp.trap(value))`)
  for (const relation of [
    'pg_locks',
    'pg_stat_activity',
    'pg_database',
    'scope',
    'message',
    'expiry',
    'expired_claim',
  ])
    await a.sql.unsafe(`create view pg_temp.${relation} as select pg_temp.trap(1)`)
  await a.sql.unsafe('set search_path = pg_temp, pg_catalog')
  const steps = []
  for (let call = 0; call < 3; call++)
    steps.push(...(await a.rows('select action, "more" from once.expire() where "more" or "count" > 0')))
  t.deepEqual(steps, [
    ['delete', true],
    ['delete', false],
  ])
  t.deepEqual(await a.rows('select who from pg_temp.seen where who operator(pg_catalog.<>) current_user'), [])
})

// ---------------------------------------------------------------------------------------------------
// And each can do its own

test('An application with grant_app alone, a recoverer and a monitor are enough for the whole of it', async (t) => {
  const stage = await makeStage(t)
  const { home, branch, roles, orphan } = stage
  const once = client<{ orders: Effects; billing: Effects }>(t, {
    orders: home.urlAs(roles.app),
    billing: branch.urlAs(roles.app),
  })
  const done = await once.process('orders', { producer: 'p', sequence: 0 }, async (trx, tx) => {
    await trx.insertInto('effect').values({ id: 3 }).execute()
    await tx.billing.insertInto('effect').values({ id: 3 }).execute()
  })
  t.is(done.status, 'processed')

  const watched = named({ orders: home.urlAs(roles.monitor), billing: branch.urlAs(roles.monitor) })
  const { branches } = JSON.parse((await pgonceCli(['in-doubt', '--json', ...watched])).stdout)
  t.deepEqual(
    branches.map(({ gid, outcome }: Record<string, unknown>) => [gid, outcome]),
    [[orphan.gid, 'committed']],
  )
  const metrics = await pgonceCli(['metrics', ...watched])
  t.is(metrics.exitCode, 0, metrics.stderr)
  t.regex(metrics.stdout, /in_doubt/)
  const doctor = await pgonceCli(['doctor', ...watched])
  t.notRegex(doctor.stdout + doctor.stderr, /permission denied/)

  const report = await recover(stage, roles.recover)
  t.deepEqual([report.committed, report.proven, report.unfinished, report.unreachable], [1, 2, [], []])
  t.deepEqual([await home.effects(), await branch.effects()], [[3], [1, 3]])
  await using recoverer = pgonce<Record<string, object>>({
    databases: { orders: home.urlAs(roles.recover), billing: branch.urlAs(roles.recover) },
  })
  t.is((await recoverer.recovery.run({ keep: 0 })).purged, 2)
  t.deepEqual(await recoverer.recovery.audit(), [])
})

test('An operator can see, force, hear the home again and acknowledge, and it is on record who it was', async (t) => {
  const stage = await makeStage(t)
  const { home, branch, roles, orphan } = stage
  const operator = connect(t, branch.urlAs(roles.operator))
  t.is(await oneValue(operator, 'select gid from once.in_doubt where ours and can_finish'), orphan.gid)
  const lines = await gexec(operator, `select once.force('${orphan.gid}', 'rollback', 'burnt down')`)
  t.is(lines.length, 3)
  await using once = pgonce<Record<string, object>>({
    databases: { orders: home.urlAs(roles.operator), billing: branch.urlAs(roles.operator) },
  })
  await once.recovery.run()
  await once.recovery.audit()
  t.deepEqual(await rowsOf(operator, 'select outcome, forced_by from once.heuristics'), [
    ['mixed', roles.operator],
  ])
  t.is(await oneValue(operator, `select once.acknowledge('${orphan.transactionId}', 'repaired')`), '1')
  t.deepEqual(await rowsOf(operator, 'select action, login from once.intervention order by 1'), [
    ['acknowledge', roles.operator],
    ['force', roles.operator],
  ])
  await t.notThrowsAsync(rowsOf(operator, 'select * from once.audit()'))
  await t.notThrowsAsync(rowsOf(operator, 'select * from once.health'))
})
