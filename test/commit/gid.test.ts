import { randomUUID } from 'node:crypto'
import test from 'ava'
import { formatGid, formatId, parseId } from '../../src/commit/gid.ts'
import { InvalidInputError } from '../../src/index.ts'

const global = {
  home: randomUUID(),
  transactionId: randomUUID(),
  homeXid: '18446744073709551615'.slice(0, 19),
}

test('An id says which home to ask for which transaction, and is read back as it was written', (t) => {
  const id = formatId(global)
  t.is(id, `once:1:${global.home}:${global.transactionId}:${global.homeXid}`)
  t.deepEqual(parseId(id), global)
})

test('A gid is the id with the participant, and fits into what Postgres takes', (t) => {
  const gid = formatGid(global, 'x'.repeat(63))
  t.true(gid.startsWith(`${formatId(global)}:x`))
  t.true(Buffer.byteLength(gid) < 200)
  t.regex(gid, /^[A-Za-z0-9:._-]+$/)
})

test('A participant that could not stand in a gid is refused', (t) => {
  for (const name of ['', 'a:b', "it's", 'é', 'x'.repeat(64), 'a b', 'a\0']) {
    t.throws(() => formatGid(global, name), { instanceOf: InvalidInputError, code: 'ONARG' })
  }
})

test('What is no id is refused, in a message of one line', (t) => {
  const id = formatId(global)
  for (const text of [
    '',
    'once',
    `${id} `,
    `${id}\n`,
    `x${id}`,
    id.toUpperCase(),
    id.replace(':1:', ':2:'),
    `${id}:b`,
    `${id}0123456789`,
    'x'.repeat(100_000),
  ]) {
    const error = t.throws(() => parseId(text), { instanceOf: InvalidInputError, code: 'ONARG' })
    t.true((error?.message.length ?? 0) < 200)
  }
})
