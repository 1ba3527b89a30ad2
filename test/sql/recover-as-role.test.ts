/**
 * once.recover() as hosted Postgres has it: by a role that is no superuser, over connections that ask for a password,
 * between two servers. It is set up by the lines of docs/operations.md.
 */
import test, { type ExecutionContext } from 'ava'
import type { EmbeddedServer } from '../../src/embedded/server.ts'
import { pgonce } from '../../src/index.ts'
import { connect, fileContext, ownServer } from '../support/database.ts'
import { runStatements } from '../support/documents.ts'
import {
  askForPasswords,
  blocksFor,
  type HostedDatabase,
  hostedDatabase,
  password,
} from '../support/hosted.ts'
import { leaveOrphan, type Outcome } from '../support/orphan.ts'
import { proxyTo } from '../support/proxy.ts'
import { oneValue, refused, rowsOf } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'

const shared = fileContext(test.after.always)
const servers: Record<'orders' | 'billing', EmbeddedServer> = {} as never
let orders: HostedDatabase
let billing: HostedDatabase

test.before('make two servers that ask for passwords', async (t) => {
  t.timeout(120_000)
  const [one, other] = await Promise.all([ownServer(shared), ownServer(shared)])
  Object.assign(servers, { orders: one, billing: other })
  for (const server of [one, other]) await askForPasswords(shared, server)
  orders = await hostedDatabase(shared, one, 'orders')
  billing = await hostedDatabase(shared, other, 'billing')
  const variables = new Map(
    Object.entries({
      password,
      orders_host: '127.0.0.1',
      orders_port: String(one.port),
      billing_host: '127.0.0.1',
      billing_port: String(other.port),
    }),
  )
  const play = async (place: HostedDatabase, role: string, blocks: Awaited<ReturnType<typeof blocksFor>>) => {
    const session = connect(shared, place.urlAs(role))
    for (const block of blocks)
      await runStatements(t as unknown as ExecutionContext, session, variables, block)
    await session.end()
  }
  const both = [orders, billing]
  for (const place of both) await play(place, 'admin', await blocksFor('hosted', 'server'))
  // First everywhere the servers, then everywhere the peers.
  for (const n of [0, 1]) {
    for (const place of both)
      await play(place, 'admin', (await blocksFor('hosted', place.name)).slice(n, n + 1))
  }
  for (const place of both) await play(place, 'recoverer', await blocksFor('hosted', 'recoverer'))
})

test.beforeEach('nothing is left of the test before', async () => {
  for (const { sql } of [orders, billing]) {
    for (const gid of (await rowsOf(sql, 'select gid from pg_prepared_xacts')).flat())
      await sql.unsafe(`rollback prepared '${gid}'`)
    await sql`truncate effect, once.global_transaction, once.evidence, once.loss`
  }
})

/** A branch in billing, or else where it is said, that the application's role owns. */
function leave(effect: number, outcome: Outcome = 'committed', home = orders, at = billing) {
  return leaveOrphan(home, { sql: at.shop }, effect, outcome)
}

const recoverIn = ({ urlAs }: HostedDatabase, t: ExecutionContext, keep = '10 minutes') =>
  rowsOf(
    connect(t, urlAs('recoverer')),
    `select action, subject, detail from once.recover('${keep}') order by 1, 2`,
  )

const inDoubt = async ({ sql }: HostedDatabase) =>
  (await rowsOf(sql, 'select gid from once.in_doubt')).flat().map(String).sort()

/** The two recoveries that must be interchangeable, both as the recoverer. */
const recoveries = {
  'once.recover()': async (t: ExecutionContext, keep = 600_000) => {
    for (const place of [billing, orders]) await recoverIn(place, t, `${keep} milliseconds`)
  },
  'once.recovery.run()': async (_: ExecutionContext, keep = 600_000) => {
    await using once = recoverer()
    await once.recovery.run({ keep })
  },
}

const recoverer = () =>
  pgonce<Record<string, object>>({
    databases: { orders: orders.urlAs('recoverer'), billing: billing.urlAs('recoverer') },
  })

for (const [name, recover] of Object.entries(recoveries)) {
  test.serial(
    `${name} by a role that is no superuser finishes, proves and purges between two servers`,
    async (t) => {
      await orders.sql`truncate effect`
      await leave(1, 'committed')
      await leave(2, 'aborted')
      const pending = await leave(3, 'pending')
      await leave(4, 'committed', billing, orders)
      await leave(5, 'committed', billing, billing)
      const foreign = `42_Zm9v_${Buffer.from(name).toString('base64')}`
      await prepare(t, billing.urlAs('shop'), foreign, 'insert into effect values (9)')
      await recover(t)
      t.deepEqual([await orders.effects(), await billing.effects()], [[4], [1, 5]])
      t.deepEqual(await inDoubt(billing), [foreign, pending.gid].sort())
      await pending.endHome('commit')
      await recover(t)
      await recover(t, 0)
      t.deepEqual(await billing.effects(), [1, 3, 5])
      t.deepEqual(await inDoubt(billing), [foreign], 'what is not ours stays')
      for (const { sql } of [orders, billing]) {
        for (const table of ['global_transaction', 'evidence', 'loss'])
          t.deepEqual(await rowsOf(sql, `select * from once.${table}`), [], table)
      }
      await billing.shop.unsafe(`rollback prepared '${foreign}'`)
    },
  )
}

test.serial(
  'The recoverer has the rights of an application only where it finishes a branch of its',
  async (t) => {
    const session = connect(t, billing.urlAs('recoverer'))
    await refused(t, rowsOf(session, 'select * from effect'), '42501')
    await refused(t, rowsOf(session, 'insert into effect values (1)'), '42501')
  },
)

test.serial('Nobody but the owner of the foreign servers can read the password', async (t) => {
  await billing.sql.unsafe(`create role bystander login password '${password}'`)
  const readable = `select count(*)::int from pg_user_mappings where umoptions is not null`
  for (const role of ['recoverer', 'shop', 'bystander']) {
    const session = connect(t, billing.urlAs(role))
    t.is(await oneValue(session, readable), 0, role)
    await refused(t, rowsOf(session, 'select * from pg_user_mapping'), '42501')
  }
  t.is(await oneValue(connect(t, billing.urlAs('admin')), readable), 2)
  t.false(JSON.stringify(await billing.sql`select * from once.peer`).includes(password))
  // And nobody can use what he was not granted.
  const session = connect(t, billing.urlAs('bystander'))
  await refused(t, rowsOf(session, `select dblink_connect('mine', 'orders')`), '42501')
})

test.serial(
  'A wrong password for one home is reported, and costs the branches of that home only',
  async (t) => {
    const stuck = [await leave(1, 'committed'), await leave(2, 'aborted')]
    await leave(3, 'committed', billing, billing)
    const mapping = (to: string) =>
      billing.sql.unsafe(`alter user mapping for public server orders options (set password '${to}')`)
    await mapping('wrong')
    const session = connect(t, billing.urlAs('recoverer'))
    for (const time of ['first', 'second']) {
      const rows = await rowsOf(session, 'select action, subject, detail from once.recover() order by 1, 2')
      const unfinished = rows.filter(([action]) => action === 'unfinished')
      t.deepEqual(unfinished.map(([, gid]) => gid).sort(), stuck.map(({ gid }) => gid).sort(), time)
      for (const [, , detail] of unfinished)
        t.regex(
          String(detail),
          /^no connection by foreign server orders: .*password authentication failed for user "recoverer"/,
        )
      for (const row of rows) t.false(JSON.stringify(row).includes(password))
    }
    t.deepEqual(await inDoubt(billing), stuck.map(({ gid }) => gid).sort(), 'nothing half-done')
    t.deepEqual(await billing.effects(), [3], 'the home that can be asked was')
    t.deepEqual(await rowsOf(session, 'select dblink_get_connections()'), [[null]])
    // An operator's hand gets no line either.
    t.deepEqual(await rowsOf(session, 'select * from once.resolve()'), [])

    // The same at the home: what it cannot prove it keeps.
    await mapping(password)
    await orders.sql.unsafe(`alter user mapping for public server billing options (set password 'wrong')`)
    t.deepEqual(
      (await recoverIn(billing, t)).map(([action]) => action),
      ['committed', 'rolled back'],
    )
    const [row] = await recoverIn(orders, t, '0')
    t.is(row?.[0], 'unreachable')
    t.regex(String(row?.[2]), /password authentication failed/)
    t.is(await oneValue(orders.sql, 'select count(*)::int from once.global_transaction'), 1)
    t.deepEqual(await rowsOf(orders.sql, 'select * from once.loss'), [])
    await orders.sql.unsafe(
      `alter user mapping for public server billing options (set password '${password}')`,
    )
    t.deepEqual((await recoverIn(orders, t, '0')).map(([action]) => action).sort(), ['proven', 'purged'])
    await recoverIn(billing, t, '0')
  },
)

test.serial('Without a way into its own database once.recover() says so and does nothing', async (t) => {
  const { gid } = await leave(11)
  const admin = connect(t, billing.urlAs('admin'))
  const recover = () => recoverIn(billing, t)
  const hint = ['create user mapping for', 'grant usage on foreign server billing to']
  await admin.unsafe(`alter user mapping for public server billing options (set password 'wrong')`)
  await refused(t, recover(), 'ONPER', 'password authentication failed', ...hint)
  await admin`drop user mapping for public server billing`
  await refused(t, recover(), 'ONPER', 'user mapping not found', ...hint)
  await admin.unsafe(`create user mapping for public server billing options (user 'recoverer')`)
  await refused(t, recover(), 'ONPER', 'must provide a password', ...hint)
  await admin.unsafe(`alter user mapping for public server billing options (add password '${password}')`)
  await admin`revoke usage on foreign server billing from recoverer`
  await refused(t, recover(), 'ONPER', 'permission denied for foreign server billing', ...hint)
  await admin`grant usage on foreign server billing to recoverer`
  await admin`alter server billing rename to gone`
  await refused(t, recover(), 'ONPER', 'there is no such server any more')
  await admin`alter server gone rename to billing`
  await admin`create table kept as select * from once.peer`
  await admin`delete from once.peer where server = 'billing'`
  await refused(t, recover(), 'ONPER', `select once.add_peer('server')`)
  await admin`insert into once.peer select * from kept where server = 'billing'`
  await admin`drop table kept`
  t.deepEqual(await inDoubt(billing), [gid])
  t.deepEqual(
    (await recover()).map(([action]) => action),
    ['committed'],
  )
})

test.serial(
  'A home that asks for no password is not spoken to, since the server itself would be let in',
  async (t) => {
    const { gid } = await leave(12)
    await billing.sql.unsafe(`alter user mapping for public server orders options (set user 'postgres')`)
    const [row] = await recoverIn(billing, t)
    t.is(row?.[0], 'unfinished')
    t.regex(String(row?.[2]), /Non-superuser.*password/)
    await billing.sql.unsafe(`alter user mapping for public server orders options (set user 'recoverer')`)
    t.deepEqual(
      (await recoverIn(billing, t)).map(([action]) => action),
      ['committed'],
    )
    t.deepEqual(await inDoubt(billing), [], gid)
  },
)

test.serial(
  'A branch of a role that the recoverer is no member of waits, and the report says what to grant',
  async (t) => {
    const { gid } = await leave(13, 'aborted')
    const admin = connect(t, billing.urlAs('admin'))
    await admin`revoke shop from recoverer`
    t.deepEqual(await recoverIn(billing, t), [
      ['unfinished', gid, 'only role shop may finish it; a superuser can: grant shop to recoverer'],
    ])
    await admin`grant shop to recoverer`
    t.deepEqual(await recoverIn(billing, t), [['rolled back', gid, null]])
  },
)

test.serial('A home that hangs holds up nobody else, and nobody for long', async (t) => {
  const { gid } = await leave(14)
  await leave(15, 'committed', billing, billing)
  const proxy = await proxyTo(t, orders.url)
  const admin = connect(t, billing.urlAs('admin'))
  const lead = (port: string, timeout: number) =>
    admin.unsafe(`alter server orders options (set port '${port}', set connect_timeout '${timeout}')`)
  const began = Date.now()
  await lead(new URL(proxy.url).port, 2)
  proxy.muteServer()
  const row = (await recoverIn(billing, t)).find(([action]) => action === 'unfinished')
  t.deepEqual([row?.[0], row?.[1]], ['unfinished', gid])
  t.regex(String(row?.[2]), /timeout expired|no answer in time/)
  t.true(Date.now() - began < 30_000)
  t.deepEqual(await billing.effects(), [15], 'the others are finished')
  await lead(new URL(orders.url).port, 5)
  t.deepEqual(
    (await recoverIn(billing, t)).map(([action]) => action),
    ['committed'],
  )
})

test.serial(
  'Two once.recover() at once race with the recovery in TypeScript, all as the recoverer',
  async (t) => {
    t.timeout(60_000)
    const expected: number[] = []
    for (let effect = 1; effect <= 18; effect++) {
      const committed = effect % 3 !== 0
      await leave(
        effect,
        committed ? 'committed' : 'aborted',
        ...(effect % 2 ? [] : ([billing, billing] as const)),
      )
      if (committed) expected.push(effect)
    }
    await using once = recoverer()
    const inside = async (place: HostedDatabase) => {
      for (let n = 0; n < 4; n++) await recoverIn(place, t, '0')
    }
    const outside = async () => {
      for (let n = 0; n < 4; n++) await once.recovery.run({ keep: 0 })
    }
    await Promise.all([inside(billing), inside(billing), inside(orders), outside()])
    await once.recovery.run({ keep: 0 })
    t.deepEqual(await billing.effects(), expected)
    for (const { sql } of [orders, billing]) {
      for (const relation of ['in_doubt', 'global_transaction', 'evidence', 'loss'])
        t.deepEqual(await rowsOf(sql, `select * from once.${relation}`), [], relation)
    }
  },
)
