/**
 * Everything that the client says to a server, by name. A statement brings its text, its parameters, and the one
 * decoder of its answer; the name is the trace's, and what the simulated Postgres answers to.
 *
 * All answers are text, one column a row, and a decoder throws on anything that SQL cannot have said: neither the
 * caller's parsers nor a driver's idea of a type has a say. Texts run on connections whose search_path is somebody
 * else's, so they name what they use with its schema, and types exactly: where pg_catalog has no exact match, Postgres
 * would take an operator or a function of any schema on the path.
 */
import { type Answer, refuseAnswer } from './connection/link.ts'
import { arrayLiteral, literal } from './connection/quote.ts'
import type { Partition, Position } from './position/position.ts'

export interface Statement<A> {
  readonly name: string
  readonly text: string
  /** Parameters of the text; of a script what was written into it. */
  readonly values: readonly (string | null)[]
  /** Takes no parameters: sent as it is, perhaps several statements in one text. */
  readonly isScript: boolean
  /** Several statements: of their rows no driver tells the same. */
  readonly isSeveral: boolean
  /** @throws DatabaseError `DRIVER` */
  read(answer: Answer): A
}

// ---------------------------------------------------------------------------------------------------
// Decoders

const nothing = () => {}

/** One row of text. */
function one({ rows }: Answer): string {
  const [value] = rows
  return rows.length === 1 && typeof value === 'string' ? value : refuseAnswer(value, 'one row of text')
}

/** One row, of a text or nothing. */
function oneOrNull({ rows }: Answer): string | null {
  const [value] = rows
  return rows.length === 1 && value !== undefined ? value : refuseAnswer(value, 'one row')
}

function oneOf<Word extends string>(...words: readonly Word[]): (answer: Answer) => Word {
  return (answer) => {
    const found = one(answer)
    return words.find((word) => word === found) ?? refuseAnswer(found, words.join(', '))
  }
}

function list({ rows }: Answer): string[] {
  return rows.map((row) => row ?? refuseAnswer(row, 'text'))
}

function digits(answer: Answer): string {
  const found = one(answer)
  return /^\d{1,20}$/.test(found) ? found : refuseAnswer(found, 'a number')
}

function digitsOrNull(answer: Answer): string | null {
  return oneOrNull(answer) === null ? null : digits(answer)
}

function json<A>(answer: Answer): A {
  const found = one(answer)
  try {
    return JSON.parse(found) as A
  } catch {
    return refuseAnswer(found, 'JSON')
  }
}

/** A driver that tells command tags must tell this one: a failed transaction answers COMMIT and PREPARE with ROLLBACK. */
function tagged(expected: string): (answer: Answer) => boolean {
  return ({ command }) => command === undefined || command === expected
}

function query<A>(
  name: string,
  text: string,
  values: readonly (string | number | boolean | bigint | null)[],
  read: (answer: Answer) => A,
): Statement<A> {
  return {
    name,
    text,
    values: values.map((value) => (value === null ? null : String(value))),
    isScript: false,
    isSeveral: false,
    read,
  }
}

function script<A>(
  name: string,
  statements: readonly string[],
  values: readonly (string | null)[],
  read: (answer: Answer) => A,
): Statement<A> {
  return { name, text: statements.join('; '), values, isScript: true, isSeveral: statements.length > 1, read }
}

/** A single statement without parameters. */
const plain = <A>(name: string, text: string, read: (answer: Answer) => A) => script(name, [text], [], read)

/**
 * On a connection that we know little of, a statement asks itself whether it is inside our transaction: its driver
 * may have opened another connection without a word. A stable condition without columns is evaluated first.
 */
export function guarded<A>(statement: Statement<A>, transactionId: string): Statement<A> {
  const { text, values } = statement
  return {
    ...statement,
    text: `${text} where once.assert_branch($${values.length + 1}::pg_catalog.uuid)`,
    values: [...values, transactionId],
  }
}

// ---------------------------------------------------------------------------------------------------
// A connection

/**
 * Who is there, before anything was set: the backend by its own word, whether an operator has made it read-only, which
 * stays in force, the session's `synchronous_commit`, and array types with those of their elements, if they are asked.
 */
export const hello = (withArrays: boolean) =>
  plain(
    'hello',
    `select pg_catalog.json_build_array(
  pg_catalog.pg_backend_pid(), pg_catalog.current_setting('default_transaction_read_only'),
  pg_catalog.current_setting('synchronous_commit'), ${withArrays ? arrayTypes : 'null'})::pg_catalog.text`,
    (answer) => {
      const [pid, fence, durability, found] =
        json<[number, string, string, [number | string, number | string][] | null]>(answer)
      if (typeof pid !== 'number' || !['on', 'off'].includes(fence)) refuseAnswer(fence, 'on or off')
      const arrays = (found ?? []).map(([type, element]) => [Number(type), Number(element)] as const)
      return { pid, isFenced: fence === 'on', durability, arrays }
    },
  )

const arrayTypes = `(select pg_catalog.json_agg(pg_catalog.json_build_array(a.oid, e.oid))
     from pg_catalog.pg_type a
     join pg_catalog.pg_type e on e.oid operator(pg_catalog.=) a.typelem and e.typarray operator(pg_catalog.=) a.oid
    where e.typdelim operator(pg_catalog.=) ','::pg_catalog."char")`

/**
 * From here on this session writes only inside of `begin read write`. Advisory locks are given up at each commit: to
 * plan that anew each time costs more than the whole COMMIT.
 */
export const secondNet = () =>
  script('second_net', ['set default_transaction_read_only = on', prepareUnlock], [], nothing)

const prepareUnlock = 'prepare once_unlock as select where pg_catalog.pg_advisory_unlock_all() is null'

/** Whether an operator has made the database read-only since: our own setting only hides it from the session. */
export const fence = () =>
  plain(
    'fence',
    `select s.reset_val from pg_catalog.pg_settings s
 where s.name operator(pg_catalog.=) 'default_transaction_read_only'::pg_catalog.text`,
    oneOf('on', 'off'),
  )

const probed = `Probe 'aB_1' {"k": [1, true, null]} 2020-01-01 t f`

/** Text that parsers and transforms like to change; null stays null. */
export const probe = () =>
  query('probe', 'select $1::pg_catalog.text', [probed], (answer) => {
    const found = one(answer)
    if (found !== probed) refuseAnswer(found, probed)
  })

/** Two statements in one text: where both are run, the second is in force. Only inside of a transaction. */
export const probeSeveral = () => script('probe_several', [setProbe('one'), setProbe('two')], [], nothing)

const setProbe = (value: string) => `select pg_catalog.set_config('once.probe', '${value}', true)`

/** Null outside of the transaction of {@link probeSeveral}. */
export const readProbe = () =>
  plain('read_probe', "select pg_catalog.current_setting('once.probe', true)", oneOrNull)

export const identify = () =>
  query(
    'identify',
    `select pg_catalog.json_build_array(once.schema_version(), once.database_id(), pg_catalog.pg_is_in_recovery())::pg_catalog.text`,
    [],
    (answer) => {
      const [version, id, standby] = json<[number, string, boolean]>(answer)
      if (typeof version !== 'number' || typeof id !== 'string' || typeof standby !== 'boolean') {
        refuseAnswer(version, 'a version, an id and a boolean')
      }
      return { version, id, standby }
    },
  )

/** The role that is taken on, or `none`. */
export const tellRole = () => plain('tell_role', "select pg_catalog.current_setting('role')", one)

export const setRole = (role: string) =>
  query('set_role', "select pg_catalog.set_config('role', $1, false)", [role], nothing)

/** Where the session reads only unless it is told otherwise, `writes` tells it; an operator's fence stays in force. */
export const beginReadCommitted = (writes = false) =>
  writes
    ? plain('begin_read_committed_direct', 'begin isolation level read committed read write', nothing)
    : plain('begin_read_committed', 'begin isolation level read committed', nothing)

export const setLockTimeout = (milliseconds: number) =>
  script('set_lock_timeout', [`set local lock_timeout = '${milliseconds}'`], [String(milliseconds)], nothing)

/** The end of a transaction that decides nothing. */
export const end = () => plain('end', 'commit', nothing)

// ---------------------------------------------------------------------------------------------------
// A branch: on a connection with the second net (direct), everything is said in as few texts as there are waits; on
// any other, our functions look at each step.

/** What is to be known of a session, to end a transaction in it. */
export interface Session {
  /**
   * Whether the second net is in force: outside of our transactions it reads only, so that BEGIN need not be waited for.
   * Seen on each connection, never believed; false for those that are not ours, that we share with a pooler's others, and
   * that an operator has made read-only.
   */
  readonly isDirect: boolean
  /** Whether we opened it: then what a handler leaves behind in the session is reset with the commit. */
  readonly isOwn: boolean
  /** `synchronous_commit` as it began with it; undefined where it was not asked. */
  readonly durability: string | undefined
}

export interface BranchOptions {
  /** Milliseconds; 0: none. */
  readonly lockTimeout: number
  readonly idleTimeout: number
  readonly isolationLevel: string | undefined
}

const beginText = (level: string | undefined) =>
  level === undefined ? 'begin' : `begin isolation level ${level}`

/** What is written into it are numbers and one of four words. */
export const openDirect = ({ lockTimeout, idleTimeout, isolationLevel }: BranchOptions) =>
  script(
    'open_direct',
    [
      `${beginText(isolationLevel)} read write`,
      `set local lock_timeout = '${lockTimeout}'`,
      `set local idle_in_transaction_session_timeout = '${idleTimeout}'`,
    ],
    [String(lockTimeout), String(idleTimeout), isolationLevel ?? null],
    nothing,
  )

export const begin = (isolationLevel: string | undefined) =>
  script('begin', [beginText(isolationLevel)], [isolationLevel ?? null], nothing)

export const open = (transactionId: string, { lockTimeout, idleTimeout }: BranchOptions) =>
  query('open', openCall, [transactionId, lockTimeout, idleTimeout], nothing)

const openCall = 'call once.open($1::pg_catalog.uuid, $2::pg_catalog.int4, $3::pg_catalog.int4)'

/** The transaction's xid; null if it has written nothing. */
export const noteXid = () =>
  plain('note_xid', 'select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text', digitsOrNull)

/**
 * Deferred constraints and triggers run now, so that whatever they do to the session is done; then everything that
 * a handler may have left in it is taken back. `reset all` takes our own setting away, so it is put up again; all of
 * this is undone if the transaction is, but for the advisory locks of the session.
 */
const settings = ['reset session authorization', 'reset all']
const unlock = 'select pg_catalog.pg_advisory_unlock_all()'
const settle = [
  'set constraints all immediate',
  ...settings,
  'execute once_unlock',
  'set default_transaction_read_only = on',
]
/** None of these may stand before PREPARE; what they take away, PREPARE refuses. */
const tidy = ['close all', 'discard temp', 'unlisten *']

/** A savepoint is refused where no block is open (25P01) or a statement had failed (25P02); COMMIT would not be. */
const commitNow = ['savepoint once', 'commit']

/** A message that is acknowledged must not be lost in a crash of the server: anything but `off`, as the session has it. */
const durable = (level: string | undefined) =>
  `set local synchronous_commit = ${level === 'local' || level === 'remote_write' || level === 'remote_apply' ? level : 'on'}`

/** A decision that is seen must be durable wherever commits of this server are: at least `on`. */
const decisive = (level: string | undefined) =>
  `set local synchronous_commit = ${level === 'remote_apply' ? level : 'on'}`

/** On a connection with the second net. */
const direct = (
  name: string,
  statements: readonly string[],
  values: readonly (string | null)[],
  expected: string,
) => script(`${name}_direct`, [...settle, ...statements], values, tagged(expected))

/**
 * On any other the question comes first whether the transaction is ours, whose mark the resets take away. Of a caller's
 * session nothing is reset; one of ours that is reset gets another name, as it is another statement.
 */
const careful = (
  name: string,
  { isOwn, durability }: Session,
  [question, ...resets]: readonly [string, ...string[]],
  last: string,
  values: readonly string[],
  expected: string,
) => {
  const constraints = 'set constraints all immediate'
  if (!isOwn) return script(name, [constraints, question, last], values, tagged(expected))
  const statements = [constraints, question, ...settings, unlock, ...resets, last]
  return script(`${name}_shared`, statements, [...values, durability ?? null], tagged(expected))
}

/** With the net only the level differs: its text is joined from many pieces, and made once for each. */
const commits = new Map<string | undefined, Statement<boolean>>()

/** True if it committed; false where the transaction had failed and the driver tells so. */
export const commit = (session: Session, transactionId: string): Statement<boolean> => {
  const { isDirect, durability: level } = session
  if (!isDirect) {
    const parts = [`select once.seal('${transactionId}')`, ...tidy, durable(level)] as const
    return careful('commit', session, parts, 'commit', [transactionId], 'COMMIT')
  }
  const made = commits.get(level)
  if (made !== undefined) return made
  const statement = direct('commit', [...tidy, durable(level), ...commitNow], [level ?? null], 'COMMIT')
  commits.set(level, statement)
  return statement
}

/** What stands in a gid, less the participant. */
export interface GlobalId {
  /** The id of the home database. */
  readonly home: string
  /** Random, version 4. */
  readonly transactionId: string
  /** The home's own transaction, a decimal `xid8`. */
  readonly homeXid: string
}

/** A participant: the name in its gid, and the id of its database. */
export interface Participant {
  readonly name: string
  readonly databaseId: string
}

/** Null, and so refused (23502), unless this is the database that it said it is. */
const ifHere = (databaseId: string, transactionId: string, more = '') =>
  `(select '${transactionId}'::pg_catalog.uuid from once.database d ` +
  `where d.id operator(pg_catalog.=) '${databaseId}'::pg_catalog.uuid${more})`

/** Evidence and PREPARE. Names need no quotes: see checkDatabaseName. */
export const prepare = (session: Session, global: GlobalId, participant: Participant, gid: string) => {
  const { transactionId, home, homeXid } = global
  const { name, databaseId } = participant
  const level = decisive(session.durability)
  const last = `prepare transaction ${literal(gid)}`
  const values = [transactionId, home, homeXid, name, databaseId, gid]
  if (!session.isDirect) {
    const vote = `select once.vote('${transactionId}', '${home}', '${name}', '${databaseId}')`
    return careful('prepare', session, [vote, level], last, values, 'PREPARE TRANSACTION')
  }
  const here = ifHere(databaseId, transactionId)
  const insert = `insert into once.evidence (transaction_id, home, participant) values (${here}, '${home}', '${name}')`
  return direct('prepare', [level, insert, last], values, 'PREPARE TRANSACTION')
}

/**
 * The decision row and COMMIT. The row's own xid is filled in by the table; that it is the one in the gids is
 * asked here, since a branch whose gid named another would be called aborted.
 */
export const decide = (session: Session, global: GlobalId, participants: readonly Participant[]) => {
  const { transactionId, home, homeXid } = global
  const level = decisive(session.durability)
  const names = `{${participants.map(({ name }) => name).join(',')}}`
  const ids = `{${participants.map(({ databaseId }) => databaseId).join(',')}}`
  const values = [transactionId, home, homeXid, names, ids]
  if (!session.isDirect) {
    const begun = `select once.begin_global('${transactionId}', '${names}', '${ids}', '${home}')`
    return careful('decide', session, [begun, ...tidy, level], 'commit', values, 'COMMIT')
  }
  const same = ` and pg_catalog.pg_current_xact_id() operator(pg_catalog.=) '${homeXid}'::pg_catalog.xid8`
  const row = `${ifHere(home, transactionId, same)}, '${names}', '${ids}'`
  const insert = `insert into once.global_transaction (transaction_id, participants, database_ids) values (${row})`
  return direct('decide', [...tidy, level, insert, ...commitNow], values, 'COMMIT')
}

/** Link-level advisory locks outlive a rollback; all else that a handler set goes with it. */
export const rollbackDirect = () => script('rollback_direct', ['rollback', unlock], [], nothing)

export const rollback = () => plain('rollback', 'rollback', nothing)

/** The end of a prepared branch, as its home decided; the text is the one of `once.apply` where that gave it. */
export const finish = (verb: 'commit' | 'rollback', gid: string, text = `${verb} prepared ${literal(gid)}`) =>
  script('finish', [text], [verb, gid], nothing)

/** Whether the branch of a transaction committed here. */
export const findEvidence = (transactionId: string) =>
  query('find_evidence', findText, [transactionId], (answer) => list(answer).length > 0)

const findText = 'select once.find_evidence(array[$1::pg_catalog.uuid])::pg_catalog.text'

export const outcome = ({ home, transactionId, homeXid }: GlobalId) =>
  query('outcome', outcomeText, [home, transactionId, homeXid], outcomes)

const outcomeText = 'select once.outcome($1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::pg_catalog.xid8)'
const outcomes = oneOf('committed', 'aborted', 'pending', 'purged')

// ---------------------------------------------------------------------------------------------------
// The ledger

/** `claimed` (process it), `duplicate` (already processed), `expired` (older than what its scope remembers). */
export type ClaimStatus = 'claimed' | 'duplicate' | 'expired'

export interface Claim {
  readonly status: ClaimStatus
  /** What the first one's handler returned, if it was kept. */
  readonly result: unknown
}

const claimed = oneOf('claimed', 'duplicate')

const claimSequenceCall =
  'once.claim($1, $2::pg_catalog.int8, $3::pg_catalog.int4, $4::pg_catalog.bool, $5::pg_catalog.int8)'
const claimSequenceText = `select ${claimSequenceCall}`
const claimKeyCall = '(once.claim_key($1, $2, $3::pg_catalog.timestamptz, $4::pg_catalog.bytea)).status'

export interface SequenceOptions {
  readonly epoch: number
  readonly strict: boolean
  readonly startAt: bigint | null
}

export function claimSequence(
  producer: string,
  sequence: bigint,
  options: SequenceOptions,
): Statement<Claim> {
  const values = [producer, sequence, options.epoch, options.strict, options.startAt]
  const read = (answer: Answer) => ({ status: claimed(answer), result: undefined })
  return query('claim_sequence', claimSequenceText, values, read)
}

/** Sequences from the first to the last, both included. */
export type Range = readonly [first: bigint, last: bigint]

/** Ranges of sequences of one producer, in any order; those that are new, ascending. */
export function claimRanges(producer: string, ranges: readonly Range[], options: SequenceOptions) {
  const given = `{${ranges.map(([first, last]) => `[${first},${last}]`).join(',')}}`
  const values = [producer, given, options.epoch, options.strict, options.startAt]
  return query(
    'claim_ranges',
    `select once.claim_ranges($1, $2::pg_catalog.int8multirange, $3::pg_catalog.int4, $4::pg_catalog.bool,
                         $5::pg_catalog.int8)::pg_catalog.text`,
    values,
    (answer): readonly Range[] => {
      const found = one(answer)
      if (!/^\{(\[\d+,\d+\),?)*\}$/.test(found)) refuseAnswer(found, 'ranges of sequences')
      const parts = Array.from(found.matchAll(/\[(\d+),(\d+)\)/g))
      return parts.map(([, first = '', end = '']) => [BigInt(first), BigInt(end) - 1n])
    },
  )
}

/** The usual answer, which need not be parsed. */
const plainlyClaimed = '{"status":"claimed","result":null}'

export const claimKey = (scope: string, key: string, at: string | null, hash: string | null) =>
  query(
    'claim_key',
    `select pg_catalog.to_json(once.claim_key($1, $2, $3::pg_catalog.timestamptz, $4::pg_catalog.bytea))::pg_catalog.text`,
    [scope, key, at, hash],
    (answer): Claim => {
      if (answer.rows[0] === plainlyClaimed) return { status: 'claimed', result: undefined }
      const { status, result } = json<{ status?: unknown; result?: unknown }>(answer)
      return { status: statusOf(status), result: result ?? undefined }
    },
  )

/** One answer a key, in their order. */
export const claimKeys = (
  scope: string,
  keys: readonly string[],
  times: readonly (string | null)[],
  hashes: readonly (string | null)[],
) =>
  query(
    'claim_keys',
    'select once.claim_keys($1, $2::pg_catalog.text[], $3::pg_catalog.timestamptz[], $4::pg_catalog.bytea[])',
    [scope, arrayLiteral(keys), arrayOrNull(times), arrayOrNull(hashes)],
    (answer): readonly Claim[] => {
      if (one(answer) === 'claimed') return keys.map(() => ({ status: 'claimed', result: undefined }))
      const found = json<unknown[]>(answer)
      return Array.isArray(found) && found.length === keys.length
        ? found.map(claimOf)
        : refuseAnswer(found.length, `${keys.length} answers`)
    },
  )

const arrayOrNull = (values: readonly (string | null)[]) =>
  values.every((value) => value === null) ? null : arrayLiteral(values)

function claimOf(found: unknown): Claim {
  const isKept = typeof found === 'object' && found !== null && 'result' in found
  if (isKept) return { status: 'duplicate', result: found.result }
  return { status: statusOf(found), result: undefined }
}

function statusOf(found: unknown): ClaimStatus {
  if (found === 'claimed' || found === 'duplicate' || found === 'expired') return found
  return refuseAnswer(found, 'claimed, duplicate or expired')
}

/** Claim and effects in one round trip: the statements run if the claim is new. */
export const withEffects = (claim: Statement<Claim>) => (statements: readonly string[]) =>
  query(
    `${claim.name}_with_effects`,
    `select once.take_effect(${claim.name === 'claim_key' ? claimKeyCall : claimSequenceCall}, $${claim.values.length + 1}::pg_catalog.text[])`,
    [...claim.values, arrayLiteral(statements)],
    (answer): Claim => ({ status: statusOf(one(answer)), result: undefined }),
  )

export const keepResult = (scope: string, key: string, result: string, at: string | null) =>
  query('keep_result', keepText, [scope, key, result, at], nothing)

const keepText = 'select once.keep_result($1, $2, $3::pg_catalog.jsonb, $4::pg_catalog.timestamptz)'

// ---------------------------------------------------------------------------------------------------
// Positions

type Where = Required<Partition>

function positionOf(number: unknown, token: unknown): Position {
  if (typeof number === 'string') return BigInt(number)
  return typeof token === 'string' ? token : null
}

export const takePartition = ({ group, topic, partition }: Where, owner: string | null) =>
  query(
    'take_partition',
    `select pg_catalog.json_build_array(t.epoch, t."position"::pg_catalog.text, t.token)::pg_catalog.text
  from once.take_partition($1, $2, $3::pg_catalog.int4, $4) t`,
    [group, topic, partition, owner],
    (answer) => {
      const [epoch, number, token] = json<unknown[]>(answer)
      if (typeof epoch !== 'number') refuseAnswer(epoch, 'an epoch')
      return { epoch, position: positionOf(number, token) }
    },
  )

export const readPosition = ({ group, topic, partition }: Where) =>
  query(
    'read_position',
    `select pg_catalog.json_build_array(p.epoch, p."position"::pg_catalog.text, p.token, p.owner,
         pg_catalog.to_char(pg_catalog.timezone('UTC'::pg_catalog.text, p.updated_at), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'::pg_catalog.text))::pg_catalog.text
  from once.read_position($1, $2, $3::pg_catalog.int4) p`,
    [group, topic, partition],
    (answer) => {
      if (answer.rows.length === 0) return undefined
      const [epoch, number, token, owner, at] = json<unknown[]>(answer)
      if (typeof epoch !== 'number' || typeof at !== 'string') refuseAnswer(epoch, 'an epoch and a time')
      const by = typeof owner === 'string' ? owner : null
      return { position: positionOf(number, token), epoch, owner: by, updatedAt: new Date(at) }
    },
  )

/** A token is moved to a token, a number to a number. */
export const advance = (
  { group, topic, partition }: Where,
  epoch: number,
  expected: bigint | string | null,
  next: bigint | string,
) => {
  const [name, type] = typeof next === 'string' ? ['advance_token', ''] : ['advance', '::pg_catalog.int8']
  const text = `select once.${name}($1, $2, $3::pg_catalog.int4, $4::pg_catalog.int4, $5${type}, $6${type})`
  return query(name, text, [group, topic, partition, epoch, expected, next], nothing)
}

// ---------------------------------------------------------------------------------------------------
// Recovery: what a courier carries is JSON that SQL reads and writes

/** What a database wants to know, and what it has to tell. */
export const ask = (request: string) => query('ask', 'select once.ask($1::pg_catalog.text)', [request], list)

export const answer = (question: string) =>
  query('answer', 'select once.answer($1::pg_catalog.text)', [question], one)

/** What is to be done now, and what was. */
export const apply = (answers: string) =>
  query('apply', 'select once.apply($1::pg_catalog.text)', [answers], list)
