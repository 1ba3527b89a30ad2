import test from 'ava'
import { pgonce } from '../../src/index.ts'
import { testDatabase } from '../support/database.ts'
import { leaveBehind } from '../support/orphan.ts'

interface Tables {
  readonly thing: { readonly id: number }
}

test("a gid that borrows a committed transaction's id, with another xid, does not decide for the real branch", async (t) => {
  const home = await testDatabase(t, { server: 'a' })
  const billing = await testDatabase(t, { server: 'b' })
  await billing.sql`create table thing (id int)`
  const { transactionId, gid } = await leaveBehind(
    home,
    { billing },
    {
      effect: 'insert into thing values (1)',
    },
  )
  const forged = gid.replace(/:\d+:billing$/, ':1152921504606846976:forged')
  t.true(forged.includes(transactionId))
  const stranger = await billing.sql.reserve()
  await stranger.unsafe('begin')
  await stranger.unsafe('insert into thing values (2)')
  await stranger.unsafe(`prepare transaction '${forged}'`)
  stranger.release()

  await using once = pgonce<{ orders: Tables; billing: Tables }>({
    databases: { orders: home.url, billing: billing.url },
  })
  const { committed, rolledBack, losses } = await once.recovery.run()
  t.deepEqual({ committed, rolledBack, losses }, { committed: 1, rolledBack: 1, losses: [] })
  t.deepEqual([...(await billing.sql`select id from thing`)], [{ id: 1 }])
})
