/**
 * The runbook in docs/operations.md, each of its situations made for real: servers that are killed, standbys that
 * are promoted, base backups that are restored. The SQL is read from the document; here is only what goes wrong,
 * and what must be true afterwards. Blocks without a situation run in docs.test.ts.
 */
import { execFile, spawnSync } from 'node:child_process'
import { chmod, chown, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import type postgres from 'postgres'
import { chosenVersion, packageOf } from '../proof/rig/postgres-version.ts'
import { type EmbeddedServer, type ServerSettings, startServer } from '../src/embedded/server.ts'
import { connect, installSchema, ownServer } from './support/database.ts'
import { type Block, blocksOf, runStatements, situationOf, statementsOf } from './support/documents.ts'
import { type LeftBehind, leaveBehind } from './support/orphan.ts'
import { type Link, oneValue, openSession, refused, rowsOf, untilBlocked } from './support/sql.ts'
import { prepare } from './support/strangers.ts'
import { until } from './support/until.ts'

const run = promisify(execFile)
const document = 'docs/operations.md'
const blocks = (await blocksOf(document)).filter((block) => situationOf(block) !== undefined)
const hasPsql = spawnSync('psql', ['--version'], { stdio: 'ignore' }).status === 0

/** At most one situation at a time: each has servers of its own. */
const situation = (name: string, title: string, play: (t: ExecutionContext, next: Next) => Promise<void>) => {
  situations.add(name)
  test.serial(`${name}: ${title}`, async (t) => {
    t.timeout(60_000)
    const own = blocks.filter((block) => situationOf(block) === name)
    let played = 0
    await play(t, (database) => {
      const block = own[played++]
      if (!block?.words.includes(database))
        throw new Error(`${name}: block ${played} is not for ${database}: ${block?.place}`)
      return block
    })
    t.is(played, own.length, 'every block was run')
  })
}

/** The situation's next block, which must be for this database. */
type Next = (database: string) => Block

const situations = new Set<string>()

test('Every situation of the runbook is made here', (t) => {
  const named = [...new Set(blocks.map((block) => situationOf(block) ?? ''))]
  t.deepEqual(named.sort(), [...situations, 'home-back', 'hosted', 'peers', 'pg-cron'].sort())
})

// ---------------------------------------------------------------------------------------------------
// Symptoms

situation(
  'newcomer',
  'psql and three statements heal all that is ours and touch nothing else',
  async (t, next) => {
    const block = next('billing')
    t.true(statementsOf(block.text).length <= 3)
    if (!hasPsql) {
      t.log('SKIPPED: no psql on this machine')
      t.pass()
      return
    }
    const { orders, billing } = await oneCluster(t)
    await billing.sql`create table invoice (n int)`
    await billing.sql`create extension dblink`
    await billing.sql`insert into account select 'customer ' || n, 0 from generate_series(1, 100) n`
    const committed = await leaveBehind(orders, { billing }, { effect: credit('ada') })
    await leaveBehind(
      orders,
      { billing },
      { outcome: 'aborted', effect: `lock table invoice in share mode; ${credit('bob', 2)}` },
    )
    // They hang: two for rows, one behind a lock on the table, and so does a vacuum.
    const waiting: Promise<unknown>[] = []
    const hang = async (statement: string) => {
      const session = await openSession(t, billing.url)
      waiting.push(session.rows(statement))
      await untilBlocked(orders.sql, session)
    }
    const dead = await openSession(t, billing.url)
    await dead.rows('create table heap (n int); insert into heap select generate_series(1, 100)')
    await dead.rows('delete from heap')
    await hang(`select cents from account where customer = 'ada' for update`)
    await hang(`select cents from account where customer = 'ada' for update`)
    await hang(`insert into invoice values (1)`)
    await hang('vacuum invoice')
    t.is((await vacuum(t, billing, 'heap')).stuck, 100)
    // Strangers: a Java program's, and Citus's.
    await billing.sql`create table elsewhere (n int)`
    const strangers = [`131077_${base64('order 17')}_${base64('billing')}`, 'citus_0_4711_17_2']
    for (const gid of strangers) await prepare(t, billing.url, gid, 'insert into elsewhere values (1)')
    const before = await rowsOf(
      billing.sql,
      'select gid, transaction::text, prepared from pg_prepared_xacts where gid !~ $$^once$$ order by gid',
    )

    const newcomer = run('psql', ['-X', '-v', 'ON_ERROR_STOP=1', '-d', billing.url])
    newcomer.child.stdin?.end(block.text)
    const { stdout } = await newcomer
    t.regex(stdout, /narayana \(pgjdbc\)/)
    t.regex(stdout, /citus/)
    t.regex(stdout, /COMMIT PREPARED\n[\s\S]*ROLLBACK PREPARED|ROLLBACK PREPARED\n[\s\S]*COMMIT PREPARED/)
    t.is(stdout.split('once:1:').length - 1, 2, 'ours show before, and not after')

    await Promise.all(waiting)
    t.deepEqual(await vacuum(t, billing, 'heap'), { removed: 100, stuck: 0 })
    t.deepEqual(await cents(billing), [
      ['ada', 1],
      ['bob', 0],
    ])
    t.deepEqual(await rowsOf(billing.sql, 'select transaction_id from once.evidence'), [
      [committed.transactionId],
    ])
    t.deepEqual(
      await rowsOf(
        billing.sql,
        'select gid, transaction::text, prepared from pg_prepared_xacts order by gid',
      ),
      before,
      'nothing foreign was touched',
    )
  },
)

situation('newcomer-why', 'what is left over says why', async (t, next) => {
  const { orders, billing } = await oneCluster(t)
  await billing.sql`create extension dblink`
  const pending = await leaveBehind(orders, { billing }, { outcome: 'pending' })
  const far = await place(t, await ownServer(t), 'far')
  await leaveBehind(far, { billing }, { effect: credit('ada') })
  await play(t, next('billing'), billing)
  t.is(await oneValue(orders.sql, 'select count(*)::int from pg_prepared_xacts'), 2)
  await pending.endHome('rollback')
})

situation(
  'vacuum-stuck',
  'dead rows go when what holds them back is finished, here and elsewhere',
  async (t, next) => {
    const { orders, billing, server } = await oneCluster(t)
    const shipping = await place(t, server, 'shipping')
    for (const { sql } of [billing, shipping]) await sql`create extension dblink`
    await leaveBehind(orders, { billing }, { effect: credit('ada') })
    await leaveBehind(orders, { shipping }, { outcome: 'aborted' })
    await billing.sql.unsafe('create table heap as select generate_series(1, 50) n')
    await billing.sql`delete from heap`
    t.is((await vacuum(t, billing, 'heap')).stuck, 50)
    await play(t, next('billing'), billing)
    await play(t, next('billing'), billing)
    // As in any database that is in use, somebody is reading.
    const whileReading = async () => {
      const reader = await openSession(t, billing.url)
      await reader.rows('begin isolation level repeatable read; select from account')
      const result = await vacuum(t, billing, 'heap')
      await reader.rows('rollback')
      return result
    }
    t.is((await whileReading()).stuck, 50, 'the other database holds it back too')
    await play(t, next('shipping'), shipping)
    t.deepEqual(await whileReading(), { removed: 50, stuck: 0 })
  },
)

situation('sessions-hang', 'they are shown with what they wait for, and go on', async (t, next) => {
  const { orders, billing } = await oneCluster(t)
  await billing.sql`create extension dblink`
  await leaveBehind(orders, { billing }, { effect: credit('ada') })
  const waiting: Promise<unknown>[] = []
  for (const n of [1, 2]) {
    const session = await openSession(t, billing.url)
    waiting.push(session.rows(`update account set cents = cents + ${n} where customer = 'ada'`))
    await untilBlocked(orders.sql, session)
  }
  await play(t, next('billing'), billing)
  await Promise.all(waiting)
  t.deepEqual((await cents(billing))[0], ['ada', 4])
})

situation(
  'pending',
  'a home transaction whose client is gone is ended, and then the branch is rolled back',
  async (t, next) => {
    const { orders, billing } = await oneCluster(t)
    await billing.sql`create extension dblink`
    const variables = new Map<string, string>()
    await leaveBehind(orders, { billing }, { outcome: 'pending', effect: credit('ada') })
    await play(t, next('billing'), billing, variables)
    t.is(variables.get('home'), String(await oneValue(orders.sql, 'select once.database_id()')))
    await play(t, next('orders'), orders, variables)
    await play(t, next('orders'), orders, variables)
    await until(
      'the session is gone',
      async () =>
        (await oneValue(
          orders.sql,
          `select count(*)::int from pg_stat_activity where backend_xid::text = '${variables.get('home_xid')}'`,
        )) === 0,
    )
    await play(t, next('billing'), billing, variables)
    t.deepEqual((await cents(billing))[0], ['ada', 0])
  },
)

situation('slots-full', 'what was left behind is finished, and there is room again', async (t, next) => {
  const { orders, billing, server } = await oneCluster(t, { max_prepared_transactions: 3 })
  await billing.sql`create extension dblink`
  for (const outcome of ['committed', 'aborted', 'committed'] as const)
    await leaveBehind(orders, { billing }, { outcome })
  await refused(t, prepare(t, billing.url, 'one too many', `insert into account values ('eve', 0)`), '53200')
  await play(t, next('billing'), billing)
  await play(t, next('billing'), billing)
  t.is(
    await oneValue(
      billing.sql,
      `select setting from pg_file_settings where name = 'max_prepared_transactions'`,
    ),
    '100',
  )
  await server.restart('fast', { max_prepared_transactions: 100 })
  t.is(await oneValue(billing.sql, 'show max_prepared_transactions'), '100')
})

situation(
  'no-start',
  'a server that was given too few slots starts with the old value and loses nothing',
  async (t, next) => {
    const { orders, billing, server } = await oneCluster(t, { max_prepared_transactions: 3 })
    await billing.sql`create extension dblink`
    await leaveBehind(orders, { billing }, { effect: credit('ada') })
    await leaveBehind(orders, { billing }, { outcome: 'aborted', effect: credit('bob', 2) })
    await leaveBehind(orders, { billing })
    for (const few of [2, 0]) {
      await server.stop('fast')
      await t.throwsAsync(server.start({ max_prepared_transactions: few }), {
        code: 'EMBEDDED_START',
        message: /maximum number of prepared transactions reached/,
      })
    }
    await server.start({ max_prepared_transactions: 3 })
    await play(t, next('billing'), billing)
    t.deepEqual(await cents(billing), [
      ['ada', 1],
      ['bob', 0],
    ])
    await server.restart('fast', { max_prepared_transactions: 0 })
    t.is(await oneValue(billing.sql, 'show max_prepared_transactions'), '0')
  },
)

// ---------------------------------------------------------------------------------------------------
// Disasters

situation(
  'home-lost',
  'a branch is forced with a record, and the home that comes back is compared',
  async (t, next) => {
    const { orders, billing, homeServer, server } = await twoServers(t)
    const shipping = await place(t, server, 'shipping')
    const { transactionId: id, gids } = await leaveBehind(
      orders,
      { billing, shipping },
      { effect: credit('ada') },
    )
    await shipping.sql.unsafe(`commit prepared '${gids.shipping}'`)
    await homeServer.stop('immediate')

    const variables = new Map<string, string>()
    await play(t, next('billing'), billing, variables)
    t.is(variables.get('transaction_id'), id)
    await play(t, next('shipping'), shipping, variables)
    await play(t, next('billing'), billing, variables)
    t.deepEqual((await cents(billing))[0], ['ada', 1])
    t.deepEqual(await rowsOf(billing.sql, 'select action, login from once.intervention'), [
      ['force', 'postgres'],
    ])

    await homeServer.start()
    await playNamed(t, 'home-back', 'billing', billing, variables)
    t.is(
      await oneValue(billing.sql, `select status from once.health where name = 'unacknowledged_heuristics'`),
      'ok',
    )
  },
)

situation(
  'participant-restored',
  'what a real base backup brings back and what it lacks is found',
  async (t, next) => {
    const { orders, billing, server } = await twoServers(t)
    const pay = (customer: string) =>
      leaveBehind(orders, { billing }, { effect: credit(customer, 'cents + 1') })
    const finish = ({ gid }: LeftBehind) => billing.sql.unsafe(`commit prepared '${gid}'`)
    const recover = (where: Place, keep = '10 minutes') =>
      rowsOf(where.sql, `select * from once.recover(keep => '${keep}')`)

    await finish(await pay('ada'))
    const variables = new Map<string, string>()
    const purged = await pay('ada')
    // In the backup, both are prepared.
    const cleared = await pay('bob')
    const backup = await baseBackup(t, server)
    await finish(purged)
    await recover(orders, '0')
    await finish(cleared)
    const proven = await pay('ada')
    await finish(proven)
    await recover(orders)
    const unproven = await pay('ada')
    await finish(unproven)
    t.deepEqual(await cents(billing), [
      ['ada', 4],
      ['bob', 1],
    ])

    await server.stop('immediate')
    await backup.start({ port: server.port })
    t.deepEqual(await cents(billing), [
      ['ada', 1],
      ['bob', 0],
    ])
    await play(t, next('billing'), billing, variables)
    t.is(variables.get('id'), purged.transactionId)
    await play(t, next('orders'), orders, variables)
    await play(t, next('billing'), billing, variables)
    await play(t, next('billing'), billing, variables)
    t.deepEqual(await cents(billing), [
      ['ada', 2],
      ['bob', 1],
    ])
    await play(t, next('orders'), orders, variables)
    t.deepEqual(
      (await rowsOf(orders.sql, 'select transaction_id from once.loss')).flat().sort(),
      [proven.transactionId, unproven.transactionId].sort(),
    )
    await play(t, next('orders'), orders, variables)
    t.deepEqual(
      await rowsOf(orders.sql, 'select transaction_id from once.loss where acknowledged_at is null'),
      [proven.transactionId, unproven.transactionId]
        .filter((id) => id !== variables.get('lost'))
        .map((id) => [id]),
    )
  },
)

situation(
  'standby-promoted',
  'a real standby that lacks a prepare is promoted, and the loss is found',
  async (t, next) => {
    const { orders, billing, server, standby } = await twoServers(t, { withStandby: true })
    await leaveBehind(orders, { billing }, { effect: credit('bob') })
    await caughtUp(billing, standby)
    // Cut off; the primary goes on and confirms.
    await standby.stop('fast')
    const effect = credit('ada')
    const { gids, transactionId: id } = await leaveBehind(orders, { billing }, { effect })
    await billing.sql.unsafe(`commit prepared '${gids.billing}'`)
    t.deepEqual((await cents(billing))[0], ['ada', 1], 'it was confirmed')
    await server.stop('immediate')
    await standby.start()
    const promoted = at(t, standby, 'billing')
    t.true(await oneValue(promoted.sql, 'select pg_promote()'))

    await play(t, next('billing'), promoted)
    t.deepEqual(await cents(promoted), [
      ['ada', 0],
      ['bob', 1],
    ])
    await play(t, next('orders'), orders)
    t.deepEqual(await rowsOf(orders.sql, 'select transaction_id, participant, kind from once.loss'), [
      [id, 'billing', 'lost branch'],
    ])
  },
)

situation('decision-lost', 'a real standby of the home that lacks decisions is promoted', async (t, next) => {
  const { orders, billing, homeServer, standby } = await twoServers(t, { withStandby: true, of: 'home' })
  await caughtUp(orders, standby)
  await standby.stop('fast')
  const lost = await leaveBehind(orders, { billing }, { effect: credit('ada') })
  await billing.sql.unsafe(`commit prepared '${lost.gids.billing}'`)
  await leaveBehind(orders, { billing }, { effect: credit('bob') })
  await homeServer.stop('immediate')
  await standby.start()
  t.true(await oneValue(at(t, standby, 'orders').sql, 'select pg_promote()'))

  const variables = new Map<string, string>()
  await play(t, next('billing'), billing, variables)
  t.is(variables.get('lost'), lost.transactionId)
  t.deepEqual(await cents(billing), [
    ['ada', 1],
    ['bob', 0],
  ])
  await play(t, next('billing'), billing, variables)
})

situation('switchover', 'nothing is lost, and what was in doubt moves along', async (t, next) => {
  const { orders, billing, server, standby } = await twoServers(t, { withStandby: true })
  const { transactionId: id, gids } = await leaveBehind(orders, { billing }, { effect: credit('ada') })
  await caughtUp(billing, standby)
  await play(t, next('billing'), billing)
  const variables = new Map([
    ['id', id],
    ['home', gids.billing?.split(':')[2] ?? ''],
    ['home_xid', gids.billing?.split(':')[4] ?? ''],
  ])
  const promoted = at(t, standby, 'billing')
  await play(t, next('standby'), promoted, variables)
  await server.stop('fast')
  await play(t, next('standby'), promoted, variables)
  await play(t, next('standby'), promoted, variables)
  t.deepEqual((await cents(promoted))[0], ['ada', 1])
  await play(t, next('orders'), orders)
})

test.serial('A standby with fewer slots than its primary does not start, as the runbook says', async (t) => {
  t.timeout(60_000)
  const server = await ownServer(t)
  const copy = await baseBackup(t, server)
  await t.throwsAsync(copy.start({ standbyOf: server.port, settings: { max_prepared_transactions: 10 } }), {
    message: /insufficient parameter settings/,
  })
})

// ---------------------------------------------------------------------------------------------------
// Places

interface Place {
  readonly name: string
  readonly url: string
  readonly sql: postgres.Sql
}

function at(t: ExecutionContext, server: EmbeddedServer, name: string): Place {
  const url = server.url(name)
  return { name, url, sql: connect(t, url, { max: 2, connect_timeout: 5 }) }
}

async function place(t: ExecutionContext, server: EmbeddedServer, name: string): Promise<Place> {
  const admin = connect(t, server.url())
  await admin.unsafe(`create database ${name}`)
  await installSchema(server.url(name))
  const made = at(t, server, name)
  await made.sql`create table account (customer text primary key, cents int not null)`
  await made.sql`insert into account values ('ada', 0), ('bob', 0)`
  return made
}

/** Home and participant in one cluster: they find each other by themselves. */
async function oneCluster(t: ExecutionContext, settings: ServerSettings = {}) {
  // Autovacuum would be prepared transactions' victim too; here vacuum comes when it is called.
  const server = await ownServer(t, { autovacuum: 'off', ...settings })
  return { server, orders: await place(t, server, 'orders'), billing: await place(t, server, 'billing') }
}

/** Home and participant on two servers, peers of each other as the runbook says; one may have a standby. */
async function twoServers(t: ExecutionContext, options: { withStandby?: boolean; of?: 'home' } = {}) {
  const [homeServer, server] = await Promise.all([
    ownServer(t, { autovacuum: 'off' }),
    ownServer(t, { autovacuum: 'off' }),
  ])
  const [orders, billing] = [await place(t, homeServer, 'orders'), await place(t, server, 'billing')]
  const followed = options.of === 'home' ? homeServer : server
  // Without one, its own primary stands in for it.
  const standby = options.withStandby
    ? await (await baseBackup(t, followed)).start({ standbyOf: followed.port })
    : followed
  const address = (primary: EmbeddedServer) => {
    const ports = [...new Set([primary.port, ...(primary === followed ? [standby.port] : [])])]
    return { host: ports.map(() => '127.0.0.1').join(), port: ports.join() }
  }
  const variables = new Map(
    Object.entries({
      orders_host: address(homeServer).host,
      orders_port: address(homeServer).port,
      billing_host: address(server).host,
      billing_port: address(server).port,
      user: 'postgres',
      password: 'not asked for',
    }),
  )
  await playNamed(t, 'peers', 'billing', billing, variables)
  await playNamed(t, 'peers', 'orders', orders, variables)
  return { orders, billing, homeServer, server, standby }
}

// ---------------------------------------------------------------------------------------------------
// Base backups and standbys

interface Backup {
  start(options: { port?: number; standbyOf?: number; settings?: ServerSettings }): Promise<EmbeddedServer>
}

/** A base backup of a running server, made as the documentation of Postgres says for those who have no pg_basebackup. */
async function baseBackup(t: ExecutionContext, server: EmbeddedServer): Promise<Backup> {
  const directory = await mkdtemp(join(dirname(server.directory), 'pgonce-backup-'))
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 3 }))
  await chmod(directory, 0o755)
  const data = join(directory, 'data')
  const session = connect(t, server.url())
  await session`select pg_backup_start('runbook', true)`
  await run('cp', ['-a', server.dataDirectory, data])
  const [{ labelfile = '' } = {}] = await session<
    { labelfile: string }[]
  >`select labelfile from pg_backup_stop(false)`
  await run('cp', ['-a', `${server.dataDirectory}/pg_wal/.`, join(data, 'pg_wal')])
  for (const file of ['postmaster.pid', 'postmaster.opts']) await rm(join(data, file), { force: true })
  const { uid, gid } = await stat(join(data, 'PG_VERSION'))
  const write = async (file: string, text: string) => {
    await writeFile(join(data, file), text)
    await chown(join(data, file), uid, gid)
  }
  await write('backup_label', labelfile)
  return {
    async start({ port, standbyOf, settings = {} }) {
      if (standbyOf !== undefined) await write('standby.signal', '')
      const copy = await startServer({
        package: packageOf(chosenVersion()),
        directory,
        ...(port === undefined ? {} : { port }),
        settings: {
          fsync: 'off',
          autovacuum: 'off',
          max_prepared_transactions: 20,
          max_connections: 40,
          ...(standbyOf === undefined
            ? {}
            : { primary_conninfo: `host=127.0.0.1 port=${standbyOf} user=postgres` }),
          ...settings,
        },
      })
      t.teardown(() => copy.stop('immediate'))
      return copy
    },
  }
}

async function caughtUp({ sql }: Place, standby: EmbeddedServer): Promise<void> {
  await until(`the standby on port ${standby.port} has everything`, () =>
    oneValue(
      sql,
      `select coalesce(bool_and(replay_lsn = pg_current_wal_lsn()), false) from pg_stat_replication where state = 'streaming'`,
    ),
  )
}

// ---------------------------------------------------------------------------------------------------
// Blocks

async function play(
  t: ExecutionContext,
  block: Block,
  { url }: Place,
  variables = new Map<string, string>(),
): Promise<void> {
  const session: Link = await openSession(t, url)
  await runStatements(t, session.sql, variables, block)
  await session.sql.end({ timeout: 1 })
}

/** All blocks of a situation that is a part of others, for one database. */
async function playNamed(
  t: ExecutionContext,
  name: string,
  database: string,
  where: Place,
  variables: Map<string, string>,
): Promise<void> {
  for (const block of blocks) {
    if (situationOf(block) === name && block.words.includes(database) && !isRecovery(block))
      await play(t, block, where, variables)
  }
}

/** A step that belongs after both peers are named. */
const isRecovery = ({ text }: Block) => text.includes('from once.recover()')

/** What a branch does to an account. */
const credit = (customer: string, cents: number | string = 1) =>
  `update account set cents = ${cents} where customer = '${customer}'`

const base64 = (text: string) => Buffer.from(text).toString('base64')

/** Balances of ada and bob. */
function cents({ sql }: Place): Promise<unknown[][]> {
  return rowsOf(sql, `select customer, cents from account where customer in ('ada', 'bob') order by customer`)
}

/** Vacuums a table as autovacuum would; how many dead rows went and stayed. */
async function vacuum(
  t: ExecutionContext,
  { url }: Place,
  table: string,
): Promise<{ removed: number; stuck: number }> {
  let said = ''
  const sql = connect(t, url, {
    onnotice: ({ message }) => {
      said += `${message}\n`
    },
  })
  await sql.unsafe(`vacuum (verbose) ${table}`)
  await sql.end({ timeout: 1 })
  const [, removed, stuck] =
    /tuples: (\d+) removed, \d+ remain, (\d+) are dead but not yet removable/.exec(said) ?? []
  return { removed: Number(removed), stuck: Number(stuck) }
}
