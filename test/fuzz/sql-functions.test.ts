/**
 * Every function of schema once, called with anything by anybody: it answers, or refuses under a code of its own.
 * The list comes from the catalog, so that a new function is called here without anybody thinking of it.
 */
import { randomUUID } from 'node:crypto'
import test from 'ava'
import fc from 'fast-check'
import { codeOf, fromSql, PgonceError } from '../../src/errors.ts'
import { connect, fileContext } from '../support/database.ts'
import { holds, stretch, tryProperty } from './runs.ts'
import { type Look, makeStage, openId, type Role, roles, type Stage } from './stage.ts'
import { knownTypes, nastyTexts, type Value, valuesOf } from './values.ts'

/** What is not called with anything, and why. */
const exempt: Readonly<Record<string, string>> = {
  'once.remote(text,text)':
    'runs a statement of the caller over a connection of the caller: anything may come of it',
  'once.open_connection(text,text)':
    'takes the name of a foreign server, or else, as dblink does, a connection string',
  'once.finish_remote(text,text,name)': 'as once.remote; its callers are called here',
  'once.allow(text,text,text)':
    'for the installation alone: takes the name of a routine that it has just made',
  'once.recover(interval,interval)': 'works outside of the caller’s transaction: has a test of its own below',
}

/** Those that ask other databases, where dblink is installed. */
const asking =
  /^once\.(ask_home|carry|consult|connect|disconnect|add_peer|audit|resolve|force|dblink_schema)\(/

interface Signature {
  readonly id: string
  readonly name: string
  readonly procedure: boolean
  readonly types: readonly string[]
  readonly names: readonly string[]
  readonly required: number
}

interface Call {
  readonly role: Role
  readonly isolation: string
  readonly settings: readonly string[]
  readonly open: string
  readonly args: readonly Value[]
}

const ofAll = fileContext(test.after.always)
let alone: Stage
let peers: Stage
let signatures: readonly Signature[]

test.before(async (t) => {
  t.timeout(60_000 * stretch)
  ;[alone, peers] = await Promise.all([makeStage(ofAll, false), makeStage(ofAll, true)])
  signatures = await alone.branch.sql<Signature[]>`
    select p.oid::regprocedure::text as id, p.proname as name, p.prokind = 'p' as procedure,
           array(select format_type(a, null) from unnest(p.proargtypes) with ordinality u (a, n) order by n) as types,
           coalesce(p.proargnames, '{}') as names, p.pronargs - p.pronargdefaults as required
      from pg_proc p where p.pronamespace = 'once'::regnamespace order by 1`
})

test('Every function of the catalog is called here, or listed with a reason why not', (t) => {
  t.true(signatures.length > 60)
  const ids = new Set(signatures.map(({ id }) => id))
  t.deepEqual(
    Object.keys(exempt).filter((id) => !ids.has(id)),
    [],
    'an exemption for a function that does not exist',
  )
  for (const { id, types } of signatures) {
    if (id in exempt) continue
    for (const type of types) t.true(knownTypes.has(type), `${id}: there are no values of type ${type}`)
  }
})

test('No function has a backslash in a literal, which would mean what the caller’s standard_conforming_strings says', async (t) => {
  const found = await alone.branch.sql`
    select p.oid::regprocedure::text as id, l.line
      from pg_proc p, regexp_split_to_table(p.prosrc, E'\n') l (line)
     where p.pronamespace = 'once'::regnamespace and l.line !~ '^ *--'
       -- What people shall type in psql.
       and position(chr(92) in replace(l.line, chr(92) || 'gexec', '')) > 0`
  t.deepEqual([...found], [])
})

// ---------------------------------------------------------------------------------------------------
// One call

const settings = [
  'set local synchronous_commit = off',
  `set local timezone = 'Pacific/Kiritimati'`,
  `set local datestyle = 'SQL, DMY'`,
  `set local intervalstyle = 'sql_standard'`,
  'set local standard_conforming_strings = off',
  `set local bytea_output = 'escape'`,
  'set local search_path = evil, pg_catalog',
  'set local extra_float_digits = -15',
]

function callsOf(signature: Signature, { known }: Stage): fc.Arbitrary<Call> {
  const { types, names, required } = signature
  return fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 4 })).chain(([wild, size]) =>
    fc.record({
      role: fc.oneof(
        { weight: 6, arbitrary: fc.constant<Role>('postgres') },
        { weight: 3, arbitrary: fc.constantFrom(...roles) },
      ),
      isolation: fc.constantFrom(
        'read committed',
        'read committed',
        'read committed',
        'read committed',
        'repeatable read',
        'serializable',
        'read committed, read only',
      ),
      settings: fc.subarray(settings, { maxLength: 2 }),
      open: fc.constantFrom(
        '',
        `call once.open('${openId}')`,
        `call once.open('${openId}'); select pg_current_xact_id()`,
      ),
      args: fc
        .tuple(
          fc.integer({ min: required, max: types.length }),
          fc.tuple(...types.map((type, index) => valuesOf(type, names[index] ?? '', known, wild, size))),
        )
        .map(([count, values]) => values.slice(0, count)),
    }),
  )
}

function textOf({ name, procedure, types }: Signature, args: readonly Value[]): string {
  const list = args.map((_, index) => `$${index + 1}::text::${types[index]}`).join(', ')
  return procedure ? `call once.${name}(${list})` : `select * from once.${name}(${list})`
}

const mayOpen: ReadonlySet<Role> = new Set(['postgres', 'app'])

type Row = Record<string, unknown>
interface Answer {
  readonly rows?: readonly Row[]
  readonly error?: unknown
  /** Whether the arguments alone fail as well: they are no values of their types. */
  readonly miscast?: boolean
  /** After the call, in its transaction. */
  readonly inside?: Look
}

async function make(stage: Stage, signature: Signature, call: Call): Promise<Answer> {
  const sql = stage.sessions[call.role]
  const session = await sql.reserve()
  try {
    await session.unsafe(`begin isolation level ${call.isolation}`)
    if (mayOpen.has(call.role) && !call.isolation.includes('read only')) await session.unsafe(call.open)
    for (const setting of call.settings) await session.unsafe(setting)
    try {
      const rows = await session.unsafe<Row[]>(textOf(signature, call.args), [...call.args])
      const [found] = await session.unsafe<{ look: Look }[]>('select fuzz.look() as look')
      return { rows: [...rows], inside: found?.look ?? {} }
    } catch (error) {
      await session.unsafe('rollback')
      const casts = call.args.map((_, index) => `$${index + 1}::text::${signature.types[index]}`).join()
      const miscast =
        /^(22|54)/.test(codeOf(error) ?? '') &&
        (await session.unsafe(`select ${casts}`, [...call.args]).then(
          () => false,
          () => true,
        ))
      return { error, miscast }
    }
  } finally {
    await session.unsafe('rollback')
    session.release()
  }
}

/** What a refusal looks like that is an answer: then nothing was done. */
const refusals: Readonly<Record<string, (rows: readonly Row[]) => boolean>> = {
  claim: ([row]) => row?.status === 'duplicate',
  claim_ranges: ([row]) => row?.claim_ranges === '{}',
  claim_keys: ([row]) => /^\[("duplicate",?)+\]$/.test(String(row?.claim_keys)),
  claim_batch: (rows) => rows.length === 0,
  claim_key: ([row]) => row?.status === 'duplicate',
  claim_key_batch: (rows) => rows.length > 0 && rows.every(({ status }) => status === 'duplicate'),
  vote: ([row]) => row?.vote === false,
  begin_global: ([row]) => row?.begin_global === null,
  record_loss: ([row]) => row?.record_loss === false,
  judge_heuristic: ([row]) => row?.judge_heuristic === '0',
  mark_proven: ([row]) => row?.mark_proven === '0',
  mark_confirmed: ([row]) => row?.mark_confirmed === '0',
  delete_evidence: ([row]) => row?.delete_evidence === '0',
  purge: ([row]) => row?.purge === '0',
}

/** Nothing may come into being, and nobody's rights may change. */
const untouchable = ['canary', 'prepared', 'roles', 'settings', 'databases', 'objects']

function difference(before: Look, after: Look, only?: readonly string[]): string[] {
  return Object.keys(before).filter(
    (part) => before[part] !== after[part] && (only === undefined || only.includes(part)),
  )
}

/** Codes that may come out of a call besides ours, each with its reason; undefined if it must not. */
function excuse(
  { name }: Signature,
  call: Call,
  { error, miscast }: Answer,
  privileged: boolean,
): string | undefined {
  const code = codeOf(error)
  if (miscast) return 'Postgres refuses the argument before the call'
  if (code === '42501' && !privileged) return 'the role may not call it'
  if (code === '25006' && call.isolation.includes('read only')) return 'the caller’s transaction is read only'
  // Argued in sql/commit/vote.sql: a second branch of one transaction in one database.
  if (code === '23505' && name === 'vote') return 'a second vote of one transaction'
  if (code === '23505' && name === 'begin_global') return 'a second decision about one transaction'
  if (code === '22P02' && name === 'known_outcomes')
    return 'internal: takes what once.decode_gid has taken apart'
  return undefined
}

interface Tally {
  calls: number
  answered: number
  readonly codes: Map<string, number>
}

async function examine(
  stage: Stage,
  signature: Signature,
  call: Call,
  base: Look,
  tally: Tally,
  privileged: ReadonlySet<Role>,
): Promise<void> {
  const answer = await make(stage, signature, call)
  const { rows, error, inside } = answer
  tally.calls += 1
  if (error !== undefined) {
    const code = codeOf(error) ?? 'none'
    tally.codes.set(code, (tally.codes.get(code) ?? 0) + 1)
    const { message, detail, hint, where } = error as {
      message: string
      detail?: string
      hint?: string
      where?: string
    }
    const said = `${code} ${message}${where === undefined ? '' : ` (${where.split('\n')[0]})`}`
    if (code.startsWith('ON')) {
      if (!(fromSql(error) instanceof PgonceError)) throw new Error(`src/errors.ts does not map ${said}`)
      if (!detail || !hint) throw new Error(`no detail or no hint: ${said}`)
    } else if (excuse(signature, call, answer, privileged.has(call.role)) === undefined) {
      throw new Error(`not one of ours: ${said}`)
    }
  } else {
    tally.answered += 1
    if (rows === undefined || inside === undefined) throw new Error('neither an answer nor an error')
    const grants = /^grant_/.test(signature.name)
    const touched = difference(
      base,
      inside,
      grants ? untouchable.filter((part) => part !== 'objects') : untouchable,
    )
    if (touched.length > 0) throw new Error(`it touched ${touched.join(', ')}`)
    if (refusals[signature.name]?.(rows)) {
      const left = difference(base, inside).filter((part) => part !== 'producer.epoch')
      if (left.length > 0) throw new Error(`it refused, and still changed ${left.join(', ')}`)
    }
  }
  // What answered without asking other databases is undone by the rollback for certain. Sequences go on, as ever
  // in Postgres; nothing reads their numbers as more than names.
  if (error === undefined && stage === alone) return
  const escaped = difference(base, await stage.look())
  if (escaped.length > 0) throw new Error(`after the rollback it had changed ${escaped.join(', ')}`)
}

// ---------------------------------------------------------------------------------------------------
// All calls

async function callAll(
  stage: Stage,
  which: (signature: Signature) => boolean,
  runs: number,
): Promise<{ failures: string[]; said: string[] }> {
  const base = await stage.look()
  const failures: string[] = []
  const said: string[] = []
  for (const signature of signatures) {
    if (signature.id in exempt || !which(signature)) continue
    const allowed = await stage.branch.sql<{ role: Role }[]>`
      select r as role from unnest(${[...roles]}::text[]) r
       where has_function_privilege(r, ${signature.id}, 'execute') and has_schema_privilege(r, 'once', 'usage')`
    const privileged = new Set(allowed.map(({ role }) => role))
    const tally: Tally = { calls: 0, answered: 0, codes: new Map() }
    const failure = await tryProperty(
      signature.id,
      callsOf(signature, stage),
      (call) => examine(stage, signature, call, base, tally, privileged),
      // Without arguments there is little to vary.
      signature.types.length === 0 ? runs / 4 : runs,
    )
    if (failure !== undefined) failures.push(failure)
    said.push(
      `${signature.id}: ${tally.calls} calls, ${tally.answered} answered, ${[...tally.codes].map(([code, n]) => `${code} ${n}`).join(', ')}`,
    )
  }
  return { failures, said }
}

test.serial(
  'Any function, called with anything by anybody, answers or refuses under a code of its own, and leaves nothing behind that it should not',
  async (t) => {
    t.timeout(600_000 * stretch)
    const { failures, said } = await callAll(alone, () => true, 30)
    if (process.env.PGONCE_FUZZ_VERBOSE) for (const line of said) t.log(line)
    t.deepEqual(failures, [])
  },
)

test.serial('So do those that ask other databases, where they can', async (t) => {
  t.timeout(600_000 * stretch)
  const { failures, said } = await callAll(peers, ({ id }) => asking.test(id), 16)
  if (process.env.PGONCE_FUZZ_VERBOSE) for (const line of said) t.log(line)
  t.deepEqual(failures, [])
})

// ---------------------------------------------------------------------------------------------------
// What was found here once

const id = `'${openId}'`
const found: readonly [statement: string, code: string][] = [
  // Before: 23502 or 23514 from a constraint; and a null among the database ids would have let the decision be purged
  // while that branch was still prepared.
  [`select once.begin_global(${id}, null, '{}')`, 'ONARG'],
  [`select once.begin_global(${id}, '{billing}', '{}')`, 'ONARG'],
  [`select once.begin_global(${id}, '{billing}', array[null]::uuid[])`, 'ONARG'],
  [`select once.begin_global(${id}, array[null], array[${id}::uuid])`, 'ONARG'],
  [`select once.begin_global(${id}, '{{a},{b}}', array[${id}, ${id}]::uuid[])`, 'ONARG'],
  [`select once.vote(${id}, null, 'billing')`, 'ONARG'],
  [`select once.vote(${id}, ${id}, null)`, 'ONARG'],
  [`select once.record_loss(${id}, 'billing', ${id}, 'lost')`, 'ONARG'],
  [`select once.record_loss(null, 'billing', ${id}, 'lost branch')`, 'ONARG'],
  [`select once.record_intervention('restore', null, 'why')`, 'ONARG'],
  // Before: 22023 from set_config, 22008 from to_char, 2201W from LIMIT, 0A000 from array_position.
  [`call once.open(${id}, -1)`, 'ONARG'],
  [`call once.open(null)`, 'ONARG'],
  [`select once.claim_key('s', 'k', '294276-12-31')`, 'ONARG'],
  [`select once.proven(-1)`, 'ONARG'],
  [`select once.confirmed(-1)`, 'ONARG'],
  [`select once.confirmed(keep => '178000000 years')`, 'answer'],
  [`select once.confirmed(keep => '-178000000 years')`, 'answer'],
  [`select once.unproven(-1)`, 'ONARG'],
  [`select once.evidence_page(-1)`, 'ONARG'],
  [`select once.proven(keep => '178000000 years')`, 'answer'],
  [`select once.proven(keep => '-178000000 years')`, 'answer'],
  [`select once.branch_outcomes(once.database_id(), array[[${id}],[${id}]]::uuid[], '{3,3}')`, 'answer'],
  [`select once.branch_outcomes(once.database_id(), array[[${id}],[null]]::uuid[], '{3,3}')`, 'ONARG'],
  // Before: ONROL, about a role that nobody had changed.
  [`select once.assert_branch(null)`, 'ONEND'],
  // Before: 42601 or 22021, since a backslash in a literal means what the session says.
  [`set local standard_conforming_strings = off; select once.message_digest('s', 'k')`, 'answer'],
  [`set local standard_conforming_strings = off; select once.claim_key('s1', 'k')`, 'answer'],
  [`set local standard_conforming_strings = off; select once.claim_keys('s1', '{k}')`, 'answer'],
  [`set local standard_conforming_strings = off; select once.decode_gid('1_YQ==_Yg==')`, 'answer'],
  [`set local standard_conforming_strings = off; select once.quote_conninfo('it')`, 'answer'],
]

test.serial('What was found here once stays found', async (t) => {
  const sql = connect(t, alone.branch.url)
  for (const [statement, expected] of found) {
    const session = await sql.reserve()
    await session.unsafe(`begin; call once.open(${id}); select pg_current_xact_id()`)
    const said = await session.unsafe(statement).then(
      () => 'answer',
      (error: unknown) => codeOf(error) ?? String(error),
    )
    t.is(said, expected, statement)
    await session.unsafe('rollback')
    session.release()
  }
  const { message, detail } = await peers.sessions.postgres`select once.add_peer('nowhere')`.then(
    () => ({ message: 'no error', detail: '' }),
    (error: { message: string; detail: string }) => error,
  )
  t.regex(`${message} ${detail}`, /foreign server nowhere does not lead to a database of pgonce: .*refused/)
})

// ---------------------------------------------------------------------------------------------------
// Values that are code somewhere

const text = fc.oneof(
  fc.constantFrom(...nastyTexts),
  fc.string({ unit: 'binary', minLength: 1, maxLength: 40 }).map((value) => value.replaceAll('\0', '\u0001')),
)
const name = text.filter((value) => value !== '' && [...value].length <= 200)

test.serial('Every name goes in as data and comes back as it was', async (t) => {
  t.timeout(120_000 * stretch)
  const { sql } = alone.branch
  const before = await alone.look()
  await holds(
    t,
    'names',
    fc.record({ one: name, two: name, three: name, anything: text, epoch: fc.boolean() }),
    async ({ one, two, three, anything }) => {
      const session = await sql.reserve()
      const value = async (query: string, ...parameters: string[]) =>
        Object.values((await session.unsafe(query, parameters))[0] ?? {})[0]
      const same = (what: string, found: unknown, expected: unknown) => {
        if (found !== expected) throw new Error(`${what} came back as ${JSON.stringify(found)}`)
      }
      try {
        await session.unsafe('begin')
        // Whatever was known by these names is not meant here.
        await session.unsafe(
          'delete from once.producer; delete from once.consumer_position; delete from once.topic_end',
        )
        await session.unsafe('delete from once.message; delete from once.scope; delete from once.evidence')
        same('producer', await value('select status from once.claim($1, 7)', one), 'claimed')
        same('producer', await value('select producer from once.producers'), one)
        same(
          'scope',
          await value('select status from once.claim_key($1, $2)', one, `k${anything}`),
          'claimed',
        )
        same('scope', await value('select scope from once.scope'), one)
        same(
          'key',
          await value('select status from once.claim_key($1, $2)', one, `k${anything}`),
          'duplicate',
        )
        same(
          'another key',
          await value('select status from once.claim_key($1, $2)', one, `K${anything}`),
          'claimed',
        )
        if (two !== one)
          same(
            'another scope',
            await value('select status from once.claim_key($1, $2)', two, `k${anything}`),
            'claimed',
          )
        same(
          'result',
          await value(
            'select once.keep_result($1, $2, to_jsonb($3::text))::text',
            one,
            `k${anything}`,
            anything,
          ),
          '',
        )
        same(
          'result',
          await value(`select result #>> '{}' from once.claim_key($1, $2)`, one, `k${anything}`),
          anything,
        )
        await value('select once.take_partition($1, $2, 3, $3)', one, two, three)
        await value('select once.advance_token($1, $2, 3, 1, null, $3)', one, two, anything)
        await value('select once.report_end($1, 3, 9)', two)
        same('group', await value('select consumer_group from once.lag'), one)
        same('topic', await value('select topic from once.lag where end_position = 9'), two)
        same('owner', await value('select owner from once.lag'), three)
        same('token', await value('select token from once.read_position($1, $2, 3)', one, two), anything)
        await value('select once.reset_position($1, $2, 3, 1, $3)', one, two, three)
        same(
          'reason',
          await value('select reason from once.intervention order by intervention_id desc limit 1'),
          three,
        )
        const id = randomUUID()
        await value('call once.open($1::uuid)', id)
        await value('select once.vote($1::uuid, $1::uuid, $2)', id, anything)
        same('participant', await value('select participant from once.evidence'), anything)
        const touched = difference(
          before,
          (await session.unsafe<{ look: Look }[]>('select fuzz.look() as look'))[0]?.look ?? {},
          untouchable,
        )
        if (touched.length > 0) throw new Error(`it touched ${touched.join(', ')}`)
      } finally {
        await session.unsafe('rollback')
        session.release()
      }
    },
    60,
  )
  t.deepEqual(await alone.look(), before)
})

// ---------------------------------------------------------------------------------------------------
// Gids that anybody may choose

const uuidText = '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
const ownForm = new RegExp(`^once:1:${uuidText}:${uuidText}:[0-9]{1,19}:[A-Za-z0-9._-]{1,63}$`)

/** Of our form, or with one thing wrong, or anything else. */
const gids = (stage: Stage) => {
  const id = fc.oneof(fc.uuid(), fc.constantFrom(...(stage.known.byName.home ?? [])))
  const own = fc
    .tuple(
      id,
      fc.uuid(),
      fc.oneof(
        fc.constantFrom('0', '3', '007', '9999999999999999999', '9223372036854775808'),
        fc.nat().map(String),
      ),
      fc.string({ unit: fc.constantFrom(...'aZ0._-'), minLength: 1, maxLength: 63 }),
    )
    .map((parts) => `once:1:${parts.join(':')}`)
  const almost = fc
    .tuple(
      own,
      fc.nat(170),
      fc.constantFrom('', ':', "'", '-', '\n', ' ', 'A', 'g', '_', '%', '0', 'é', '\\'),
      fc.boolean(),
    )
    .map(([gid, at, put, instead]) => gid.slice(0, at) + put + gid.slice(at + (instead ? 1 : 0)))
  return fc
    .oneof(
      { weight: 3, arbitrary: own },
      { weight: 4, arbitrary: almost },
      { weight: 1, arbitrary: own.map((gid) => gid.toUpperCase()) },
      { weight: 3, arbitrary: text },
    )
    .filter((gid) => gid !== '' && Buffer.byteLength(gid) < 200)
}

test.serial(
  'Whatever gid somebody prepares under, it is shown as it is, and called ours only if it is',
  async (t) => {
    t.timeout(180_000 * stretch)
    const { branch, known, orphan, forged } = peers
    // Each gets a session, as psql’s user would: by role, whether what it prepares under our form is ours.
    const owners = { postgres: true, app: true, hostile: false } as const
    const names = Object.keys(owners) as (keyof typeof owners)[]
    const before = await peers.look()
    const outsider = "131077_it's"
    t.true(known.byName.gid?.includes(outsider))
    await holds(
      t,
      'gids',
      fc.uniqueArray(fc.tuple(gids(peers), fc.constantFrom(...names)), {
        selector: ([gid]) => gid,
        minLength: 1,
        maxLength: 12,
      }),
      async (cases) => {
        const expected = new Map<string, boolean>([
          [orphan.gid, true],
          [forged, false],
          [outsider, false],
        ])
        try {
          for (const [gid, role] of cases) {
            if (expected.has(gid)) continue
            await peers.sessions[role].unsafe('begin; select pg_current_xact_id()')
            await peers.sessions[role].unsafe(`prepare transaction '${gid.replaceAll("'", "''")}'`)
            expected.set(gid, ownForm.test(gid) && owners[role])
          }
          const wanted = JSON.stringify([...expected].sort())
          for (const role of ['postgres', 'monitor'] as const) {
            const sql = peers.sessions[role]
            const doubt = await sql<{ gid: string; ours: boolean; manager: string; outcome: string }[]>`
            select gid, ours, manager, outcome from once.in_doubt`
            const found = JSON.stringify(doubt.map(({ gid, ours }) => [gid, ours]).sort())
            if (found !== wanted) throw new Error(`once.in_doubt as ${role}: ${found}`)
            for (const { gid, ours, manager, outcome } of doubt) {
              if (ours !== (manager === 'pgonce'))
                throw new Error(`${gid} is ${ours ? '' : 'not '}ours, and of ${manager}`)
              if (!ours && outcome !== 'not ours: ask its manager') throw new Error(`${gid}: ${outcome}`)
            }
            const branches = await sql<{ gid: string; ours: boolean }[]>`select gid, ours from once.branch`
            for (const one of branches)
              if (expected.get(one.gid) !== one.ours)
                throw new Error(`once.branch of ${one.gid}: ${one.ours}`)
            const own = [...expected].filter(([, ours]) => ours).length
            if (branches.filter(({ ours }) => ours).length !== own) throw new Error('once.branch lacks some')
            const [health] = await sql<
              { value: number }[]
            >`select value from once.health where name = 'in_doubt'`
            if (health?.value !== own) throw new Error(`once.health counts ${health?.value}`)
          }
          await peers.sessions.postgres`select * from once.audit()`
          // What it would have us type works as it stands, and names none but ours.
          for (const { statement } of await peers.sessions.postgres<
            { statement: string }[]
          >`select statement from once.resolve()`) {
            const [, quoted] = /(?:commit|rollback) prepared '(.*)'$/s.exec(statement) ?? []
            const gid = quoted?.replaceAll("''", "'") ?? ''
            if (!expected.get(gid)) throw new Error(`once.resolve() would have us type: ${statement}`)
            if (gid === orphan.gid) continue
            await branch.sql.unsafe(statement)
          }
        } finally {
          const left = await branch.sql<
            { gid: string }[]
          >`select gid from pg_prepared_xacts where gid <> all (${[orphan.gid, forged, outsider]})`
          for (const { gid } of left)
            await branch.sql.unsafe(`rollback prepared '${gid.replaceAll("'", "''")}'`)
        }
        const after = await peers.look()
        const escaped = difference(before, after)
        if (escaped.length > 0) throw new Error(`it changed ${escaped.join(', ')}`)
      },
      25,
    )
  },
)

test.serial(
  'Recovery takes any time there is, or refuses it, and finishes nothing that is not ours',
  async (t) => {
    t.timeout(60_000 * stretch)
    const before = new Set(
      (await peers.branch.sql<{ gid: string }[]>`select gid from pg_prepared_xacts`).map(({ gid }) => gid),
    )
    t.true(before.has(peers.orphan.gid))
    await holds(
      t,
      'once.recover(interval,interval)',
      fc.tuple(
        valuesOf('interval', '', peers.known, true, 0),
        valuesOf('interval', '', peers.known, true, 0),
      ),
      async (args) => {
        const sql = peers.sessions.postgres
        const error = await sql
          .unsafe('select * from once.recover($1::text::interval, $2::text::interval)', args)
          .then(
            () => undefined,
            (reason: unknown) => reason,
          )
        if (error === undefined || /^ON/.test(codeOf(error) ?? '')) return
        const miscast = await sql.unsafe('select $1::text::interval, $2::text::interval', args).then(
          () => false,
          () => true,
        )
        if (!miscast) throw new Error(`${codeOf(error)} ${(error as Error).message}`)
      },
      12,
    )
    const after = new Set(
      (await peers.branch.sql<{ gid: string }[]>`select gid from pg_prepared_xacts`).map(({ gid }) => gid),
    )
    t.deepEqual(
      [...before].filter((gid) => gid !== peers.orphan.gid && !after.has(gid)),
      [],
    )
  },
)

test.after('The canaries live', async (t) => {
  for (const { branch } of [alone, peers]) {
    t.deepEqual([...(await branch.sql`select song from public.canary`)], [{ song: 'tweet' }])
    t.is((await branch.sql`select from pg_roles where rolname = 'canary'`).length, 1)
  }
})
