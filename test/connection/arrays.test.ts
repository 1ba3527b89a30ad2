import { once as nextEvent } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import test from 'ava'
import { sql } from 'kysely'
import { open } from '../../src/connection/target.ts'
import { codeOf } from '../../src/errors.ts'
import { emptyDatabase, type TestContext } from '../support/database.ts'

test('arrays arrive as arrays, in parameters and in results', async (t) => {
  const { url } = await emptyDatabase(t)
  const { db, close } = open(url)
  t.teardown(close)
  const texts = ['a,"b"', null, '', 'NULL', '\\', '{x}', 'ünï']
  const { rows } = await sql`
    select ${texts}::text[] as texts, ${[1, 2]}::int[] as numbers,
           ${[[1, 2], [3, 4]]}::int[] as nested,
           2 = any(${[1, 2]}) as found, '{1,2}'::int[] = ${'{1,2}'}::int[] as literal,
           array[1, null] as gap, '[0:1]={7,8}'::int[] as bounds, '{}'::int[] as empty, array[true] as booleans,
           array['2024-01-01T00:00:00Z'::timestamptz] as times, array['{"a": 1}'::jsonb] as documents,
           array[9007199254740993] as big, array['(1,2),(3,4)'::box, '(5,6),(7,8)'::box] as boxes`.execute(db)
  t.deepEqual(rows[0], {
    texts,
    numbers: [1, 2],
    nested: [
      [1, 2],
      [3, 4],
    ],
    found: true,
    literal: true,
    gap: [1, null],
    bounds: [7, 8],
    empty: [],
    booleans: [true],
    times: [new Date('2024-01-01T00:00:00Z')],
    documents: [{ a: 1 }],
    big: ['9007199254740993'],
    boxes: ['(3,4),(1,2)', '(7,8),(5,6)'],
  })
})

test('arrays of a type that the application made are known to every connection opened later', async (t) => {
  const { url } = await emptyDatabase(t)
  const first = open(url)
  t.teardown(first.close)
  await sql.raw("create type mood as enum ('glad', 'sad')").execute(first.db)
  const second = open(url)
  t.teardown(second.close)
  const { rows } = await sql`select ${['glad', 'sad']}::mood[] as moods`.execute(second.db)
  t.deepEqual(rows, [{ moods: ['glad', 'sad'] }])
})

// postgres.js's own `fetch_types` ends the process here: ava reports an unhandled rejection.
test('a connection that breaks while it is being opened is an error, and the next one is well', async (t) => {
  const { url } = await emptyDatabase(t)
  const { db, close } = open(await breaking(t, url, 'typarray', 1))
  t.teardown(close)
  const error = await t.throwsAsync(sql`select 1`.execute(db))
  t.regex(codeOf(error) ?? '', /^CONNECTION_|^ECONN/)
  t.deepEqual((await sql`select 1 as n`.execute(db)).rows, [{ n: 1 }])
})

/** The URL of a proxy that hangs up, so many times, on whoever sends this word. */
async function breaking(t: TestContext, url: string, word: string, times: number): Promise<string> {
  const target = new URL(url)
  const { hostname, port } = target
  let left = times
  const proxy = createServer((client) => {
    const server = connect(Number(port), hostname)
    client.on('data', (data) => {
      if (left > 0 && data.includes(word)) {
        left -= 1
        client.destroy()
        server.destroy()
      } else {
        server.write(data)
      }
    })
    server.on('data', (data) => client.write(data))
    server.on('close', () => client.destroy()).on('error', () => {})
    client.on('close', () => server.destroy()).on('error', () => {})
  })
  proxy.listen(0, '127.0.0.1')
  await nextEvent(proxy, 'listening')
  t.teardown(() => proxy.close())
  target.port = String((proxy.address() as AddressInfo).port)
  return target.href
}
