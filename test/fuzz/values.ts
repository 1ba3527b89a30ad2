/** Values of SQL types as text, the nasty ones first: what people paste, what programs compute, what attackers try. */
import fc from 'fast-check'

/** A parameter as it is sent; null is null. */
export type Value = string | null

/** What exists in the database, so that calls also meet something: by the name of an argument (`next bigint` where it has several types), or by its type. */
export interface Known {
  readonly byName: Readonly<Record<string, readonly string[]>>
  readonly byType: Readonly<Record<string, readonly string[]>>
}

const zeros = '00000000-0000-0000-0000-000000000000'
const gid = (participant: string, xid = '7', head = 'once:1') =>
  `${head}:${zeros}:${zeros}:${xid}:${participant}`

/** Text that is code somewhere: in SQL, in format(), in arrays, in gids, in file names. */
export const injections = [
  `'; drop table public.canary; --`,
  `"; drop table public.canary; --`,
  `'); drop table public.canary; --`,
  `$$; drop role canary; $$`,
  `$grant$; drop table public.canary; $grant$`,
  `$query$; drop table public.canary; --`,
  `\\'; drop table public.canary; --`,
  `x'::regclass); drop table public.canary; --`,
  `*/ drop table public.canary; /*`,
  `' || (select pg_terminate_backend(pg_backend_pid())) || '`,
  `canary" to canary; drop role canary; --`,
  `dbname=postgres host=192.0.2.1`,
]

export const nastyTexts: readonly string[] = [
  ...injections,
  '',
  ' ',
  "'",
  "''",
  '"',
  '\\',
  "\\'",
  '$$',
  '%',
  '%s %I %L %%',
  '%1$I',
  '%9$s',
  '{',
  '{}',
  '{NULL}',
  'null',
  'NULL',
  ',',
  '-1',
  '0',
  '1e400',
  'NaN',
  'infinity',
  '--',
  '/*',
  ';',
  '\n',
  '\r\n',
  '\t',
  '\u0001',
  '\u007f',
  '\u2028',
  '\u202e',
  '\ufeff',
  '\ufffd',
  '\uffff',
  'ﷺ',
  'e\u0301',
  'İı',
  '😀',
  '\\x00',
  '\\000',
  'x'.repeat(63),
  'x'.repeat(64),
  'x'.repeat(200),
  'x'.repeat(201),
  'é'.repeat(200),
  '😀'.repeat(200),
  '😀'.repeat(201),
  'x'.repeat(100_000),
  'public',
  'pg_temp',
  'pg_catalog',
  'postgres',
  'current_user',
  gid('billing'),
  gid(''),
  gid('a:b'),
  gid('é'),
  gid('b', ''),
  gid('b', '-1'),
  gid('b', '18446744073709551616'),
  gid('b', '9999999999999999999'),
  gid('b', '99999999999999999999'),
  gid('b', '7', 'once:2'),
  gid('b', '7', 'ONCE:1'),
  gid('x'.repeat(64)),
  'once:',
  'once:1:',
  'once:1::::',
  'once:1:-:-:1:b',
  '1_YQ==_',
  '1__',
  '-1_YQ==_Yg==',
  '201_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==_',
  '131077_J8Onw6k=_XA==',
  'citus_0_4711_17_2',
  'citus_0_4711_17',
  'pg_gid_1_2',
  `_sa_${'0'.repeat(32)}`,
  '__pgdog_2pc_1_2',
  `${zeros}/7`,
  '01890a5d-ac96-774b-bcce-b302099a8057',
  '00000000-0000-7000-8000-000000000000',
  'ffffffff-ffff-7fff-bfff-ffffffffffff',
  '01H455VB4PEX5VSKNK084SN02Q',
  '00000000000000000000000000',
  '7ZZZZZZZZZZZZZZZZZZZZZZZZZ',
]

const text = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...nastyTexts) },
  {
    weight: 2,
    arbitrary: fc.string({ unit: 'binary', maxLength: 20 }).map((value) => value.replaceAll('\0', '')),
  },
  { weight: 1, arbitrary: fc.string({ unit: fc.constantFrom(...'\'"\\$;:-_{}(), %ab01'), maxLength: 30 }) },
)

const number = (least: bigint, most: bigint, ...more: bigint[]) =>
  fc
    .oneof(
      fc.constantFrom(
        least,
        least + 1n,
        -1n,
        0n,
        1n,
        2n,
        10n,
        11n,
        12n,
        999n,
        1000n,
        1001n,
        most - 1n,
        most,
        ...more,
      ),
      fc.bigInt({ min: -3n, max: 30n }),
      fc.bigInt({ min: least, max: most }),
    )
    .map(String)

const scalars: Readonly<Record<string, fc.Arbitrary<string>>> = {
  text,
  // A cast to name cuts what is too long.
  name: text,
  boolean: fc.constantFrom('t', 'f'),
  integer: number(-(2n ** 31n), 2n ** 31n - 1n),
  bigint: number(-(2n ** 63n), 2n ** 63n - 1n, 2n ** 53n, 2n ** 53n + 1n),
  xid8: fc.oneof(
    fc.constantFrom(
      '0',
      '1',
      '2',
      '3',
      '700',
      '4294967295',
      '4294967296',
      '9223372036854775807',
      '18446744073709551615',
    ),
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String),
  ),
  uuid: fc.oneof(fc.constantFrom(zeros, 'ffffffff-ffff-ffff-ffff-ffffffffffff'), fc.uuid()),
  date: fc.constantFrom(
    'infinity',
    '-infinity',
    'epoch',
    'today',
    '1969-12-31',
    '1970-01-01',
    '2024-02-29',
    '2099-12-31',
    '2100-01-01',
    '5874897-12-31',
    '4713-01-01 BC',
  ),
  'timestamp with time zone': fc.oneof(
    fc.constantFrom(
      'infinity',
      '-infinity',
      'epoch',
      'now',
      '1969-12-31 23:59:59.999999+00',
      '1970-01-01 00:00:00+00',
      '1970-01-01 13:59:59+14',
      '2099-12-31 23:59:59.999999+00',
      '2100-01-01 00:00:00+00',
      '294276-12-31 23:59:59.999999+00',
      '4714-11-24 00:00:00+00 BC',
      '2016-12-31 23:59:60Z',
    ),
    fc
      .date({ min: new Date(0), max: new Date('2099-12-31'), noInvalidDate: true })
      .map((date) => date.toISOString()),
  ),
  interval: fc.constantFrom(
    '0',
    '1 us',
    '-1 us',
    '-1 day',
    '30 days',
    '1 mon -30 days',
    '1 day -24 hours',
    '1000 years',
    '1000 years 1 us',
    '178000000 years',
    '-178000000 years',
    // From 17 on a value of the type.
    'infinity',
    '-infinity',
  ),
  int8multirange: fc.oneof(
    fc.constantFrom(
      '{}',
      '{[0,0]}',
      '{[0,9223372036854775806]}',
      '{[9223372036854775806,9223372036854775806]}',
      '{[9223372036854775807,9223372036854775807]}',
      '{[-9223372036854775808,-9223372036854775807)}',
      '{[-1,3]}',
      '{[5,)}',
      '{(,5]}',
      '{(,)}',
      '{[3,3],[1,1],[2,9]}',
      '[1,2]',
    ),
    fc
      .array(fc.tuple(fc.integer({ min: -1, max: 30 }), fc.nat(6)), { maxLength: 6 })
      .map((list) => `{${list.map(([first, n]) => `[${first},${first + n}]`).join(',')}}`),
  ),
  jsonb: fc.oneof(
    fc.constantFrom(
      'null',
      '{}',
      '[]',
      '""',
      '-0',
      '1e1000',
      '"\\u0000"',
      '{"a":1,"a":2}',
      `${'['.repeat(500)}${']'.repeat(500)}`,
      'x',
      '',
    ),
    fc.json({ maxDepth: 3 }),
  ),
  bytea: fc.oneof(
    fc.constantFrom('\\x', '\\x00', '\\xdeadbeef', 'a\\000b', '\\xzz'),
    fc.uint8Array({ maxLength: 40 }).map((bytes) => `\\x${Buffer.from(bytes).toString('hex')}`),
  ),
}

/** The types for which there are values. */
export const knownTypes: ReadonlySet<string> = new Set(
  Object.keys(scalars).flatMap((type) => [type, `${type}[]`]),
)

/**
 * Values of a type for an argument.
 *
 * @param wild whether most are nasty; else most are known, so that a call gets far before it meets one
 * @param size how many elements arrays have as a rule, so that several of a call are of one length
 */
export function valuesOf(
  type: string,
  name: string,
  known: Known,
  wild: boolean,
  size: number,
): fc.Arbitrary<Value> {
  const element = type.endsWith('[]') ? type.slice(0, -2) : type
  const nasty = scalars[element]
  if (nasty === undefined) throw new Error(`No values of type ${type}`)
  const pool = known.byName[`${name} ${element}`] ?? known.byName[name] ?? known.byType[element] ?? []
  const scalar: fc.Arbitrary<Value> = fc.oneof(
    { weight: 1, arbitrary: fc.constant(null) },
    { weight: wild ? 6 : 3, arbitrary: nasty },
    ...(pool.length > 0 ? [{ weight: wild ? 6 : 40, arbitrary: fc.constantFrom<Value>(...pool) }] : []),
    // What only a cast can refuse.
    ...(!wild || element === 'text' || element === 'name'
      ? []
      : [{ weight: 1, arbitrary: fc.constantFrom<Value>('', 'x', '99999999999999999999', "'") }]),
  )
  return type === element ? scalar : arrays(element, scalar, wild, size)
}

function arrays(
  element: string,
  scalar: fc.Arbitrary<Value>,
  wild: boolean,
  size: number,
): fc.Arbitrary<Value> {
  const some = (length: number) => fc.array(scalar, { minLength: length, maxLength: length })
  const flat = fc.oneof(
    { weight: 6, arbitrary: some(size) },
    { weight: 2, arbitrary: fc.array(scalar, { maxLength: 5 }) },
    // The same one again and again.
    {
      weight: 1,
      arbitrary: fc
        .tuple(scalar, fc.integer({ min: 2, max: 5 }))
        .map(([one, n]) => Array<Value>(n).fill(one)),
    },
    ...(element === 'bigint'
      ? [
          {
            weight: 4,
            arbitrary: fc
              .tuple(fc.bigInt({ min: -2n, max: 20n }), fc.integer({ min: 0, max: 300 }))
              .map(([first, n]) => Array.from({ length: n }, (_, index) => String(first + BigInt(index)))),
          },
        ]
      : []),
  )
  const bound = fc.constantFrom(-5, 0, 2, 2147483640)
  return fc.oneof(
    { weight: wild ? 10 : 40, arbitrary: flat.map(literal) },
    { weight: 1, arbitrary: fc.constant(null) },
    {
      weight: 2,
      arbitrary: fc
        .tuple(bound, some(size))
        .map(([from, list]) =>
          list.length === 0 ? '{}' : `[${from}:${from + list.length - 1}]=${literal(list)}`,
        ),
    },
    { weight: 2, arbitrary: fc.tuple(some(2), some(2)).map(([a, b]) => `{${literal(a)},${literal(b)}}`) },
    {
      weight: 1,
      arbitrary: fc
        .tuple(bound, some(1), some(1))
        .map(([from, a, b]) => `[${from}:${from + 1}][-1:-1]={${literal(a)},${literal(b)}}`),
    },
    { weight: 1, arbitrary: fc.constantFrom('', '{', '{{}', '{{1},{2,3}}', '[2:1]={}') },
  )
}

function literal(list: readonly Value[]): string {
  return `{${list.map((value) => (value === null ? 'NULL' : `"${value.replaceAll(/["\\]/g, '\\$&')}"`)).join(',')}}`
}
