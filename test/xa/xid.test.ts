import test from 'ava'
import fc from 'fast-check'
import { formatXid, parseXid, XaError } from '../../src/xa/index.ts'
import { gidOf } from '../../src/xa/xid.ts'

const bytes = (minLength: number) => fc.uint8Array({ minLength, maxLength: 64 })
const xids = fc.record({
  formatId: fc.integer({ min: -0x80000000, max: 0x7fffffff }).filter((id) => id !== -1),
  gtrid: bytes(1),
  bqual: bytes(0),
})
/** Gids that look like an xid, and not quite. */
const almost = fc
  .tuple(
    fc.oneof(fc.integer().map(String), fc.stringMatching(/^[+-]?0?[0-9]{1,12}$/)),
    fc.stringMatching(/^[A-Za-z0-9+/=_ \n]{0,100}$/),
    fc.stringMatching(/^[A-Za-z0-9+/=_-]{0,100}$/),
  )
  .map((parts) => parts.join('_'))

test('An xid comes back from its gid as it was, and the gid fits', (t) => {
  fc.assert(
    fc.property(xids, (xid) => {
      const gid = formatXid(xid)
      t.true(gid.length <= 199)
      t.deepEqual(parseXid(gid), xid)
    }),
  )
})

test('Any gid comes back as it was, whether it reads as an xid or not', (t) => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: 'binary' }), almost), (gid) => {
      const parsed = parseXid(gid)
      t.is('gid' in parsed ? parsed.gid : formatXid(parsed), gid)
    }),
    { numRuns: 2_000 },
  )
})

test('Different xids have different gids', (t) => {
  fc.assert(
    fc.property(xids, xids, (one, other) => {
      const same = JSON.stringify(one) === JSON.stringify(other)
      t.is(formatXid(one) === formatXid(other), same)
    }),
  )
})

test('Gids are those of pgjdbc and psycopg, letter by letter', (t) => {
  const long = new Uint8Array(64).fill(0xff)
  t.is(formatXid({ formatId: 42, gtrid: 'gtrid', bqual: 'bq' }), '42_Z3RyaWQ=_YnE=')
  t.is(formatXid({ formatId: 0, gtrid: 'g', bqual: '' }), '0_Zw==_')
  t.is(formatXid({ formatId: -2, gtrid: 'Bestellung Ü', bqual: '?>~' }), '-2_QmVzdGVsbHVuZyDDnA==_Pz5+')
  // 88 characters a part, without the line break that base64 of e-mails has after 76.
  t.is(
    formatXid({ formatId: 131077, gtrid: long, bqual: long }),
    `131077_${'/'.repeat(85)}w==_${'/'.repeat(85)}w==`,
  )
})

test('What is no xid is refused with XAER_INVAL', (t) => {
  const good = { formatId: 1, gtrid: 'g', bqual: '' }
  const bad: unknown[] = [
    null,
    undefined,
    'gid',
    {},
    { ...good, formatId: -1 },
    { ...good, formatId: 2 ** 31 },
    { ...good, formatId: 1.5 },
    { ...good, formatId: '1' },
    { ...good, gtrid: '' },
    { ...good, gtrid: 'g'.repeat(65) },
    { ...good, gtrid: 'ü'.repeat(33) },
    { ...good, gtrid: [1, 2] },
    { ...good, gtrid: '\ud800' },
    { ...good, bqual: new Uint8Array(65) },
    { ...good, bqual: undefined },
  ]
  for (const xid of bad) {
    t.throws(() => formatXid(xid as never), { instanceOf: XaError, code: 'XAER_INVAL' })
  }
  for (const gid of ['a\0b', 'x'.repeat(200), '\ud800', 17]) {
    t.throws(() => gidOf({ gid: gid as never }), { instanceOf: XaError, code: 'XAER_INVAL' })
  }
})

test('Gids that only resemble an xid stay as they are', (t) => {
  for (const gid of [
    'citus_0_1_2_3',
    'pg_gid_16389_728',
    '1_Zw_',
    '1_Zw==',
    '01_Zw==_',
    '+1_Zw==_',
    '-0_Zw==_',
    '1_Zw==\n_',
    '1_Zh==_',
    '1__Zw==',
    '-1_Zw==_',
    '2147483648_Zw==_',
    `1_${Buffer.alloc(65).toString('base64')}_`,
    '',
  ]) {
    t.deepEqual(parseXid(gid), { gid })
  }
})
