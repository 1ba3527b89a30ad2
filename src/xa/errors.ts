/** What the verbs of XA say when something goes wrong: its return codes, in words, with what to do. */
import { show } from '../check.ts'
import { codeOf, PgonceError, type PgonceErrorOptions } from '../errors.ts'
import * as codes from './codes.ts'

const numbers = { ...codes }

/** The codes that the verbs throw; `XA_OK` and `XA_RDONLY` are returned. */
export type XaErrorName = Exclude<
  keyof typeof codes & ('XA_RETRY' | `XA_RB${string}` | `XAER_${string}`),
  'XA_RBBASE' | 'XA_RBEND' | 'XA_RBCOMMFAIL' | 'XAER_ASYNC'
>

/**
 * What a verb that did not succeed throws. `code` is the name of the XA code, as in `XAER_NOTA`, and `xaCode` its
 * number, to hand on to a transaction manager. What the server or the network said is the `cause`.
 */
export class XaError extends PgonceError {
  declare readonly code: XaErrorName
  readonly xaCode: (typeof codes)[XaErrorName]

  constructor(code: XaErrorName, message: string, options: PgonceErrorOptions = {}) {
    super(code, message, options)
    this.xaCode = numbers[code]
  }

  /** Whether the branch is rolled back for certain (`XA_RB*`). */
  get isRollback(): boolean {
    return this.xaCode >= codes.XA_RBBASE && this.xaCode <= codes.XA_RBEND
  }
}

/** Of a branch that is not prepared yet: what is said to a verb that has no place in it, and what to do. */
const states = {
  active: ['is active: only one may work in it at a time', 'End it first'],
  ended: ['is ended and not prepared', 'Prepare it first'],
  completing: ['is being completed', undefined],
} as const

export type State = keyof typeof states

export function improper(gid: string, state: State): XaError {
  const [what, hint] = states[state]
  return new XaError('XAER_PROTO', `Branch ${gid} ${what}`, { hint })
}

/** @throws XaError `XAER_INVAL`; `XAER_RMERR` for what Postgres does not have */
export function checkFlags(verb: string, flags: unknown, allowed: readonly number[], expected: string): void {
  if ((verb === 'start' && flags === codes.TMRESUME) || (verb === 'end' && flags === codes.TMSUSPEND)) {
    throw new XaError('XAER_RMERR', 'Postgres cannot suspend and resume transactions', {
      detail: 'TMSUSPEND and TMRESUME are not implemented; the branch is as it was.',
      hint: 'End with TMSUCCESS and go on with TMJOIN',
    })
  }
  if (!allowed.includes(flags as number))
    throw new XaError('XAER_INVAL', `Expected the flags of ${verb} to be ${expected}, got ${show(flags)}`)
}

export function duplicate(gid: string): XaError {
  return new XaError('XAER_DUPID', `There is a branch ${gid} already`, {
    detail: 'Xids are unique among all databases of a server.',
    hint: 'Give each branch a bqual of its own',
  })
}

export function unknown(gid: string): XaError {
  return new XaError('XAER_NOTA', `There is no branch ${gid}`, {
    detail: 'It was finished, was rolled back, or never was. Which of these, Postgres does not remember.',
  })
}

/** @param verb of a branch that is not prepared yet; else it is prepared, or was never begun */
export function unavailable(what: string, cause: unknown, verb?: keyof typeof whatIsLeft): XaError {
  const [detail, hint] =
    verb === undefined
      ? ['What is prepared stays prepared.', 'Ask again once the database can be reached']
      : whatIsLeft[verb]
  return new XaError('XAER_RMFAIL', `${what}: ${(cause as Error).message}`, { detail, hint, cause })
}

/** What a connection that is lost in a verb means for the branch. */
const whatIsLeft = {
  prepare: [
    'The branch is prepared or rolled back.',
    'Roll it back; a PREPARE still on its way can arrive later, so look again with recover',
  ],
  commit: [
    'The branch is committed or rolled back, and Postgres does not say which.',
    'Look for what it wrote',
  ],
  rollback: ['The branch is rolled back, at the latest when the server notices.', undefined],
} as const

/** SQLSTATEs of what rolls a branch back, what they are to XA, and what to do. */
const reasons: readonly (readonly [RegExp, XaErrorName, string?])[] = [
  [/^(23|40002)/, 'XA_RBINTEGRITY'],
  [/^40P01/, 'XA_RBDEADLOCK', 'Do the branch again'],
  [/^40001/, 'XA_RBTRANSIENT', 'Do the branch again'],
  [
    /^53200/,
    'XA_RBTRANSIENT',
    'If the slots are full, look for orphans in pg_prepared_xacts, or raise max_prepared_transactions',
  ],
  [/^53/, 'XA_RBTRANSIENT'],
  [/^(57014|55P03)/, 'XA_RBTIMEOUT'],
  [/^42710/, 'XA_RBPROTO', 'Another branch is prepared under this xid; give each branch a bqual of its own'],
  [
    /^0A000/,
    'XA_RBOTHER',
    'Leave NOTIFY, LISTEN, temporary tables, WITH HOLD cursors and exported snapshots out of branches',
  ],
  [/^55000/, 'XA_RBOTHER', 'alter system set max_prepared_transactions = 100; and restart the server'],
]

/** The branch is rolled back, because of an error if there was one. */
export function rolledBack(gid: string, cause: unknown): XaError {
  if (cause === undefined) {
    return new XaError('XA_RBROLLBACK', `Branch ${gid} is rolled back: a statement in it had failed`, {
      hint: 'End a branch with TMFAIL if its work failed',
    })
  }
  const code = codeOf(cause) ?? ''
  const [, name, hint] = reasons.find(([pattern]) => pattern.test(code)) ?? [/^/, 'XA_RBOTHER']
  const options = { detail: code === '' ? undefined : `SQLSTATE ${code}`, hint, cause }
  return new XaError(name, `Branch ${gid} is rolled back: ${(cause as Error).message}`, options)
}

export function endedWithFail(gid: string): XaError {
  return new XaError('XA_RBROLLBACK', `Branch ${gid} was ended with TMFAIL`)
}

/** What to do about a refusal to finish a branch, by SQLSTATE. */
const refusals: Readonly<Record<string, string>> = {
  '42501': 'Connect as the role that prepared it (the owner in recover), or as a superuser',
  '0A000': 'Connect to the database that it was prepared in: see pg_prepared_xacts',
  '25006': 'Connect to the primary',
}

/** The server's refusal to finish a prepared branch: whatever it is, the branch is still prepared, or not there. */
export function unfinished(verb: 'commit' | 'rollback', gid: string, cause: unknown): XaError {
  const code = codeOf(cause) ?? ''
  if (code === '42704') return unknown(gid)
  if (code === '25001') return localTransaction('XAER_RMFAIL', gid, cause)
  if (code === '55000' && verb === 'commit')
    return new XaError('XA_RETRY', `Branch ${gid} is busy: another session is finishing it`, { cause })
  return new XaError('XAER_RMFAIL', `Branch ${gid} could not be finished: ${(cause as Error).message}`, {
    detail: `SQLSTATE ${code}; the branch is still prepared.`,
    hint: refusals[code],
    cause,
  })
}

/** @param code `XAER_OUTSIDE` of a branch that begins, `XAER_RMFAIL` of one that is prepared and stays so */
export function localTransaction(code: XaErrorName, gid: string, cause?: unknown): XaError {
  return new XaError(code, `The connection for branch ${gid} has a local transaction open`, {
    detail:
      'Somebody has begun a transaction on it and not ended it. Neither that nor the branch was touched.',
    hint: 'End local transactions before their connection goes back to the pool, or give the resource a pool of its own',
    cause,
  })
}
