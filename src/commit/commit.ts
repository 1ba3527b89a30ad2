/**
 * Committing a transaction whose handler has returned: in one phase if one database wrote, else in two.
 *
 * One of the databases that were written to is the home; it does not prepare. Its own ordinary transaction holds
 * the decision row (`once.begin_global`), so its COMMIT is the commit point: before it everything can be rolled
 * back, after it nothing can. There is no other log.
 *
 *     vote      home: decision row, gives the xid | others: did you write? evidence row     in parallel
 *     prepare   others: PREPARE TRANSACTION                                                 in parallel, 1 flush
 *     decide    home: COMMIT                                                                1 flush
 *     finish    others: COMMIT PREPARED                                                     in parallel, 1 flush
 *
 * Mostly nobody needs to be asked first; then the votes travel with PREPARE and the decision row with COMMIT.
 *
 * @see Gray, Lamport: Consensus on Transaction Commit, 2006, section 3 (two-phase commit)
 * @see sql/commit/
 */
import { type Database, inTime } from '../connection/database.ts'
import { literal } from '../connection/quote.ts'
import type { Session } from '../connection/session.ts'
import { environment } from '../environment.ts'
import { AbortedError, codeOf, isErrorAnswer, PgonceError } from '../errors.ts'
import type { Abortion } from './abortion.ts'
import type { Branch } from './branch.ts'
import { traced } from './channels.ts'
import { explained, lost, outcomeUnknown, reasonOf, refusalOf, swallowed } from './explain.ts'
import { formatGid, formatId, type GlobalId } from './gid.ts'
import { awaitOutcome } from './outcome.ts'
import { beginGlobal, castVote, collectVotes, knownHome, narrow, sendDecision, type Voting } from './votes.ts'

/** How long to wait for the answer to a question that only delays us. */
const patience = 10_000

/** Thrown while committing when the branches are dealt with already; what the caller gets is inside. */
export class Settled extends Error {
  readonly error: unknown
  /** Until then the connections are in use, and the caller need not wait for it. Never rejects. */
  readonly tidied: Promise<unknown>

  constructor(error: unknown, tidied: Promise<unknown> = Promise.resolve()) {
    super('the branches are dealt with')
    this.error = error
    this.tidied = tidied
  }
}

export interface Work extends Voting {
  /** Milliseconds to wait for the answer to COMMIT. */
  readonly answerTimeout: number
  readonly record: boolean
}

export interface Committed {
  readonly id: string | null
  /** Settles with the databases whose branch is left to recovery; undefined if there is nothing to finish. */
  readonly unfinished: Promise<readonly Database[]> | undefined
}

/** @throws Settled if the branches are dealt with; anything else: nothing is decided, roll back */
export async function commit(work: Work): Promise<Committed> {
  const [only] = work.branches
  if (only === undefined) return { id: null, unfinished: undefined }
  if (work.branches.length === 1) return await commitInOnePhase(work, only)

  const known = await knownHome(work)
  if (known) return await commitInTwoPhases(work, known.home, known.xid, known.others, true)

  const { home, xid, writers, readers } = await collectVotes(work)
  // First, because a serializable transaction that only read may still fail.
  await work.aborted.race(Promise.all(readers.map((reader) => commitReader(reader))))
  if (home === undefined) return { id: null, unfinished: undefined }
  if (writers.length === 0 || xid === null) {
    await work.aborted.race(narrow(home, []))
    return await commitInOnePhase(work, home)
  }
  return await commitInTwoPhases(work, home, xid, writers, false)
}

/** One database wrote: its plain COMMIT is the decision. */
async function commitInOnePhase(work: Work, branch: Branch): Promise<Committed> {
  let id: string | null = null
  if (work.record) {
    const xid = await work.aborted.race(beginGlobal(branch, []))
    if (xid !== null) id = formatId(globalOf(branch, xid))
  } else if (branch.suspect && (branch.session.pipelines || !branch.database.takesSeveral)) {
    const checked = explained(
      branch,
      branch.send('select once.assert_branch($1::uuid)', [branch.transactionId]),
    )
    await work.aborted.race(checked)
  }
  const decision = await decide(work, branch, commitAloneOf(branch))
  if (decision.outcome === 'committed') return { id, unfinished: undefined }
  if (decision.outcome === 'aborted') throw decision.error
  if (isLoss(decision.error)) throw lost(branch, decision.error)
  branch.session.abandon()
  throw new Settled(outcomeUnknown(id, branch, decision.error))
}

function globalOf({ databaseId, transactionId }: Branch, homeXid: string): GlobalId {
  return { home: databaseId, transactionId, homeXid }
}

async function commitReader(reader: Branch): Promise<void> {
  const { command } = await explained(reader, reader.query('commit'))
  if (command !== undefined && command !== 'COMMIT') throw swallowed(reader)
}

async function commitInTwoPhases(
  work: Work,
  home: Branch,
  xid: string,
  writers: readonly Branch[],
  together: boolean,
): Promise<Committed> {
  const global = globalOf(home, xid)
  const id = formatId(global)
  const gidOf = (branch: Branch) => literal(formatGid(global, branch.database.name))

  const answers = await Promise.allSettled(
    writers.map((writer) => {
      const prepared = together
        ? voteAndPrepare(writer, global.home, gidOf(writer))
        : prepare(writer, gidOf(writer))
      return work.aborted.race(prepared)
    }),
  )
  const failed = answers.find((answer) => answer.status === 'rejected')
  if (failed?.status === 'rejected') {
    const prepared = writers.filter((_, index) => answers[index]?.status === 'fulfilled')
    const refused = writers.filter((_, index) => {
      const answer = answers[index]
      return answer?.status === 'rejected' && isRefusal(answer.reason)
    })
    // Without an answer it may be prepared, now or later: only recovery can tell.
    for (const writer of writers)
      if (!prepared.includes(writer) && !refused.includes(writer)) writer.session.abandon()
    throw new Settled(failed.reason, undo(home, prepared, refused, gidOf))
  }

  if (together) {
    // Who in fact wrote nothing has left no evidence; it is prepared and finished all the same.
    const evident = writers.filter((_, index) => {
      const answer = answers[index]
      return answer?.status === 'fulfilled' && answer.value
    })
    // Travels with COMMIT; decide() waits for both.
    await sendDecision(home, evident)
  }
  let decision = await decide(work, home, commitOf(home))
  if (decision.outcome === 'unknown') {
    home.session.abandon()
    const answer = await awaitOutcome(home.database, global, work.answerTimeout)
    if (answer === undefined) throw new Settled(outcomeUnknown(id, home, decision.error))
    decision =
      answer === 'committed'
        ? { outcome: 'committed' }
        : { outcome: 'aborted', error: lost(home, decision.error) }
  }
  if (decision.outcome === 'aborted') {
    // The server said so: the home's row was never visible, and never will be. What comes before COMMIT in one text
    // may have failed instead of it, and then the home is left inside a failed transaction.
    const tidied = Promise.all([
      rollBack([home]),
      ...writers.map((writer) => finish(writer, `rollback prepared ${gidOf(writer)}`)),
    ])
    throw new Settled(decision.error, tidied)
  }
  const unfinished = Promise.all(
    writers.map(async (writer) => {
      const finished = await finish(writer, `commit prepared ${gidOf(writer)}`)
      return finished ? [] : [writer.database]
    }),
  ).then((databases) => databases.flat())
  return { id, unfinished }
}

/** Whether a statement was not even sent, since the connection was lost before. */
function isLoss(error: unknown): boolean {
  return error instanceof AbortedError && error.code === 'CONNECTION_LOST'
}

/** Whether an error says for certain that the branch is not prepared. */
function isRefusal(error: unknown): boolean {
  return isErrorAnswer(error) || (error instanceof PgonceError && !(error instanceof AbortedError))
}

/** Vote and PREPARE in one round trip; if the vote fails, so does PREPARE. Gives the vote. */
async function voteAndPrepare(branch: Branch, home: string, gid: string): Promise<boolean> {
  const [vote, prepared] = await Promise.allSettled([castVote(branch, home), prepare(branch, gid)])
  if (prepared.status === 'rejected' && !isRefusal(prepared.reason)) throw prepared.reason
  if (vote.status === 'rejected') throw vote.reason
  if (prepared.status === 'rejected') throw prepared.reason
  return vote.value
}

async function prepare(branch: Branch, gid: string): Promise<true> {
  await traced('prepare', branch, async () => {
    const { command } = await branch.query(`prepare transaction ${gid}`).catch((error: unknown) => {
      throw refusalOf(branch, error)
    })
    if (command === 'PREPARE TRANSACTION') return
    if (command === undefined) {
      // No tag from this dialect: in a failed transaction PREPARE rolls back and reports no error, so look.
      const { rows } = await branch.query(`select from pg_prepared_xacts where gid = ${gid}`)
      if (rows.length === 1) return
    }
    throw swallowed(branch)
  })
  return true
}

/**
 * Nothing was decided, and since this coordinator never sent COMMIT to the home, nothing will be. Still a
 * branch is rolled back only when the home has confirmed that its transaction is over; otherwise, or when it
 * is not known whether a branch is prepared, recovery asks and finishes.
 */
async function undo(
  home: Branch,
  prepared: readonly Branch[],
  refused: readonly Branch[],
  gidOf: (branch: Branch) => string,
): Promise<void> {
  const over = await inTime(patience, home.query('rollback')).then(
    () => true,
    () => false,
  )
  if (!over) home.session.abandon()
  await Promise.all([
    ...(over ? prepared.map((branch) => finish(branch, `rollback prepared ${gidOf(branch)}`)) : []),
    rollBack(refused),
  ])
}

type Decision =
  | { readonly outcome: 'committed' }
  | { readonly outcome: 'aborted' | 'unknown'; readonly error: unknown }

/**
 * COMMIT, with what was sent just before it. An ERROR from the server is a rollback for certain. Anything else
 * that is no answer is unknown, FATAL included: a server that shuts down may say it after committing.
 */
async function decide({ answerTimeout }: Work, branch: Branch, commitText: string): Promise<Decision> {
  return await traced('decide', branch, async (): Promise<Decision> => {
    const [before, commit] = await Promise.allSettled([
      inTime(answerTimeout, branch.settle()),
      inTime(answerTimeout, branch.session.query(commitText)),
    ])
    if (before.status === 'rejected' && isRefusal(before.reason)) {
      return { outcome: 'aborted', error: reasonOf(branch, before.reason) }
    }
    if (commit.status === 'rejected') {
      return isErrorAnswer(commit.reason)
        ? { outcome: 'aborted', error: reasonOf(branch, commit.reason) }
        : { outcome: 'unknown', error: commit.reason }
    }
    const { command } = commit.value
    if (command !== undefined && command !== 'COMMIT') return { outcome: 'aborted', error: swallowed(branch) }
    return { outcome: 'committed' }
  })
}

/**
 * Some drivers answer neither with a command tag nor notice that a connection was lost and opened anew: COMMIT
 * would be a success there, of nothing. In one text with the check it is refused instead.
 */
function commitOf({ session, database, transactionId }: Branch): string {
  if (session.pipelines || !database.takesSeveral) return 'commit'
  return `select once.assert_branch('${transactionId}'); commit`
}

/**
 * COMMIT where nobody has voted, so that nothing has asked for the role yet. One that a handler has set for the whole
 * session, and no command tag tells (`set_config`, in a function or not), would stay on a connection that goes back to
 * its pool. Before COMMIT in one text, RESET ROLE costs no message more, and if it fails nothing is committed. It is
 * for connections of our own; a caller's may have been given a role on purpose.
 */
function commitAloneOf(branch: Branch): string {
  if (branch.session.isOwn) return 'reset role; commit'
  if (branch.session.pipelines) return `select once.assert_branch('${branch.transactionId}'); commit`
  return commitOf(branch)
}

/**
 * Commits or rolls back a prepared branch on the connection that prepared it. False: left to recovery. Never
 * throws, for the decision is made.
 */
async function finish(branch: Branch, statement: string): Promise<boolean> {
  const { session, transactionId } = branch
  return await traced('finish', branch, async () => {
    try {
      return await inTime(patience, finishPrepared(session, statement, transactionId))
    } catch {
      session.abandon()
      return false
    }
  })
}

/**
 * Runs COMMIT PREPARED or ROLLBACK PREPARED; false if it is not known to have happened. Recovery uses it too.
 */
export async function finishPrepared(
  session: Session,
  statement: string,
  transactionId: string,
): Promise<boolean> {
  for (;;) {
    try {
      await session.query(statement)
      return true
    } catch (error) {
      const code = codeOf(error)
      if (code === '55000') {
        // Somebody else is finishing it right now, or PREPARE still waits for a standby.
        await environment.sleep(20)
      } else if (code === '42704') {
        // Somebody else has finished it, or it was lost. That it is gone proves nothing; evidence does.
        if (statement.startsWith('rollback')) return true
        const { rows } = await session.query('select from once.find_evidence(array[$1::uuid])', [
          transactionId,
        ])
        return rows.length === 1
      } else {
        throw error
      }
    }
  }
}

/**
 * Ends transactions that were not prepared; a connection that does not answer to it in time, or before the
 * transaction is given up, is given up with it.
 */
export async function rollBack(branches: readonly Branch[], aborted?: Abortion): Promise<void> {
  await Promise.all(
    branches.map(async (branch) => {
      if (aborted?.isOver()) return branch.session.abandon()
      try {
        // A role that the handler left behind a COMMIT of its own is not undone by ROLLBACK.
        const text = branch.session.isOwn && branch.suspect ? 'rollback; reset role' : 'rollback'
        const answer = inTime(patience, branch.query(text))
        await (aborted ? aborted.race(answer) : answer)
      } catch {
        branch.session.abandon()
      }
    }),
  )
}
