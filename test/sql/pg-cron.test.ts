/**
 * pg_cron heals with no other process at all, set up by the lines of docs/operations.md. The extension is in no npm
 * package, so this needs Debian's: apt-get install postgresql-15-cron.
 */
import { existsSync } from 'node:fs'
import test from 'ava'
import { startServer } from '../../src/embedded/server.ts'
import { connect } from '../support/database.ts'
import { runStatements } from '../support/documents.ts'
import { askForPasswords, blocksFor, hostedDatabase, password } from '../support/hosted.ts'
import { leaveOrphan } from '../support/orphan.ts'
import { oneValue, rowsOf } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'
import { until } from '../support/until.ts'

const binaries = '/usr/lib/postgresql/15'
const isThere = ['bin/postgres', 'lib/pg_cron.so'].every((file) => existsSync(`${binaries}/${file}`))
if (!isThere)
  console.warn(`Tests of pg_cron are skipped: ${binaries} has none: apt-get install postgresql-15-cron`)
const testCron = isThere ? test : test.skip

testCron('pg_cron alone heals what a dead coordinator left, as a role that is no superuser', async (t) => {
  // A tick comes every minute.
  t.timeout(240_000)
  const server = await startServer({
    binaries,
    settings: {
      fsync: 'off',
      max_prepared_transactions: 20,
      max_connections: 40,
      shared_preload_libraries: 'pg_cron',
      'cron.use_background_workers': 'on',
    },
  })
  t.teardown(() => server[Symbol.asyncDispose]())
  await askForPasswords(t, server)
  const places = [
    await hostedDatabase(t, server, 'orders'),
    await hostedDatabase(t, server, 'billing'),
  ] as const
  const [orders, billing] = places
  const variables = new Map([['password', password]])
  for (const { name } of places)
    variables.set(`${name}_host`, '127.0.0.1').set(`${name}_port`, String(server.port))
  const type = async (url: string, blocks: Awaited<ReturnType<typeof blocksFor>>) => {
    const session = connect(t, url)
    for (const block of blocks) await runStatements(t, session, variables, block)
    await session.end()
  }
  // One cluster has one of the role.
  await type(orders.urlAs('admin'), await blocksFor('hosted', 'server'))
  for (const n of [0, 1]) {
    for (const { name, urlAs } of places)
      await type(urlAs('admin'), (await blocksFor('hosted', name)).slice(n, n + 1))
  }

  const foreign = 'citus_0_4711_17_2'
  await prepare(t, billing.urlAs('shop'), foreign, 'insert into effect values (9)')
  await leaveOrphan(orders, { sql: billing.shop }, 1, 'committed')
  await leaveOrphan(orders, { sql: billing.shop }, 2, 'aborted')
  const pending = await leaveOrphan(orders, { sql: billing.shop }, 3, 'pending')

  const superuser = connect(t, server.url())
  await superuser`create extension pg_cron`
  const [schedule, look] = await blocksFor('pg-cron', 'postgres')
  t.truthy(look, 'two blocks: to schedule, and to look')
  await runStatements(t, superuser, variables, schedule as NonNullable<typeof schedule>)
  t.deepEqual(await rowsOf(superuser, 'select database, username, active from cron.job order by jobid'), [
    ['billing', 'recoverer', true],
    ['billing', 'recoverer', true],
  ])

  const inDoubt = async () => (await rowsOf(billing.sql, 'select gid from once.in_doubt')).flat().sort()
  const began = Date.now()
  while ((await inDoubt()).length > 2) {
    if (Date.now() - began > 150_000) break
    await new Promise((done) => setTimeout(done, 250))
  }
  const waited = Date.now() - began
  t.deepEqual(await inDoubt(), [foreign, pending.gid].sort(), 'what is foreign or not decided stays')
  t.deepEqual(await billing.effects(), [1])
  await until('the run is recorded', async () =>
    oneValue(
      superuser,
      `select count(*) > 0 from cron.job_run_details
        where status = 'succeeded' and command = 'select once.recover()' and username = 'recoverer'`,
    ),
  )
  t.deepEqual(await rowsOf(billing.sql, `select recovered_by from once.recovery`), [['once.recover()']])
  await runStatements(t, superuser, variables, look as NonNullable<typeof look>)
  await pending.endHome('rollback')
  t.log(
    `healed by pg_cron ${await oneValue(superuser, `select extversion from pg_extension where extname = 'pg_cron'`)} after ${Math.round(waited / 1000)} s`,
  )
})
