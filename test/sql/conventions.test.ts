import test from 'ava'
import { oneValue, rowsOf, sharedDatabase } from '../support/sql.ts'

const shared = sharedDatabase()

const functions = (condition: string) =>
  rowsOf(
    shared().sql,
    `select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'once'::regnamespace and (${condition}) order by 1`,
  )
const relations = (condition: string) =>
  rowsOf(
    shared().sql,
    `select c.relname from pg_class c
      where c.relnamespace = 'once'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
        and (${condition}) order by 1`,
  )

/** What runs with its owner's rights, and why is said in each file. */
const definers = [['once.expire(integer)']]
/** What those call. */
const ofDefiners = [['once.await_claims()'], ['once.delete_keys(integer)']]

test('There are functions and tables to look at', async (t) => {
  t.true((await functions('true')).length > 40)
  t.true((await relations('true')).length > 15)
})

test('Every function has a pinned search_path, but for the one that runs the caller’s statements', async (t) => {
  t.deepEqual(
    await functions(`not exists (select from unnest(p.proconfig) c where c like 'search\\_path=%')`),
    [['once.take_effect(text,text[])']],
  )
})

test('Only the known functions run with their owner’s rights, and those look for types in pg_temp last', async (t) => {
  t.deepEqual(await functions('p.prosecdef'), definers)
  t.deepEqual(
    await functions(`'search_path=pg_catalog, pg_temp' = any (p.proconfig)`),
    [...definers, ...ofDefiners].toSorted(),
  )
  t.deepEqual(await functions(`'search_path=""' <> all (p.proconfig) and not p.prosecdef`), ofDefiners)
})

test('Every function, table and view has a comment of one sentence', async (t) => {
  const sentence = `~ '^[[:upper:]][^\n]{20,}$'`
  t.deepEqual(await functions(`obj_description(p.oid, 'pg_proc') ${sentence} is not true`), [])
  t.deepEqual(
    await relations(`c.relkind <> 'S' and obj_description(c.oid, 'pg_class') ${sentence} is not true`),
    [],
  )
})

test('Every table has a primary key, so that publications of all tables let claims and retention go on', async (t) => {
  t.deepEqual(
    await relations(
      `c.relkind in ('r', 'p') and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)`,
    ),
    [],
  )
})

test('The schema is ASCII, so that it installs in a database of any encoding', async (t) => {
  const { readdir, readFile } = await import('node:fs/promises')
  const root = new URL('../../sql/', import.meta.url)
  for (const path of (await readdir(root, { recursive: true })).filter((name) => name.endsWith('.sql'))) {
    const lines = (await readFile(new URL(path, root), 'utf8')).split('\n')
    t.deepEqual(
      lines.filter((line) => !/^[\x20-\x7e]*$/.test(line)),
      [],
      path,
    )
  }
})

test('Nothing is open to PUBLIC, and nobody has been granted anything by the installation', async (t) => {
  t.deepEqual(
    await functions(
      `exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee <> p.proowner)`,
    ),
    [],
  )
  t.deepEqual(
    await relations(`exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner)`),
    [],
  )
  t.is(
    await oneValue(
      shared().sql,
      `select count(*)::int from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'once' and a.grantee <> n.nspowner`,
    ),
    0,
  )
})

test('Every parameter is named, and no two functions share a name', async (t) => {
  t.deepEqual(await functions(`p.pronargs > 0 and (p.proargnames is null or '' = any (p.proargnames))`), [])
  t.deepEqual(
    await rowsOf(
      shared().sql,
      `select proname from pg_proc where pronamespace = 'once'::regnamespace group by 1 having count(*) > 1`,
    ),
    [],
  )
})

test('A function that writes, or whose answer must be newer than the statement, is volatile', async (t) => {
  const mustBe =
    'insert into|update once|delete from|set_config|pg_xact_status|assert_home|assert_primary|branch_outcomes?'
  t.true((await functions(`p.prosrc ~ '\\m(${mustBe})\\M'`)).length > 25)
  t.deepEqual(await functions(`p.provolatile <> 'v' and p.prosrc ~ '\\m(${mustBe})\\M'`), [])
})

test('Our errors have codes of class ON, each with a detail and a hint', async (t) => {
  const sources = await rowsOf(
    shared().sql,
    `select proname, prosrc from pg_proc where pronamespace = 'once'::regnamespace and prosrc ~ 'raise exception'`,
  )
  t.true(sources.length > 15)
  const known = /^ON[A-Z]{3}$/
  for (const [name, source] of sources) {
    for (const raise of String(source).split('raise exception').slice(1)) {
      const statement = raise.slice(0, raise.search(/;\s*\n/))
      t.regex(/errcode = '(\w+)'/.exec(statement)?.[1] ?? '', known, `${name}`)
      t.true(statement.includes('detail =') && statement.includes('hint ='), `${name}: ${statement}`)
    }
  }
})

test('No function raises to parse: nothing notifies, and nothing takes an advisory lock', async (t) => {
  t.deepEqual(
    await functions(`p.prosrc ~* 'pg_notify|advisory|\\mnotify\\M'`),
    [],
    'neither can be prepared safely',
  )
})

test('What is installed is exactly the files of sql/, one object a file', async (t) => {
  const { readdir, readFile } = await import('node:fs/promises')
  const root = new URL('../../sql/', import.meta.url)
  const included = [
    ...(await readFile(new URL('schema.sql', root), 'utf8')).matchAll(/^--!include (.+)$/gm),
  ].map(([, path]) => String(path))
  const present = (await readdir(root, { recursive: true })).filter(
    (path) => path.endsWith('.sql') && path !== 'schema.sql',
  )
  t.deepEqual(included.toSorted(), present.toSorted())
  const created = (
    await Promise.all(included.map(async (path) => readFile(new URL(path, root), 'utf8')))
  ).flatMap((text) =>
    [...text.matchAll(/^create (?:function|procedure) (once\.\w+)/gm)].map(([, name]) => [name]),
  )
  const names = await rowsOf(
    shared().sql,
    `select 'once.' || proname from pg_proc where pronamespace = 'once'::regnamespace`,
  )
  t.deepEqual(created.toSorted(), names.toSorted())
})
