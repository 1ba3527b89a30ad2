/** docs/sql-reference.md says of every object of schema once what the catalog says. */
import { readdir, readFile } from 'node:fs/promises'
import test from 'ava'
import { testDatabase, testRole } from './support/database.ts'

const reference = await readFile(new URL('../docs/sql-reference.md', import.meta.url), 'utf8')

/** What stands below each heading `### once.name`. */
const sections = new Map(
  reference.split(/^(?=##)/m).flatMap((section) => {
    const [, name, text] = /^### once\.(\w+)\n+([\s\S]*)$/.exec(section) ?? []
    if (name === undefined || text === undefined) return []
    return [[name, text.split(/\n\n+/).map((paragraph) => paragraph.trim().replaceAll('\n', ' '))] as const]
  }),
)

test('the SQL reference has every function, with its signature, its comment and who may call it', async (t) => {
  const database = await testDatabase(t)
  const grants = ['app', 'recover', 'monitor', 'operator']
  const roles: string[] = []
  for (const grant of grants) {
    const role = await testRole(t, database)
    await database.sql.unsafe(`select once.grant_${grant}('${role}')`)
    roles.push(role)
  }
  const functions = await database.sql<
    { name: string; parameters: string; result: string | null; comment: string | null; may: boolean[] }[]
  >`
    select p.proname as name, pg_get_function_arguments(p.oid) as parameters, pg_get_function_result(p.oid) as result,
           obj_description(p.oid, 'pg_proc') as comment,
           array(select has_function_privilege(r, p.oid, 'execute') from unnest(${roles}::text[]) with ordinality u (r, n) order by n) as may
      from pg_proc p
     where p.pronamespace = 'once'::regnamespace
     order by 1`
  t.true(functions.length > 30)
  const internal = reference.indexOf('\n## Internal functions')
  const wrong = functions.flatMap(({ name, parameters, result, comment, may }) => {
    const who = grants.filter((_, index) => may[index]).join(', ') || 'owner'
    const expected = [`\`${signatureOf(name, parameters, result)}\``, comment]
    const [signature, described, ...rest] = sections.get(name) ?? []
    const isInternal = reference.indexOf(`### once.${name}\n`) > internal
    const isTrue =
      signature === expected[0] &&
      described === expected[1] &&
      (isInternal || rest.some((paragraph) => paragraph.endsWith(`Who: ${who}.`)))
    return isTrue ? [] : [`### once.${name}\n\n${expected.join('\n\n')}\n\nWho: ${who}.\n`]
  })
  t.deepEqual(wrong, [], 'correct these sections, or add them')
})

test('the SQL reference has every view and table, with its comment', async (t) => {
  const { sql } = await testDatabase(t)
  const relations = await sql<{ name: string; comment: string | null }[]>`
    select c.relname as name, obj_description(c.oid, 'pg_class') as comment
      from pg_class c
     where c.relnamespace = 'once'::regnamespace and c.relkind in ('r', 'p', 'v')
     order by 1`
  t.true(relations.length > 10)
  const wrong = relations.filter(({ name, comment }) => sections.get(name)?.[0] !== comment)
  t.deepEqual(
    wrong.map(({ name, comment }) => `### once.${name}\n\n${comment}\n`),
    [],
    'correct these sections, or add them',
  )
})

test('the SQL reference has nothing that does not exist', async (t) => {
  const { sql } = await testDatabase(t)
  const objects = await sql<{ name: string }[]>`
    select relname as name from pg_class where relnamespace = 'once'::regnamespace
    union select proname from pg_proc where pronamespace = 'once'::regnamespace`
  const names = new Set(objects.map(({ name }) => name))
  t.deepEqual(
    [...sections.keys()].filter((name) => !names.has(name)),
    [],
  )
})

test('the documented codes are those that SQL and the client raise', async (t) => {
  const unique = (text: string, pattern: RegExp) =>
    [...new Set([...text.matchAll(pattern)].map(([, code = '']) => code))].sort()
  const rows = (text: string) => unique(text, /^\| `([A-Z_]+)` \|/gm)

  const { sql } = await testDatabase(t)
  const functions = await sql<{ text: string }[]>`
    select prosrc as text from pg_proc where pronamespace = 'once'::regnamespace`
  const raised = unique(functions.map(({ text }) => text).join('\n'), /errcode = '(ON[A-Z]{3})'/g)
  t.deepEqual(rows(reference), raised)

  const base = new URL('../src/', import.meta.url)
  const files = (await readdir(base, { recursive: true })).filter((file) => file.endsWith('.ts'))
  const source = (await Promise.all(files.map((file) => readFile(new URL(file, base), 'utf8')))).join('\n')
  const thrown = unique(source, /new (?:\w+Error|Class)\(\s*'([A-Z][A-Z_]+)'/g)
  const api = await readFile(new URL('../docs/api.md', import.meta.url), 'utf8')
  // The codes of the XA interface are X/Open's own.
  t.deepEqual(
    [...new Set([...thrown, ...raised])].filter((code) => !/^XA/.test(code) && !rows(api).includes(code)),
    [],
  )
})

/** As the reference writes it: without quotes and casts, results last. */
function signatureOf(name: string, parameters: string, result: string | null): string {
  const plain = (text: string) =>
    text
      .replaceAll('timestamp with time zone', 'timestamptz')
      .replaceAll(/::[a-z ]+(\[\])?/g, '')
      .replaceAll('DEFAULT NULL', 'default null')
      .replaceAll(' DEFAULT ', ' default ')
      .replaceAll('"', '')
  // A procedure has no result.
  if (result === null) return `call once.${name}(${plain(parameters).replaceAll(/\bIN /g, '')})`
  const items = plain(parameters).split(', ')
  const inputs = items.filter((item) => !item.startsWith('OUT '))
  const outputs = items.filter((item) => item.startsWith('OUT ')).map((item) => item.slice(4))
  const answer =
    outputs.length > 1
      ? `(${outputs.join(', ')})`
      : (outputs[0] ?? plain(result).replace('TABLE(', 'setof (').replace('SETOF', 'setof'))
  return `once.${name}(${inputs.join(', ')}) → ${answer}`
}
