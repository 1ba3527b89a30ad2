/**
 * Committing a transaction whose handler has returned: in one phase if one database wrote, else in two.
 *
 * One of the databases that were written to is the home; it does not prepare. Its own ordinary transaction holds
 * the decision row, so its COMMIT is the commit point: before it everything can be rolled back, after it nothing can.
 * There is no other log.
 *
 *     learn     who wrote, and the home's xid: only those are asked of whom it is not known     in parallel
 *     prepare   others: evidence row and PREPARE TRANSACTION, in one text                       in parallel, 1 flush
 *     decide    home: decision row and COMMIT, in one text                                      1 flush
 *     finish    others: COMMIT PREPARED                                                         in parallel, 1 flush
 *
 * @see Gray, Lamport: Consensus on Transaction Commit, 2006, section 3 (two-phase commit)
 * @see sql/commit/
 */
import { inTime } from '../connection/database.ts'
import { type Link, wasNeverSent } from '../connection/link.ts'
import { AbortedError, isErrorAnswer, PgonceError } from '../errors.ts'
import type { TransactionSettings } from '../options.ts'
import * as say from '../statements.ts'
import type { Branch } from './branch.ts'
import { traced } from './channels.ts'
import type { Deadline } from './deadline.ts'
import { lost, outcomeUnknown, reasonOf, refusalOf, swallowed } from './explain.ts'
import { finishPrepared } from './finish.ts'
import { formatGid, formatId } from './gid.ts'
import { awaitOutcome } from './outcome.ts'

/** How long to wait for the answer to a question that only delays us. */
const patience = 10_000

/** Thrown while committing when the branches are dealt with already; what the caller gets is inside. */
export class Settled {
  readonly error: unknown
  /** Until then the connections are in use, and the caller need not wait for it. Never rejects. */
  readonly tidied: Promise<unknown>

  constructor(error: unknown, tidied: Promise<unknown> = Promise.resolve()) {
    this.error = error
    this.tidied = tidied
  }
}

export interface Work {
  readonly branches: readonly Branch[]
  /** Cuts waiting short when the transaction is given up. */
  readonly deadline: Deadline
  /** `timeout` is also how long the answer to COMMIT is waited for. */
  readonly settings: TransactionSettings
  /** Nothing was changed, and whoever waits knows all that there is to know: a duplicate. */
  readonly isVoid: boolean
}

export interface Committed {
  readonly id: string | null
  /** Whether every branch is committed, or one is left to recovery; undefined if there is nothing to finish. */
  readonly isFinished: Promise<boolean> | undefined
}

/** @throws Settled if the branches are dealt with; anything else: nothing is decided, roll back */
export async function commit(work: Work): Promise<Committed> {
  const { branches, deadline, settings } = work
  const { record } = settings
  const [only] = branches
  if (only === undefined) return { id: null, isFinished: undefined }
  const fences = branches.flatMap((branch) => branch.obeyFence() ?? [])
  if (fences.length > 0) await deadline.race(Promise.all(fences))
  if (work.isVoid) {
    await Promise.all(branches.map((branch) => leave(branch, deadline)))
    return { id: null, isFinished: undefined }
  }
  if (branches.length === 1 && !record) return await commitAlone(work, only)

  const home = await findHome(work)
  const writers = branches.filter(({ wrote }) => wrote)
  const readers = branches.filter(({ wrote }) => !wrote)
  // First, because a serializable transaction that only read may still fail.
  await deadline.race(Promise.all(readers.map((reader) => commitReader(reader))))
  if (home === undefined || home.xid == null) return { id: null, isFinished: undefined }
  if (writers.length === 1 && !record) return await commitAlone(work, home)
  const { databaseId, transactionId, xid } = home
  const global = { home: databaseId, transactionId, homeXid: xid }
  const others = writers.filter((writer) => writer !== home)
  return await commitInTwoPhases(work, home, global, others)
}

/** Asks who wrote where no statement has shown it, and the home for its xid; undefined if nobody wrote. */
async function findHome({ branches, deadline, settings }: Work): Promise<Branch | undefined> {
  for (let candidates = branches; ; ) {
    // The preferred database, else the first that was used.
    const home = candidates.find(({ database }) => database.name === settings.home) ?? candidates[0]
    if (home === undefined) return undefined
    await deadline.race(Promise.all(candidates.map((branch) => branch.learn(branch === home))))
    if (home.wrote) return home
    // It wrote nothing here after all: as home it would be one participant more.
    candidates = candidates.filter(({ wrote }) => wrote)
  }
}

/**
 * Ends a transaction in which nothing happened, and fails for nothing. With the second net nobody waits for it: whoever
 * uses the connection next stands in line behind it, and if it is lost, so is what they sent.
 */
async function leave(branch: Branch, deadline: Deadline): Promise<void> {
  const { link } = branch
  if (link.isDirect) link.send(say.rollback()).catch(() => link.abandon())
  else await isRolledBack(branch, deadline)
}

/** One database wrote: its plain COMMIT is the decision. */
async function commitAlone(work: Work, branch: Branch): Promise<Committed> {
  const decision = await decide(work, branch, say.commit(branch.link, branch.transactionId))
  if (decision.outcome === 'committed') return { id: null, isFinished: undefined }
  if (decision.outcome === 'aborted') throw decision.error
  branch.link.abandon()
  throw new Settled(outcomeUnknown(null, branch, decision.error))
}

async function commitReader(reader: Branch): Promise<void> {
  await reader.settle()
  const asked = reader.ask(say.commit(reader.link, reader.transactionId))
  const committed = await asked.catch((error: unknown) => {
    throw reasonOf(reader, error)
  })
  if (!committed) throw swallowed(reader)
}

async function commitInTwoPhases(
  work: Work,
  home: Branch,
  global: say.GlobalId,
  writers: readonly Branch[],
): Promise<Committed> {
  const id = formatId(global)
  const gidOf = (branch: Branch) => formatGid(global, branch.database.name)
  const participants = writers.map(({ database, databaseId }) => ({ name: database.name, databaseId }))

  const prepared: Branch[] = []
  const refused: Branch[] = []
  const failures: unknown[] = []
  const prepareOne = async (writer: Branch) => {
    try {
      await work.deadline.race(prepare(writer, global, gidOf(writer)))
      prepared.push(writer)
    } catch (error) {
      failures.push(error)
      if (isRefusal(error)) refused.push(writer)
      // Without an answer it may be prepared, now or later: only recovery can tell.
      else writer.link.abandon()
    }
  }
  await Promise.all(writers.map(prepareOne))
  if (failures.length > 0) throw new Settled(failures[0], undo(home, prepared, refused, gidOf))

  const { link } = home
  let decision = await decide(work, home, say.decide(link, global, participants))
  if (decision.outcome === 'unknown') {
    link.abandon()
    const answer = await awaitOutcome(home.database, global, work.settings.timeout)
    if (answer === undefined) throw new Settled(outcomeUnknown(id, home, decision.error))
    decision = { outcome: answer, error: lost(home, decision.error) }
  }
  if (decision.outcome === 'aborted') {
    // The server said so: the home's row was never visible, and never will be. What comes before COMMIT in one text
    // may have failed instead of it, and then the home is left inside a failed transaction.
    const finishes = writers.map((writer) => finish(writer, 'rollback', gidOf(writer)))
    throw new Settled(decision.error, Promise.all([rollBack([home]), ...finishes]))
  }
  if (writers.length === 0) return { id, isFinished: undefined }
  const finishes = writers.map((writer) => finish(writer, 'commit', gidOf(writer)))
  return { id, isFinished: Promise.all(finishes).then((all) => all.every((isDone) => isDone)) }
}

/** Whether an error says for certain that the branch is not prepared. */
function isRefusal(error: unknown): boolean {
  return isErrorAnswer(error) || (error instanceof PgonceError && !(error instanceof AbortedError))
}

async function prepare(branch: Branch, global: say.GlobalId, gid: string): Promise<void> {
  const { link, database, databaseId } = branch
  const participant = { name: database.name, databaseId }
  await traced('prepare', branch, async () => {
    const [before, prepared] = await Promise.allSettled([
      branch.settle(),
      branch.ask(say.prepare(link, global, participant, gid)),
    ])
    if (prepared.status === 'fulfilled') {
      if (!prepared.value) throw swallowed(branch)
      return
    }
    if (!isRefusal(prepared.reason)) throw prepared.reason
    // What was sent ahead and failed explains why PREPARE did.
    if (before.status === 'rejected' && isRefusal(before.reason)) throw reasonOf(branch, before.reason)
    throw refusalOf(branch, prepared.reason)
  })
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
  const isOver = await isRolledBack(home)
  const confirmed = isOver ? prepared : []
  const finishes = confirmed.map((branch) => finish(branch, 'rollback', gidOf(branch)))
  await Promise.all([...finishes, rollBack(refused)])
}

/** With the error of those that did not commit. */
interface Decision {
  readonly outcome: 'committed' | 'aborted' | 'unknown'
  readonly error?: unknown
}

/**
 * COMMIT, with what was sent just before it. An ERROR from the server is a rollback for certain. Anything else
 * that is no answer is unknown, FATAL included: a server that shuts down may say it after committing.
 */
async function decide(
  { settings }: Work,
  branch: Branch,
  statement: say.Statement<boolean>,
): Promise<Decision> {
  return await traced('decide', branch, async (): Promise<Decision> => {
    try {
      const committed = await inTime(settings.timeout, branch.link.send(statement))
      return committed ? { outcome: 'committed' } : { outcome: 'aborted', error: swallowed(branch) }
    } catch (error) {
      if (isErrorAnswer(error)) {
        // What was sent ahead and failed explains why COMMIT did; its answer may come later, where a driver sent it anew.
        const refusal = await inTime(patience, branch.settle()).catch((before: unknown) => before)
        return { outcome: 'aborted', error: reasonOf(branch, isRefusal(refusal) ? refusal : error) }
      }
      return wasNeverSent(error)
        ? { outcome: 'aborted', error: lost(branch, error) }
        : { outcome: 'unknown', error }
    }
  })
}

/**
 * Commits or rolls back a prepared branch on the connection that prepared it. False: not known to have happened, and
 * left to recovery. Never throws, for the decision is made.
 */
async function finish(branch: Branch, verb: 'commit' | 'rollback', gid: string): Promise<boolean> {
  const { link, transactionId } = branch
  const run = async () => {
    if ((await finishPrepared(link, say.finish(verb, gid))) || verb === 'rollback') return true
    return await link.send(say.findEvidence(transactionId))
  }
  return await traced('finish', branch, async () => {
    try {
      return await inTime(patience, run())
    } catch {
      link.abandon()
      return false
    }
  })
}

/** On a connection of ours what outlives a rollback goes as well; on a caller's it is the caller's. */
const sayRollback = (link: Link) => (link.isOwn ? say.rollbackDirect() : say.rollback())

/** Ends transactions that were not prepared. */
export async function rollBack(branches: readonly Branch[], deadline?: Deadline): Promise<void> {
  await Promise.all(branches.map((branch) => isRolledBack(branch, deadline)))
}

/** A connection that does not answer in time, or before the transaction is given up, is given up with it. */
async function isRolledBack({ link }: Branch, deadline?: Deadline): Promise<boolean> {
  try {
    if (deadline?.signal.aborted) throw deadline.signal.reason
    const answer = inTime(patience, link.send(sayRollback(link)))
    await (deadline ? deadline.race(answer) : answer)
    return true
  } catch {
    link.abandon()
    return false
  }
}
