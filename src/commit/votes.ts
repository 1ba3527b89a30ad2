/**
 * Voting: who is home, who else wrote, and what each leaves in its own transaction for it: the home the decision
 * row, the others their evidence.
 *
 * @see sql/commit/begin_global.sql, sql/commit/vote.sql, sql/commit/narrow_global.sql
 */
import type { Abortion } from './abortion.ts'
import type { Branch } from './branch.ts'
import { traced } from './channels.ts'
import { explained } from './explain.ts'

export interface Voting {
  readonly branches: readonly Branch[]
  /** Cuts waiting short when the transaction is given up. */
  readonly aborted: Abortion
  /** By name. */
  readonly preferredHome: string | undefined
}

/** Who is to be home if it wrote anything: the preferred database, else the first that was used. */
export function candidateAmong<Used>(
  used: readonly Used[],
  nameOf: (one: Used) => string,
  preferred: string | undefined,
): Used | undefined {
  return used.find((one) => nameOf(one) === preferred) ?? used[0]
}

const nameOf = ({ database }: Branch) => database.name

/**
 * The usual case: the candidate for home had written before the second database was begun, and rows were
 * changed in every other. Then nobody needs to be asked first: the votes travel with PREPARE, and the decision
 * row with COMMIT.
 *
 * The xid asked for early is that of the transaction that commits: its mark (`once.open`) must still be there
 * when the decision row is inserted, so no other transaction was on this connection in between.
 */
export async function knownHome({
  branches,
  aborted,
  preferredHome,
}: Voting): Promise<{ home: Branch; xid: string; others: readonly Branch[] } | undefined> {
  const home = candidateAmong(branches, nameOf, preferredHome)
  const others = branches.filter((branch) => branch !== home)
  if (home === undefined || home.suspect) return undefined
  if (others.some(({ wrote, suspect, session }) => !wrote || suspect || !session.pipelines)) return undefined
  const xid = await aborted.race(Promise.resolve(home.xid))
  return xid == null ? undefined : { home, xid, others }
}

export interface Votes {
  /** Undefined if nobody wrote anything. */
  readonly home: Branch | undefined
  /** Null if the home is the only one that wrote and has no decision row. */
  readonly xid: string | null
  /** Those that wrote, without the home: their evidence stands in their transactions. */
  readonly writers: readonly Branch[]
  readonly readers: readonly Branch[]
}

/**
 * Asks everybody in one round trip whether they wrote; the candidate for home answers with the xid of its
 * decision row. A candidate that wrote nothing is no home: it would be one participant more.
 */
export async function collectVotes({ branches, aborted, preferredHome }: Voting): Promise<Votes> {
  const readers: Branch[] = []
  let candidates = branches
  for (;;) {
    const home = candidateAmong(candidates, nameOf, preferredHome) as Branch
    const others = candidates.filter((branch) => branch !== home)
    const [xid, wrote] = await aborted.race(
      allOrFirstCause(
        candidates,
        beginGlobal(home, others),
        Promise.all(others.map((other) => castVote(other, home.databaseId))),
      ),
    )
    const writers = others.filter((_, index) => wrote[index])
    readers.push(...others.filter((branch) => !writers.includes(branch)))
    if (xid !== null) {
      if (writers.length > 0 && writers.length < others.length) await aborted.race(narrow(home, writers))
      return { home, xid, writers, readers }
    }
    readers.push(home)
    const [next] = writers
    if (next === undefined || writers.length === 1) return { home: next, xid: null, writers: [], readers }
    // It has voted for the home that is none; a home leaves no evidence.
    await aborted.race(narrow(next, []))
    candidates = writers
  }
}

/** What was sent ahead and failed explains why the votes did. */
async function allOrFirstCause<A, B>(
  branches: readonly Branch[],
  one: Promise<A>,
  other: Promise<B>,
): Promise<[A, B]> {
  const [ahead] = await Promise.allSettled([
    Promise.all(branches.map((branch) => explained(branch, branch.settle()))),
    one,
    other,
  ])
  if (ahead.status === 'rejected') throw ahead.reason
  return [await one, await other]
}

/** The home's decision row; gives its xid, null if it wrote nothing. */
export async function beginGlobal(home: Branch, others: readonly Branch[]): Promise<string | null> {
  return await traced('vote', home, async () => {
    const { names, databaseIds } = participants(others)
    const { rows } = await explained(
      home,
      home.query<{ xid: string | null }>(
        'select once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)::text as xid',
        [home.transactionId, names, databaseIds, home.databaseId],
      ),
    )
    return rows[0]?.xid ?? null
  })
}

/** The decision row of a home that is known to have written: travels with what is sent next. */
export async function sendDecision(home: Branch, others: readonly Branch[]): Promise<void> {
  const { names, databaseIds } = participants(others)
  await home.send('select from once.begin_global($1::uuid, $2::text::text[], $3::text::uuid[], $4::uuid)', [
    home.transactionId,
    names,
    databaseIds,
    home.databaseId,
  ])
}

/** Whether the participant wrote, with its evidence if so. */
export async function castVote(branch: Branch, home: string): Promise<boolean> {
  const { transactionId, databaseId, database } = branch
  return await traced('vote', branch, async () => {
    const { rows } = await explained(
      branch,
      branch.query<{ wrote: boolean }>('select once.vote($1::uuid, $2::uuid, $3, $4::uuid) as wrote', [
        transactionId,
        home,
        database.name,
        databaseId,
      ]),
    )
    return rows[0]?.wrote === true
  })
}

/** Takes those out of the decision that wrote nothing; the decision itself, and evidence, if nobody is left. */
export async function narrow(home: Branch, writers: readonly Branch[]): Promise<void> {
  const { names, databaseIds } = participants(writers)
  await home.send('select once.narrow_global($1::uuid, $2::text::text[], $3::text::uuid[])', [
    home.transactionId,
    names,
    databaseIds,
  ])
}

/** As array literals, which every driver passes on as they are. Names need no quotes: see checkDatabaseName. */
function participants(branches: readonly Branch[]): { names: string; databaseIds: string } {
  return {
    names: `{${branches.map(({ database }) => database.name).join(',')}}`,
    databaseIds: `{${branches.map(({ databaseId }) => databaseId).join(',')}}`,
  }
}
