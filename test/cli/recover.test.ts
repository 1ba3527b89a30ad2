import test from 'ava'
import type { BranchShown } from '../../src/cli/in-doubt.ts'
import type { RecoveryReport } from '../../src/recovery/report.ts'
import { named, pgonceCli, startCli } from '../support/cli.ts'
import { connect, type TestContext, type TestDatabase, testDatabase, testRole } from '../support/database.ts'
import { leaveBehind } from '../support/orphan.ts'

test('in-doubt shows each branch with the decision of its home, and the line that finishes it', async (t) => {
  const pair = await databases(t)
  const { orders, billing } = pair
  const committed = await leaveBehind(orders, { billing }, { effect: write(1) })
  const aborted = await leaveBehind(orders, { billing }, { outcome: 'aborted', effect: write(2) })
  const pending = await leaveBehind(orders, { billing }, { outcome: 'pending' })

  const { exitCode, branches } = await inDoubt(pair)
  t.is(exitCode, 0)
  const shown = (gid: string) => branches.find((branch) => branch.gid === gid)
  t.like(shown(committed.gid), {
    database: 'billing',
    homeName: 'orders',
    outcome: 'committed',
    ours: true,
    canFinish: true,
    transactionId: committed.transactionId,
    participant: 'billing',
    type: `commit prepared '${committed.gid}';`,
  })
  t.like(shown(aborted.gid), { outcome: 'aborted', type: `rollback prepared '${aborted.gid}';` })
  t.like(shown(pending.gid), { outcome: 'pending', type: null })

  const { stdout } = await pgonceCli(['in-doubt', ...named(pair)])
  t.regex(stdout, /^DATABASE +OUTCOME +AGE +OWNER +HOME +TRANSACTION$/m)
  t.regex(
    stdout,
    new RegExp(`^billing +committed +\\d+ s +postgres +orders +${committed.transactionId}$`, 'm'),
  )
  t.true(stdout.includes(`    → in billing: commit prepared '${committed.gid}';\n`))
  t.regex(stdout, /3 branches in doubt, 2 decided/)

  for (const { type } of branches) if (type !== null) await billing.sql.unsafe(type)
  await pending.endHome('rollback')
  t.deepEqual(await written(billing), [1])
  t.is((await recover(pair)).rolledBack, 1)
  t.deepEqual((await inDoubt(pair)).branches, [])
})

test('in-doubt without the home says which database to add', async (t) => {
  const { orders, billing } = await databases(t)
  await leaveBehind(orders, { billing })
  const { branches } = await inDoubt({ billing })
  const [{ id }] = await orders.sql<[{ id: string }]>`select id::text from once.database`
  t.like(branches[0], { outcome: 'unknown', homeName: null, home: id, type: null })
  t.regex(branches[0]?.reason ?? '', new RegExp(`${id}.*add the one`))
})

test('recover heals what is decided, once, and exits with 0', async (t) => {
  const pair = await databases(t)
  const { orders, billing } = pair
  const committed = await leaveBehind(orders, { billing }, { effect: write(1) })
  await leaveBehind(orders, { billing }, { outcome: 'aborted', effect: write(2) })
  const { exitCode, stdout } = await pgonceCli(['recover', ...named(pair)])
  t.is(exitCode, 0, stdout)
  t.true(stdout.includes(`billing: committed the branch of transaction ${committed.transactionId}\n`))
  t.regex(stdout, /^1 committed, 1 rolled back, 0 unfinished, 1 proven, 0 new losses in orders, billing\.$/m)
  t.deepEqual(await written(billing), [1])
  t.deepEqual((await inDoubt(pair)).branches, [])

  const again = await recover(pair, '--keep', '0')
  t.like(again, { exitCode: 0, committed: 0, rolledBack: 0, purged: 1, losses: [] })
  t.is((await orders.sql`select from once.global_transaction`).length, 0)
  t.is((await billing.sql`select from once.evidence`).length, 0)
})

test('recover leaves a branch alone whose home is not given, and exits with 1', async (t) => {
  const { orders, billing } = await databases(t)
  const { gid } = await leaveBehind(orders, { billing })
  const report = await recover({ billing })
  t.is(report.exitCode, 1)
  t.like(report.unfinished[0], { database: 'billing', gid })
  t.is((await inDoubt({ orders, billing })).branches.length, 1)
})

test("recover leaves a branch alone whose home's transaction still runs", async (t) => {
  const pair = await databases(t)
  const { endHome } = await leaveBehind(pair.orders, { billing: pair.billing }, { outcome: 'pending' })
  t.like(await recover(pair), { exitCode: 0, pending: 1, committed: 0, rolledBack: 0 })
  await endHome('commit')
  t.like(await recover(pair), { exitCode: 0, pending: 0, committed: 1 })
})

test('recover finds a lost branch by its audit, records it and exits with 1', async (t) => {
  const pair = await databases(t)
  const { gid, transactionId } = await leaveBehind(pair.orders, { billing: pair.billing })
  // What a failover to a replica does that lagged behind.
  await pair.billing.sql.unsafe(`rollback prepared '${gid}'`)
  const { exitCode, stdout } = await pgonceCli(['recover', ...named(pair)])
  t.is(exitCode, 1)
  t.regex(stdout, new RegExp(`LOSS \\(lost branch\\) of transaction ${transactionId}`))
  t.is((await pgonceCli(['doctor', ...named(pair)])).exitCode, 1)

  const evidence = await databases(t)
  const lost = await leaveBehind(evidence.orders, { billing: evidence.billing })
  await evidence.billing.sql.unsafe(`commit prepared '${lost.gid}'`)
  await evidence.orders.sql`delete from once.global_transaction`
  const report = await recover(evidence)
  t.is(report.exitCode, 1)
  t.like(report.losses[0], { kind: 'lost decision', transactionId: lost.transactionId })
})

test("a stranger's transaction with our prefix is shown as not ours, and never touched", async (t) => {
  const pair = await databases(t)
  const { billing } = pair
  const role = await testRole(t, billing)
  const stranger = connect(t, billing.urlAs(role))
  const [{ id }] = await pair.orders.sql<[{ id: string }]>`select id::text from once.database`
  // A perfect gid, whose home would call it aborted, but of a role that cannot leave evidence.
  const perfect = `once:1:${id}:00000000-0000-4000-8000-000000000000:3:billing`
  const odd = `once:\u001b[2K${role}`
  for (const gid of [perfect, odd]) {
    await stranger.unsafe('begin')
    await stranger.unsafe('select pg_current_xact_id()')
    await stranger.unsafe(`prepare transaction '${gid}'`)
  }
  t.like(await recover(pair), { exitCode: 0, committed: 0, rolledBack: 0, unfinished: [] })
  const { branches } = await inDoubt(pair)
  t.deepEqual(
    branches.map(({ gid, ours, outcome, type }) => ({ gid, ours, outcome, type })),
    [perfect, odd].map((gid) => ({ gid, ours: false, outcome: null, type: null })),
  )
  const { stdout } = await pgonceCli(['in-doubt', ...named(pair)])
  t.is(stdout.match(/^billing +not ours /gm)?.length, 2)
  t.false(stdout.includes('\u001b'))
  t.regex(stdout, /0 branches in doubt, 0 decided; 2 not ours, left alone\./)
})

test('a recoverer that is no member of the owner says so and exits with 1; as a member it heals', async (t) => {
  const pair = await databases(t)
  const app = await testRole(t, pair.billing)
  await pair.billing.sql`select once.grant_app(${app})`
  const roles = { orders: await testRole(t, pair.orders), billing: await testRole(t, pair.billing) }
  await pair.orders.sql`select once.grant_recover(${roles.orders})`
  await pair.billing.sql`select once.grant_recover(${roles.billing})`
  const urls = { orders: pair.orders.urlAs(roles.orders), billing: pair.billing.urlAs(roles.billing) }
  const { gid } = await leaveBehind(pair.orders, { billing: { sql: connect(t, pair.billing.urlAs(app)) } })

  const refused = await pgonceCli(['recover', ...named(urls)])
  t.is(refused.exitCode, 1)
  t.regex(refused.stdout, new RegExp(`cannot finish once:.*only role ${app}`))
  t.like((await inDoubt(urls)).branches[0], { gid, canFinish: false, outcome: 'committed' })

  await pair.billing.sql.unsafe(`grant ${app} to ${roles.billing}`)
  const { branches } = await inDoubt(urls)
  t.is(branches[0]?.type, `set role "${app}"; commit prepared '${gid}'; reset role;`)
  t.like(await recover(urls), { exitCode: 0, committed: 1 })
})

test('recover --watch heals what appears later, says so, and ends cleanly at Ctrl-C', async (t) => {
  const pair = await databases(t)
  const { orders, billing } = pair
  const watching = startCli(t, ['recover', '--watch', ...named(pair)])
  await watching.line(/watching orders, billing/)
  const { transactionId } = await leaveBehind(orders, { billing }, { effect: write(7) })
  await watching.line(new RegExp(`billing: committed the branch of transaction ${transactionId}`))
  t.deepEqual(await written(billing), [7])
  const { exitCode, stdout, stderr } = await watching.stop('SIGINT')
  t.is(exitCode, 0)
  t.regex(stdout, /stopped; 1 committed, 0 rolled back$/)
  t.is(stderr, '')
})

test('recover --watch --json prints an object a line, a trouble once, and goes on through it', async (t) => {
  const pair = await databases(t)
  const { gid, endHome } = await leaveBehind(pair.orders, { billing: pair.billing }, { outcome: 'pending' })
  const watching = startCli(t, ['recover', '--watch', '--json', ...named({ billing: pair.billing })])
  await watching.line(/"unfinished":\[\{/)
  await pair.billing.sql.unsafe(`rollback prepared '${gid}'`)
  await endHome('rollback')
  await watching.line(/"unfinished":\[\]/)
  const { exitCode } = await watching.stop('SIGTERM')
  t.is(exitCode, 0)
  t.deepEqual(
    watching.lines.map((line) => (JSON.parse(line) as RecoveryReport).unfinished.length),
    [1, 0],
  )
})

async function databases(t: TestContext) {
  const [orders, billing] = [await testDatabase(t), await testDatabase(t, { server: 'b' })]
  await billing.sql`create table effect (n int)`
  return { orders, billing }
}

function write(n: number): string {
  return `insert into effect values (${n})`
}

async function written({ sql }: TestDatabase): Promise<number[]> {
  return (await sql<{ n: number }[]>`select n from effect order by n`).map(({ n }) => n)
}

type Databases = Readonly<Record<string, string | TestDatabase>>

async function inDoubt(given: Databases) {
  const { exitCode, stdout, stderr } = await pgonceCli(['in-doubt', '--json', ...named(given)])
  if (stderr !== '') throw new Error(stderr)
  return { exitCode, ...(JSON.parse(stdout) as { branches: BranchShown[] }) }
}

async function recover(given: Databases, ...args: string[]) {
  const { exitCode, stdout, stderr } = await pgonceCli(['recover', '--json', ...named(given), ...args])
  if (stderr !== '') throw new Error(stderr)
  return { exitCode, ...(JSON.parse(stdout) as RecoveryReport) }
}
