/** The table of codes in docs/api.md, the comments of the classes and what the sources raise are one. */
import { readdir, readFile } from 'node:fs/promises'
import test from 'ava'
import { fromSql, OutcomeUnknownError } from '../src/errors.ts'

/** Raised where a connection of our own is used after its end, which callers never hold. */
const internal = ['ENDED AbortedError']

const root = new URL('../', import.meta.url)
const read = (path: string) => readFile(new URL(path, root), 'utf8')

async function sources(folder: string, extension: string): Promise<string> {
  const files = await readdir(new URL(folder, root), { recursive: true })
  const texts = files.filter((file) => file.endsWith(extension)).map((file) => read(folder + file))
  return (await Promise.all(texts)).join('\n')
}

const codesIn = (text: string, quote: string) =>
  [...text.matchAll(new RegExp(`${quote}([A-Z][A-Z_]+)${quote}`, 'g'))].map(([, code]) => code ?? '')

const unique = (pairs: readonly string[]) => [...new Set(pairs)].sort()

const [typescript, sql, api] = await Promise.all([
  sources('src/', '.ts'),
  sources('sql/', '.sql'),
  read('docs/api.md'),
])

const table = [...api.matchAll(/^\| `([A-Z_]+)` \| `(\w+Error)` \|/gm)].map(([, code, name]) => ({
  code,
  name,
}))
const documented = table.map(({ code, name }) => `${code} ${name}`)

/** Where the client raises an error of ours, but those of XA, whose codes are X/Open's. */
const raises = [...typescript.matchAll(/new (\w+Error)\(\s*([^,()]*)/g)].flatMap(
  ([place, name = '', first = '']) =>
    new RegExp(`class ${name} extends PgonceError`).test(typescript) && name !== 'XaError'
      ? [{ place, name, codes: codesIn(first, "'") }]
      : [],
)

test('Every code that SQL or the client raises stands with its class in docs/api.md, and no other', (t) => {
  const byClient = raises.flatMap(({ name, codes }) => codes.map((code) => `${code} ${name}`))
  const bySql = [...sql.matchAll(/errcode = '(ON[A-Z]{3})'/g)].map(([, code]) => {
    const error = fromSql(Object.assign(new Error('raised'), { code })) as Error
    return `${code} ${error.name}`
  })
  const unknown = new OutcomeUnknownError(null, 'lost')
  const raised = unique([...byClient, ...bySql, `${unknown.code} ${unknown.name}`])
  t.deepEqual(
    raised.filter((pair) => !internal.includes(pair)),
    unique(documented),
  )
})

test('A code tells the class, and is written where it is raised', (t) => {
  t.deepEqual(
    table.map(({ code }) => code),
    [...new Set(table.map(({ code }) => code))],
    'a code has one class, and one row',
  )
  t.deepEqual(
    raises.filter(({ name, codes }) => codes.length === 0 && name !== OutcomeUnknownError.name),
    [],
  )
})

test('The comment of each class names its codes, and no other', async (t) => {
  const comments = (await read('src/errors.ts')).matchAll(
    /\/\*\*((?:[^*]|\*(?!\/))*)\*\/\nexport class (\w+) extends PgonceError/g,
  )
  const named = [...comments].flatMap(([, text = '', name]) =>
    codesIn(text, '`').map((code) => `${code} ${name}`),
  )
  t.deepEqual(unique(named), unique(documented.filter((pair) => !pair.endsWith(' EmbeddedServerError'))))
})
