/**
 * Recovery's first step: finishes the branches that a coordinator left in doubt, as their homes decided.
 */

import { traced } from '../commit/channels.ts'
import { finishPrepared } from '../commit/commit.ts'
import { type Database, withLink, withReadCommitted } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { literal } from '../connection/quote.ts'
import { arrayOf, attempt, patience, sayWhy, type Tally } from './report.ts'

interface BranchInDoubt {
  readonly database: Database
  readonly gid: string
  readonly transactionId: string
  readonly home: string
  readonly homeXid: string
  /** Null: the role was dropped. Then nothing proves any more that the branch is ours, and it is reported only. */
  readonly owner: string | null
  /** Null: as we are; else the role to take first. */
  readonly role: string | null
  readonly allowed: boolean
}
/** @see sql/recovery/branch.sql */
export async function listInDoubt(database: Database, settle: number): Promise<BranchInDoubt[]> {
  const { rows } = await withLink(
    database.connectApart(patience),
    (session) =>
      session.query<{
        gid: string
        id: string
        home: string
        xid: string
        owner: string | null
        role: string | null
        allowed: boolean
      }>(
        `select d.gid, d.transaction_id::text as id, d.home::text as home, d.home_xid as xid, d.owner,
                case when d.owner <> current_user and not r.rolsuper then d.owner end as role, d.can_finish as allowed
           from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
          where (d.ours or d.owner is null and d.transaction_id is not null)
            and d.age >= $1::int * interval '1 millisecond'
          order by d.prepared_at`,
        [settle],
      ),
    patience,
  )
  return rows.map(({ id, xid, ...row }) => ({ ...row, database, transactionId: id, homeXid: xid }))
}

/** Each home in one question. An outcome, once given, never changes, so it is still true when we act on it. */
export async function askHomes(
  branches: readonly BranchInDoubt[],
  homes: ReadonlyMap<string, Database>,
  report: Tally,
): Promise<Map<string, string>> {
  const outcomes = new Map<string, string>()
  const byHome = Map.groupBy(branches, ({ home }) => home)
  await Promise.all(
    [...byHome].map(async ([home, asked]) => {
      const database = homes.get(home)
      if (database === undefined) return
      const questions = [...new Map(asked.map((branch) => [keyOf(branch), branch])).values()]
      await attempt(report, database, async () => {
        const { rows } = await withReadCommitted(
          database.connectApart(patience),
          (session) =>
            session.query<{ id: string; xid: string; outcome: string }>(
              `select i.id, i.xid, once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
                 from unnest($2::text::text[], $3::text::text[]) i (id, xid)`,
              [
                home,
                arrayOf(questions.map(({ transactionId }) => transactionId)),
                arrayOf(questions.map(({ homeXid }) => homeXid)),
              ],
            ),
          patience,
        )
        for (const { id, xid, outcome } of rows) {
          outcomes.set(keyOf({ home, transactionId: id, homeXid: xid }), outcome)
        }
      })
    }),
  )
  for (const { database, gid, home } of branches.filter((branch) => !homes.has(branch.home))) {
    report.unfinished.push({
      database: database.name,
      gid,
      reason:
        report.unreachable.length > 0
          ? `its home ${home} is none of the databases that could be reached`
          : `its home ${home} is none of the databases given: add the one where once.database has this id`,
    })
  }
  return outcomes
}

/**
 * An outcome is that of a whole id. Anybody can read the UUID in a gid and prepare another one that has it with
 * another xid; the answer to that question must not be taken for the answer to ours.
 */
function keyOf({
  home,
  transactionId,
  homeXid,
}: Pick<BranchInDoubt, 'home' | 'transactionId' | 'homeXid'>): string {
  return `${home} ${transactionId} ${homeXid}`
}

export async function finishBranches(
  database: Database,
  branches: readonly BranchInDoubt[],
  outcomes: ReadonlyMap<string, string>,
  report: Tally,
): Promise<void> {
  for (const branch of branches) {
    const outcome = outcomes.get(keyOf(branch))
    if (outcome === 'pending') report.pending += 1
    if (outcome !== 'committed' && outcome !== 'aborted') continue
    if (branch.owner === null) {
      report.unfinished.push({
        database: database.name,
        gid: branch.gid,
        reason:
          `its owner was dropped, and its home says ${outcome}; if it is yours, as a superuser: ` +
          `${outcome === 'committed' ? 'commit' : 'rollback'} prepared ${literal(branch.gid)}`,
      })
      continue
    }
    if (!branch.allowed) {
      report.unfinished.push({
        database: database.name,
        gid: branch.gid,
        reason: `it belongs to role ${branch.owner}; let the recovering role finish it: grant ${branch.owner} to <that role>`,
      })
      continue
    }
    const verb = outcome === 'committed' ? 'commit' : 'rollback'
    try {
      const finished = await traced(
        'recover',
        { database, transactionId: branch.transactionId, outcome },
        () =>
          withLink(
            database.connectApart(patience),
            (session) => finishAs(branch.role, session, verb, branch.gid, branch.transactionId),
            patience,
          ),
      )
      if (!finished) continue
      if (verb === 'commit') report.committed += 1
      else report.rolledBack += 1
    } catch (error) {
      report.unfinished.push({ database: database.name, gid: branch.gid, reason: sayWhy(error) })
    }
  }
}

/** Only its owner or a superuser may finish a branch; a member of the owner's role must take it on first. */
async function finishAs(
  role: string | null,
  session: Link,
  verb: 'commit' | 'rollback',
  gid: string,
  transactionId: string,
): Promise<boolean> {
  if (role === null) return await finishPrepared(session, verb, gid, transactionId)
  try {
    await session.takeRole(role)
    return await finishPrepared(session, verb, gid, transactionId)
  } finally {
    await session.leaveRole()
  }
}
