/**
 * What people do to servers without meaning harm. Each ends in a report that says what is wrong: of recovery, of
 * once.audit(), of once.health, of `pgonce doctor`; never in silence. Some more stand in runbook.test.ts, with what
 * the manual says to type.
 */
import { execFile } from 'node:child_process'
import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import type { Check } from '../src/cli/doctor.ts'
import type { EmbeddedServer } from '../src/embedded/server.ts'
import { DatabaseError, pgonce } from '../src/index.ts'
import { named, pgonceCli } from './support/cli.ts'
import { connect, installSchema, ownServer, type TestDatabase } from './support/database.ts'
import { type LeftBehind, leaveBehind } from './support/orphan.ts'
import { oneValue, rowsOf } from './support/sql.ts'

const run = promisify(execFile)

/** Each has servers of its own. */
const clumsiness = (title: string, play: (t: ExecutionContext) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(120_000)
    await play(t)
  })

// ---------------------------------------------------------------------------------------------------
// Branches finished the wrong way

clumsiness(
  'ROLLBACK PREPARED of a branch whose home has committed is reported as a lost branch, until somebody says what he did',
  async (t) => {
    const { orders, billing } = await oneCluster(t)
    const { transactionId, gid } = await pay(orders, billing, 'committed')
    await billing.sql.unsafe(`rollback prepared '${gid}'`)

    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.deepEqual(
      report.losses.map(({ kind, participant, transactionId: id }) => [kind, participant, id]),
      [['lost branch', 'billing', transactionId]],
    )
    const evening = await pay(orders, billing, 'committed')
    await billing.sql.unsafe(`rollback prepared '${evening.gid}'`)
    const cli = await pgonceCli(['recover', ...named({ orders, billing })])
    t.is(cli.exitCode, 1)
    t.regex(
      cli.stdout,
      new RegExp(`LOSS \\(lost branch\\) of transaction ${evening.transactionId}.*repair it by hand`),
    )
    await orders.sql`select once.acknowledge(${evening.transactionId}, 'paid by hand')`
    t.is(await health(orders, 'unacknowledged_losses'), 'critical')
    const [finding] = await audit(orders)
    t.is(finding?.finding, 'lost branch')
    t.true(finding?.to_do.includes(`once.acknowledge('${transactionId}'`))
    t.is(await doctorSays('orders', 'unacknowledged_losses', { orders, billing }), 'critical')

    await orders.sql`select once.acknowledge(${transactionId}, 'paid by hand')`
    t.is(await health(orders, 'unacknowledged_losses'), 'ok')
    t.deepEqual((await recover(orders, billing)).report.losses, [])
  },
)

clumsiness(
  'COMMIT PREPARED of a branch whose home has rolled back is reported as a lost decision',
  async (t) => {
    const { orders, billing } = await oneCluster(t)
    const { transactionId, gid } = await pay(orders, billing, 'aborted')
    await billing.sql.unsafe(`commit prepared '${gid}'`)
    await age(billing)
    t.deepEqual(
      (await audit(billing)).map(({ finding, transaction_id }) => [finding, transaction_id]),
      [['evidence without home row', transactionId]],
      'before recovery has looked',
    )
    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.deepEqual(
      report.losses.map(({ kind }) => kind),
      ['lost decision'],
    )
    t.is(await health(billing, 'unacknowledged_losses'), 'critical')
    t.is(await doctorSays('billing', 'unacknowledged_losses', { orders, billing }), 'critical')
    t.deepEqual(
      (await audit(billing)).map(({ finding }) => finding),
      ['lost decision'],
    )
  },
)

// ---------------------------------------------------------------------------------------------------
// Servers

clumsiness(
  'A server with too few slots for what is pending is down, and says so; with enough it heals',
  async (t) => {
    const { server, orders, billing } = await oneCluster(t, { max_prepared_transactions: 2 })
    await pay(orders, billing, 'committed')
    await pay(orders, billing, 'aborted')
    t.is(await doctorSays('billing', 'prepared_slots_used_ratio', { orders, billing }), 'critical', 'full')
    await server.stop('fast')
    await t.throwsAsync(server.start({ max_prepared_transactions: 1 }), {
      message: /maximum number of prepared transactions reached/,
    })
    t.is(await doctorSays('billing', 'reachable', { orders, billing }), 'critical')
    const down = await recover(orders, billing)
    t.true(down.trouble)
    t.deepEqual(down.report.unreachable.map(({ database }) => database).sort(), ['billing', 'orders'])

    await server.start({ max_prepared_transactions: 2 })
    const { report } = await recover(orders, billing)
    t.is(report.committed, 1)
    t.is(report.rolledBack, 1)
    t.deepEqual(report.unfinished, [])
  },
)

clumsiness(
  'A home that is restored from yesterday has lost decisions: what committed elsewhere is reported, what was in doubt is rolled back with it',
  async (t) => {
    const { homeServer, orders, billing } = await twoServers(t)
    await pay(orders, billing, 'committed')
    t.is((await recover(orders, billing)).report.proven, 1)
    const restore = await backUp(homeServer)
    const { transactionId } = await pay(orders, billing, 'committed')
    t.is((await recover(orders, billing)).report.committed, 1)
    const doubt = await pay(orders, billing, 'committed')
    await restore()

    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.is(report.rolledBack, 1, 'neither side has it now')
    t.false((await gids(billing)).includes(doubt.gid))
    t.deepEqual(
      report.losses.map(({ kind, transactionId: id }) => [kind, id]),
      [['lost decision', transactionId]],
    )
    t.is(await health(billing, 'unacknowledged_losses'), 'critical')
    t.is(await doctorSays('billing', 'unacknowledged_losses', { orders, billing }), 'critical')
    t.deepEqual(
      (await audit(billing)).map(({ finding }) => finding),
      ['lost decision'],
    )
  },
)

clumsiness(
  'A participant that is restored from yesterday has lost branches, and each is reported',
  async (t) => {
    const { server, orders, billing } = await twoServers(t)
    await pay(orders, billing, 'committed')
    t.is((await recover(orders, billing)).report.proven, 1)
    const early = await pay(orders, billing, 'committed')
    const restore = await backUp(server)
    const { transactionId } = await pay(orders, billing, 'committed')
    // Both are committed, and unproven still.
    for (const gid of await gids(billing)) await billing.sql.unsafe(`commit prepared '${gid}'`)
    await restore()

    t.deepEqual(await gids(billing), [early.gid], 'it was in the backup')
    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.is(report.committed, 1)
    t.deepEqual(
      report.losses.map(({ kind, transactionId: id }) => [kind, id]),
      [['lost branch', transactionId]],
    )
    t.is(await health(orders, 'unacknowledged_losses'), 'critical')
  },
)

// ---------------------------------------------------------------------------------------------------
// Roles

clumsiness(
  'A branch whose owner was dropped is finished by nobody, and everybody says why and what to type',
  async (t) => {
    const { server, orders, billing } = await oneCluster(t)
    await billing.sql.unsafe(
      `create role app login; select once.grant_app('app'); grant all on account to app`,
    )
    const asApp = connect(t, server.url('billing', 'app'))
    const { gid, transactionId } = await pay(orders, billing, 'committed', asApp)
    await asApp.end()
    await billing.sql.unsafe('drop owned by app; drop role app')

    t.deepEqual(await rowsOf(billing.sql, 'select owner, ours, outcome from once.in_doubt'), [
      [null, false, 'its owner was dropped: see once.audit()'],
    ])
    t.deepEqual(await rowsOf(billing.sql, 'select * from once.resolve()'), [])
    const [finding] = await audit(billing)
    t.is(finding?.finding, 'branch without an owner')
    t.is(finding?.transaction_id, transactionId)
    t.is(await doctorSays('billing', 'foreign_with_our_prefix', { orders, billing }), 'warn')
    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    const [left] = report.unfinished
    t.is(left?.gid, gid)
    const [line = ''] = /commit prepared '[^']*'$/.exec(left?.reason ?? '') ?? []
    t.regex(left?.reason ?? '', /owner was dropped, and its home says committed/)
    t.deepEqual(report.losses, [], 'it is prepared, so it is not lost')

    // As the report says, and as once.audit() says.
    t.is(await oneValue(orders.sql, `select once.gid_outcome('${gid}')`), 'committed')
    t.true(finding?.to_do.includes(line))
    await billing.sql.unsafe(line)
    t.is((await recover(orders, billing)).report.proven, 1)
    t.deepEqual(await audit(billing), [])
  },
)

clumsiness(
  'A branch whose owner has lost his rights is reported at its home as decided and not finished',
  async (t) => {
    const { server, orders, billing } = await oneCluster(t)
    await billing.sql.unsafe(
      `create role app login; select once.grant_app('app'); grant all on account to app`,
    )
    const asApp = connect(t, server.url('billing', 'app'))
    await pay(orders, billing, 'committed', asApp)
    await billing.sql.unsafe('revoke all on schema once from app')
    const { report } = await recover(orders, billing)
    t.is(report.committed, 0)
    t.is(await doctorSays('billing', 'foreign_with_our_prefix', { orders, billing }), 'warn')
    await age(orders)
    t.is(await health(orders, 'decided_unfinished_seconds'), 'critical')
    t.is(await health(orders, 'missing_evidence_seconds'), 'critical')
    await billing.sql`select once.grant_app('app')`
    t.is((await recover(orders, billing)).report.committed, 1)
  },
)

// ---------------------------------------------------------------------------------------------------
// Databases

clumsiness(
  'A copy of a database does not pass for the original: neither as a home nor in recovery, until it has a name of its own',
  async (t) => {
    const { server, orders, billing } = await oneCluster(t)
    const doubt = await pay(orders, billing, 'committed')
    await orders.sql.end({ timeout: 1 })
    const admin = connect(t, server.url())
    await admin`create database staging template orders`
    const staging = at(t, server, 'staging')

    const transact = async () => {
      await using once = pgonce<Record<string, { account: { customer: string; cents: number } }>>({
        databases: { staging: staging.url, billing: billing.url },
      })
      return await once.transaction(async (all) => {
        for (const name of ['staging', 'billing'])
          await all[name]?.insertInto('account').values({ customer: 'eve', cents: 1 }).execute()
      })
    }
    await t.throwsAsync(transact(), { instanceOf: DatabaseError, code: 'ONCPY', message: /is a copy/ })
    t.is(await doctorSays('staging', 'database id', { staging, billing }), 'critical')
    const { trouble, report } = await recover(staging, billing, 'staging')
    t.true(trouble)
    t.regex(report.unreachable[0]?.reason ?? '', /is a copy.*renew_database_id/s)
    t.regex(report.unfinished[0]?.reason ?? '', /its home .* is none of the databases that could be reached/)
    t.deepEqual(await gids(billing), [doubt.gid], 'the copy has decided nothing')

    await staging.sql`select once.renew_database_id('staging is a copy')`
    t.true((await transact()).finished)
    t.is((await recover(at(t, server, 'orders'), billing)).report.committed, 1)
  },
)

clumsiness(
  'A database that was renamed is missed by name; found again, it goes on where it was',
  async (t) => {
    const { server, orders, billing } = await oneCluster(t)
    await pay(orders, billing, 'committed')
    await pay(orders, billing, 'aborted')
    await orders.sql.end({ timeout: 1 })
    const admin = connect(t, server.url())
    await admin`alter database orders rename to shop`
    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.regex(report.unreachable[0]?.reason ?? '', /database "orders" does not exist/)
    t.is(report.unfinished.length, 2)
    t.is(await doctorSays('orders', 'reachable', { orders, billing }), 'critical')
    // Within the cluster it is found by its id; from outside by its new URL.
    t.is(
      await oneValue(
        billing.sql,
        `select count(*)::int from once.resolve() where statement like '%prepared%'`,
      ),
      2,
    )
    const shop = at(t, server, 'shop')
    const again = await recover(shop, billing, 'shop')
    t.false(again.trouble)
    t.is(again.report.committed + again.report.rolledBack, 2)
  },
)

clumsiness(
  'Names of databases may change or be swapped in the configuration while branches are in doubt',
  async (t) => {
    const { orders, billing } = await oneCluster(t)
    await pay(orders, billing, 'committed')
    await pay(billing, orders, 'committed')
    // What was `billing` is called `orders` from now on, and the reverse.
    const { trouble, report } = await recover(billing, orders)
    t.false(trouble)
    t.is(report.committed, 2)
    t.is(report.proven, 2)
    t.deepEqual(report.losses, [])
  },
)

clumsiness(
  'Dropping schema once in a home or a participant is reported by name, and installing it again brings no decision back',
  async (t) => {
    const { orders, billing } = await oneCluster(t)
    const { gid } = await pay(orders, billing, 'committed')
    await orders.sql`drop schema once cascade`
    const { trouble, report } = await recover(orders, billing)
    t.true(trouble)
    t.regex(report.unreachable[0]?.reason ?? '', /orders has no schema once.*migrate/s)
    t.regex(report.unfinished[0]?.reason ?? '', /its home .* is none of the databases that could be reached/)
    t.is(await doctorSays('orders', 'schema', { orders, billing }), 'critical')

    await installSchema(orders.url)
    const again = await recover(orders, billing)
    t.true(again.trouble)
    t.regex(again.report.unfinished[0]?.reason ?? '', /its home .* is none of the databases given/)
    t.deepEqual(await gids(billing), [gid], 'a new home knows nothing of it')
    const [finding] = await rowsOf(billing.sql, 'select outcome from once.in_doubt')
    t.regex(String(finding), /^unknown here: ask /)
  },
)

clumsiness('A table of schema once that was dropped is named by everybody who needs it', async (t) => {
  const { orders, billing } = await oneCluster(t)
  await pay(orders, billing, 'committed')
  t.is((await recover(orders, billing)).report.committed, 1)
  await billing.sql`drop table once.evidence cascade`
  const { trouble, report } = await recover(orders, billing)
  t.true(trouble)
  t.regex(JSON.stringify(report.unreachable), /once\.evidence.*does not exist/)
  t.not(await doctorSays('billing', 'answers', { orders, billing }), 'ok')
  await using once = pgonce<Record<string, { account: { customer: string; cents: number } }>>({
    databases: { orders: orders.url, billing: billing.url },
  })
  const error = await t.throwsAsync(
    once.transaction(async (all) => {
      for (const name of ['orders', 'billing'])
        await all[name]?.insertInto('account').values({ customer: 'eve', cents: 1 }).execute()
    }),
  )
  t.regex(error?.message ?? '', /once\.evidence/)
  t.deepEqual(await rowsOf(orders.sql, `select from account where customer = 'eve'`), [])
})

clumsiness(
  'Truncated evidence is reported as lost branches, and truncated decisions as lost decisions',
  async (t) => {
    const { orders, billing } = await oneCluster(t)
    const first = await pay(orders, billing, 'committed')
    await billing.sql.unsafe(`commit prepared '${first.gid}'`)
    await billing.sql`truncate once.evidence`
    const report = (await recover(orders, billing)).report
    t.deepEqual(
      report.losses.map(({ kind, transactionId }) => [kind, transactionId]),
      [['lost branch', first.transactionId]],
    )

    const second = await pay(orders, billing, 'committed')
    await billing.sql.unsafe(`commit prepared '${second.gid}'`)
    await orders.sql`truncate once.global_transaction`
    t.deepEqual(
      (await recover(orders, billing)).report.losses.map(({ kind, transactionId }) => [kind, transactionId]),
      [['lost decision', second.transactionId]],
    )
    t.is(await health(orders, 'unacknowledged_losses'), 'critical')
    t.is(await health(billing, 'unacknowledged_losses'), 'critical')
  },
)

// ---------------------------------------------------------------------------------------------------
// Places and branches

function at(t: ExecutionContext, server: EmbeddedServer, name: string): TestDatabase {
  const url = server.url(name)
  return {
    name,
    url,
    urlAs: (role) => server.url(name, role),
    sql: connect(t, url, { max: 3, connect_timeout: 5 }),
  }
}

async function place(t: ExecutionContext, server: EmbeddedServer, name: string): Promise<TestDatabase> {
  const admin = connect(t, server.url())
  await admin.unsafe(`create database ${name}`)
  await installSchema(server.url(name))
  const made = at(t, server, name)
  await made.sql`create table account (customer text, cents int not null)`
  await admin.end()
  return made
}

async function oneCluster(t: ExecutionContext, settings = {}) {
  const server = await ownServer(t, settings)
  const [orders, billing] = [await place(t, server, 'orders'), await place(t, server, 'billing')]
  // For once.audit(), which asks the other.
  for (const { sql } of [orders, billing]) await sql`create extension dblink`
  return { server, orders, billing }
}

async function twoServers(t: ExecutionContext) {
  const [homeServer, server] = await Promise.all([ownServer(t), ownServer(t)])
  const orders = await place(t, homeServer, 'orders')
  const billing = await place(t, server, 'billing')
  for (const { sql } of [orders, billing]) await sql`create extension dblink`
  const lead = async (from: TestDatabase, to: TestDatabase, { port }: EmbeddedServer) => {
    await from.sql.unsafe(`
      create server ${to.name} foreign data wrapper dblink_fdw options (host '127.0.0.1', port '${port}', dbname '${to.name}');
      create user mapping for postgres server ${to.name} options (user 'postgres', password 'not asked for');
      select once.add_peer('${to.name}')`)
  }
  await lead(orders, billing, server)
  await lead(billing, orders, homeServer)
  return { homeServer, server, orders, billing }
}

/** A branch in doubt that pays somebody something; its home is decided. */
function pay(
  home: TestDatabase,
  participant: TestDatabase,
  outcome: 'committed' | 'aborted',
  sql = participant.sql,
): Promise<LeftBehind> {
  return leaveBehind(
    home,
    { [participant.name]: { sql } },
    {
      outcome,
      effect: `insert into account values ('ada', 1)`,
    },
  )
}

async function gids({ sql }: TestDatabase): Promise<string[]> {
  return (
    await rowsOf(
      sql,
      'select gid from pg_prepared_xacts where database = current_database() order by prepared',
    )
  )
    .flat()
    .map(String)
}

/** A cold backup; what it returns restores it. */
async function backUp(server: EmbeddedServer): Promise<() => Promise<void>> {
  const copy = join(server.directory, 'yesterday')
  await server.stop('fast')
  await run('cp', ['-a', server.dataDirectory, copy])
  await server.start()
  return async () => {
    await server.stop('immediate')
    await rm(server.dataDirectory, { recursive: true, maxRetries: 3 })
    await rename(copy, server.dataDirectory)
    await server.start()
  }
}

/** Makes all that recovery may still be at older than anybody's patience. */
async function age({ sql }: TestDatabase): Promise<void> {
  await sql`update once.evidence set recorded_at = recorded_at - interval '1 hour'`
  await sql`update once.global_transaction set decided_at = decided_at - interval '1 hour'`
}

// ---------------------------------------------------------------------------------------------------
// Reports

/** Recovery looks once, and audits; whether anything is wrong, as in the exit code of `pgonce recover`. */
async function recover(orders: TestDatabase, billing: TestDatabase, name = 'orders') {
  await using once = pgonce<Record<string, object>>({
    databases: { [name]: orders.url, billing: billing.url },
    connectTimeout: 5_000,
  })
  const report = await once.recovery.run({ audit: true })
  const { unfinished, unreachable, losses } = report
  return { report, trouble: unfinished.length + unreachable.length + losses.length > 0 }
}

async function audit({
  sql,
}: TestDatabase): Promise<{ finding: string; transaction_id: string; to_do: string }[]> {
  return [
    ...(await sql<{ finding: string; transaction_id: string; to_do: string }[]>`select * from once.audit()`),
  ]
}

async function health({ sql }: TestDatabase, name: string): Promise<unknown> {
  return oneValue(sql, `select status from once.health where name = '${name}'`)
}

/** The status of a check of `pgonce doctor`. */
async function doctorSays(
  database: string,
  check: string,
  databases: Readonly<Record<string, TestDatabase>>,
): Promise<string | undefined> {
  const { stdout } = await pgonceCli(['doctor', '--json', ...named(databases)])
  const { checks } = JSON.parse(stdout) as { checks: Check[] }
  return checks.find((one) => one.database === database && one.check === check)?.status
}
