/** What the verbs of XA say when something goes wrong: its return codes, in words, with what to do. */
import { show } from '../check.ts'
import { codeOf } from '../errors.ts'
import { XaError, type XaErrorName } from './codes.ts'

/** Of a branch that is not prepared yet. */
export type State = 'active' | 'ended' | 'completing'

export function badFlags(verb: string, flags: unknown, expected: string): XaError {
  return new XaError('XAER_INVAL', `Expected the flags of ${verb} to be ${expected}, got ${show(flags)}`)
}

export function noSuspension(): XaError {
  return new XaError('XAER_RMERR', 'Postgres cannot suspend and resume transactions', {
    detail: 'TMSUSPEND and TMRESUME are not implemented; the branch is as it was.',
    hint: 'End with TMSUCCESS and go on with TMJOIN',
  })
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

export function improper(gid: string, state: State, hint?: string): XaError {
  const what = {
    active: 'is active',
    ended: 'is ended and not prepared',
    completing: 'is being completed',
  }
  return new XaError('XAER_PROTO', `Branch ${gid} ${what[state]}`, {
    detail:
      state === 'active' ? 'Only one may work in a branch at a time: work is not interleaved.' : undefined,
    hint: hint ?? (state === 'active' ? 'End it first' : undefined),
  })
}

export function unavailable(
  what: string,
  cause: unknown,
  left: (typeof whatIsLeft)[keyof typeof whatIsLeft] = whatIsLeft.prepared,
): XaError {
  return new XaError('XAER_RMFAIL', `${what}: ${(cause as Error).message}`, { ...left, cause })
}

/** What a lost connection means for the branch. */
export const whatIsLeft = {
  prepared: {
    detail: 'What is prepared stays prepared.',
    hint: 'Ask again once the database can be reached',
  },
  prepare: {
    detail: 'The branch is prepared or rolled back.',
    hint: 'Roll it back; a PREPARE still on its way can arrive later, so look again with recover',
  },
  commit: {
    detail: 'The branch is committed or rolled back, and Postgres does not say which.',
    hint: 'Look for what it wrote',
  },
  rollback: {
    detail: 'The branch is rolled back, at the latest when the server notices.',
    hint: undefined,
  },
} as const

/** The branch is rolled back, because of an error if there was one. */
export function rolledBack(gid: string, cause: unknown): XaError {
  if (cause === undefined) {
    return new XaError('XA_RBROLLBACK', `Branch ${gid} is rolled back: a statement in it had failed`, {
      hint: 'End a branch with TMFAIL if its work failed',
    })
  }
  const code = codeOf(cause) ?? ''
  const [, name, hint] = reasons.find(([pattern]) => pattern.test(code)) ?? fallback
  return new XaError(name, `Branch ${gid} is rolled back: ${(cause as Error).message}`, {
    detail: code === '' ? undefined : `SQLSTATE ${code}`,
    hint,
    cause,
  })
}

/** SQLSTATEs, what they are to XA, and what to do. */
type Reason = readonly [RegExp, XaErrorName, string?]

const fallback: Reason = [/^/, 'XA_RBOTHER']

const reasons: readonly Reason[] = [
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

/** The server's refusal to finish a prepared branch: whatever it is, the branch is still prepared, or not there. */
export function unfinished(verb: 'commit' | 'rollback', gid: string, cause: unknown): XaError {
  const code = codeOf(cause)
  if (code === '42704') return unknown(gid)
  if (code === '25001') return localTransaction(gid, cause)
  if (code === '55000' && verb === 'commit') {
    return new XaError('XA_RETRY', `Branch ${gid} is busy: another session is finishing it`, { cause })
  }
  const hints: Record<string, string> = {
    '42501': 'Connect as the role that prepared it (the owner in recover), or as a superuser',
    '0A000': 'Connect to the database that it was prepared in: see pg_prepared_xacts',
    '25006': 'Connect to the primary',
  }
  return new XaError('XAER_RMFAIL', `Branch ${gid} could not be finished: ${(cause as Error).message}`, {
    detail: `SQLSTATE ${code}; the branch is still prepared.`,
    hint: hints[code ?? ''],
    cause,
  })
}

export function localTransaction(gid: string, cause?: unknown): XaError {
  return new XaError('XAER_RMFAIL', `The connection for branch ${gid} has a local transaction open`, {
    detail:
      'Prepared transactions are finished outside of any. The local one is as it was, and the branch is still prepared.',
    hint: 'End local transactions before their connection goes back to the pool, or give the resource a pool of its own',
    cause,
  })
}
