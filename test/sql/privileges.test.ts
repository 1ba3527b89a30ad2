/** What the grants give, relation by relation and column by column: nothing gets wider unseen. */
import { readFile, writeFile } from 'node:fs/promises'
import test from 'ava'
import { testDatabase, testRole } from '../support/database.ts'
import { rowsOf } from '../support/sql.ts'

const file = new URL('privileges.txt', import.meta.url)

test('the grants give exactly what stands in privileges.txt, and no more when they are repeated', async (t) => {
  const database = await testDatabase(t)
  const lines: string[] = []
  for (const kind of ['app', 'recover', 'monitor', 'operator']) {
    const role = await testRole(t, database)
    for (let time = 0; time < 2; time += 1) await database.sql.unsafe(`select once.grant_${kind}('${role}')`)
    // As the server has it, not as once.privilege says.
    const granted = await rowsOf(
      database.sql,
      `with granted (relation, privilege) as (
         select c.relname, lower(a.privilege_type)
           from pg_class c, aclexplode(c.relacl) a
          where c.relnamespace = 'once'::regnamespace and a.grantee = '${role}'::regrole
         union all
         select c.relname, lower(a.privilege_type) || ' (' || string_agg(col.attname, ', ' order by col.attname) || ')'
           from pg_class c join pg_attribute col on col.attrelid = c.oid, aclexplode(col.attacl) a
          where c.relnamespace = 'once'::regnamespace and a.grantee = '${role}'::regrole
          group by c.relname, a.privilege_type)
       select relation, string_agg(privilege, ', ' order by privilege) from granted group by 1 order by 1`,
    )
    lines.push(...granted.map(([relation, privileges]) => `${kind} ${relation}: ${privileges}`))
  }
  if (process.env.PGONCE_UPDATE) await writeFile(file, `${lines.join('\n')}\n`)
  t.deepEqual(
    lines,
    (await readFile(file, 'utf8')).trimEnd().split('\n'),
    'if it is meant: PGONCE_UPDATE=1 npm test -- test/sql/privileges.test.ts, and look at every line of the difference',
  )
})

test('every row of once.privilege names something that is there', async (t) => {
  const { sql } = await testDatabase(t)
  t.deepEqual(
    await rowsOf(
      sql,
      `select p.kind, p.object from once.privilege p
        where case p.privileges when 'execute' then to_regproc('once.' || p.object)::oid
                                else to_regclass('once.' || p.object)::oid end is null`,
    ),
    [],
  )
})
