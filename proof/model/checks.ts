/**
 * What is asked of the model, and what must come out: the model holds, every mutant is refuted, for the property
 * that it breaks, and what is said to be possible is reached.
 *
 * @see protocol.pml for the flags
 */

/** As `protocol.pml` calls them; `orphan` is its formula `settles`. */
export type Property =
  | 'atomicity'
  | 'durability'
  | 'answer'
  | 'premature'
  | 'false_alarm'
  | 'silent_loss'
  | 'orphan'

export type Outcome = 'holds' | 'reached' | 'not reached' | 'incomplete' | `refuted: ${Property}`

export interface Check {
  readonly name: string
  readonly kind: 'model' | 'mutant' | 'limit' | 'witness'
  /** What is checked, or what the bug is. */
  readonly what: string
  readonly flags: readonly string[]
  /** Everything with weak fairness, instead of assertions. */
  readonly liveness?: true
  readonly expected: Outcome
  /** For --quick, if it takes too long; null: left out. */
  readonly quick?: readonly string[] | null
}

const small = ['BRANCHES=2', 'CRASHES=1']
const purging = ['PURGING', ...small]
const failover = ['PURGING', 'BRANCHES=2', 'CRASHES=0', 'FAILOVERS=1']

const models: readonly Check[] = [
  {
    name: 'commit',
    kind: 'model',
    what: 'home + 3 branches, 2 couriers, 3 crashes of the home, a squatter',
    flags: ['SQUAT', 'BRANCHES=3', 'CRASHES=3'],
    expected: 'holds',
  },
  {
    name: 'purging',
    kind: 'model',
    what: 'home + 3 branches, 2 couriers, 3 crashes; they prove, purge and audit',
    flags: ['PURGING', 'BRANCHES=3', 'CRASHES=3'],
    expected: 'holds',
    quick: ['PURGING', 'BRANCHES=3', 'CRASHES=1'],
  },
  {
    name: 'failover',
    kind: 'model',
    what: 'home + 3 branches, one courier at a time, one failover of any server; the same',
    flags: ['PURGING', 'BRANCHES=3', 'CRASHES=0', 'FAILOVERS=1', 'COURIERS=1'],
    expected: 'holds',
  },
  {
    name: 'failover-crashes',
    kind: 'model',
    what: 'home + 2 branches, 2 couriers, a failover and 3 crashes',
    flags: ['PURGING', 'BRANCHES=2', 'CRASHES=3', 'FAILOVERS=1'],
    expected: 'holds',
    quick: null,
  },
  {
    name: 'ends',
    kind: 'model',
    what: 'no orphan: home + 3 branches, 3 deaths of couriers or crashes of the home',
    flags: ['LIVE', 'SQUAT', 'BRANCHES=3', 'CRASHES=3'],
    liveness: true,
    expected: 'holds',
    quick: ['LIVE', 'SQUAT', 'BRANCHES=2', 'CRASHES=2'],
  },
  {
    name: 'ends-purging',
    kind: 'model',
    what: 'nothing is left behind: home + 2 branches, 1 crash',
    flags: ['LIVE', 'PURGING', 'BRANCHES=2', 'CRASHES=1'],
    liveness: true,
    expected: 'holds',
    quick: ['LIVE', 'PURGING', 'BRANCHES=2', 'CRASHES=0'],
  },
  {
    name: 'ends-failover',
    kind: 'model',
    what: 'every loss is recorded in the end: home + 2 branches, a failover',
    flags: ['LIVE', 'PURGING', 'BRANCHES=2', 'CRASHES=0', 'FAILOVERS=1'],
    liveness: true,
    expected: 'holds',
    quick: null,
  },
  {
    name: 'redundant-confirmation',
    kind: 'model',
    what: 'the undo need not wait for the home, as long as COMMIT was not sent',
    flags: ['REDUNDANT_CONFIRMATION', 'SQUAT', 'BRANCHES=3', 'CRASHES=1'],
    expected: 'holds',
  },
]

function mutant(
  name: string,
  flags: readonly string[],
  property: Property,
  what: string,
  more: Partial<Check> = {},
): Check {
  const flag = `MUTANT_${name.replaceAll('-', '_').toUpperCase()}`
  const only = more.liveness ? [] : [`ONLY=${property}`]
  return {
    name,
    kind: 'mutant',
    what,
    flags: [...flags, ...only, flag],
    expected: `refuted: ${property}`,
    ...more,
  }
}

const mutants: readonly Check[] = [
  mutant('row-first', small, 'atomicity', 'the row is read before the status'),
  mutant('by-age', small, 'atomicity', 'a branch that is old is rolled back'),
  mutant('status', small, 'atomicity', '"committed" is taken from pg_xact_status'),
  mutant('async-home', small, 'durability', 'the home commits with synchronous_commit off'),
  mutant('purge-early', purging, 'premature', 'a decision is marked proven without evidence'),
  mutant('42704', failover, 'silent_loss', '"does not exist" is taken for "is committed"'),
  mutant('rollback-after-commit', small, 'atomicity', 'a failed COMMIT PREPARED rolls the others back'),
  mutant('one-shot', ['LIVE', ...small], 'orphan', 'recovery looks once, not again and again', {
    liveness: true,
  }),
  mutant('evidence-outside', purging, 'premature', 'evidence is inserted by a transaction of its own'),
  mutant('no-xid', [...small, 'SQUAT'], 'atomicity', 'a decision is recognised by its id without the xid'),
  mutant('standby', small, 'atomicity', 'a standby may answer'),
  mutant('pending', small, 'atomicity', 'no row is taken for aborted while the xid is in progress'),
  mutant('lost-answer', small, 'atomicity', 'a COMMIT without an answer is taken for aborted'),
  mutant('tag', small, 'atomicity', 'the tag ROLLBACK in answer to PREPARE is not noticed'),
  mutant('no-mark', purging, 'answer', 'once.outcome does not look at the mark of the purged'),
  mutant('audit-order', purging, 'false_alarm', 'evidence is read before the list of prepared transactions'),
  mutant(
    'no-recheck',
    purging,
    'false_alarm',
    'a lost branch is recorded without a second look at the decision',
  ),
  mutant(
    'no-recheck-evidence',
    purging,
    'false_alarm',
    'a lost decision is recorded without a second look at the evidence',
  ),
  mutant('purge-order', purging, 'false_alarm', 'the decision is deleted before the evidence'),
  mutant('async-mark', purging, 'false_alarm', 'the mark "confirmed" is not flushed before evidence goes'),
  mutant('one-look', failover, 'silent_loss', 'evidence is not looked for again before it is deleted'),
  mutant('one-wait', failover, 'false_alarm', 'evidence is deleted as soon as it was looked for again'),
  mutant('any-look', failover, 'silent_loss', 'an answer to the first look is taken for one to the second'),
  mutant('silent', purging, 'premature', 'a participant that has not answered is not waited for'),
  mutant('unasked', purging, 'false_alarm', 'evidence is asked for before the decision was read'),
  mutant('async-delete', purging, 'false_alarm', 'deleted evidence is not flushed before the decision goes'),
]

const limits: readonly Check[] = [
  {
    name: 'lag',
    kind: 'limit',
    what: 'a standby lags more than half of `keep`, and loses a branch that is being purged: not noticed',
    flags: [...failover, 'LIMIT_LAG', 'ONLY=silent_loss'],
    expected: 'refuted: silent_loss',
  },
  {
    name: 'lag-in-doubt',
    kind: 'limit',
    what: 'it loses only the COMMIT PREPARED, and the decision is purged before anybody looks',
    flags: [...failover, 'LIMIT_LAG', 'ONLY=atomicity'],
    expected: 'refuted: atomicity',
  },
  {
    name: 'acknowledged',
    kind: 'limit',
    what: 'a failover of the home takes the acknowledged commit with it before any branch is committed',
    flags: [...failover, 'LIMIT_ACKNOWLEDGED'],
    expected: 'refuted: silent_loss',
  },
]

function witness(name: string, flags: readonly string[], what: string): Check {
  const flag = `WITNESS_${name.replaceAll('-', '_').toUpperCase()}`
  return { name: `reach-${name}`, kind: 'witness', what, flags: [...flags, flag], expected: 'reached' }
}

const witnesses: readonly Check[] = [
  witness('commit', small, 'acknowledged, and every branch committed'),
  witness('recovered-commit', small, 'the coordinator is dead, recovery commits every branch'),
  witness('recovered-abort', small, 'the coordinator is dead, recovery rolls every branch back'),
  witness('late-prepare', small, 'a PREPARE that arrives after all others were rolled back'),
  witness('reused-xid', small, 'a stranger commits with our xid while a branch is in doubt'),
  witness('crashes', ['BRANCHES=2', 'CRASHES=3'], 'three crashes of the home, and an abort after them'),
  witness('asked', small, 'the answer to COMMIT is lost, the coordinator asks and hears committed'),
  witness('squatted', [...small, 'SQUAT'], 'a squatter makes the home fail, and everything is rolled back'),
  witness('purged', purging, 'everything committed, proven and purged'),
  witness('lost-branch', failover, 'a failover loses a branch, the audit records it'),
  witness(
    'late-answer',
    failover,
    'evidence that is lost again is applied all the same, and the second look finds the loss',
  ),
  witness('lost-decision', failover, 'a failover loses the decision, the audit records it'),
]

export const checks: readonly Check[] = [...models, ...mutants, ...limits, ...witnesses]
