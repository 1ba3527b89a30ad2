/**
 * The audit: puts all evidence beside the decisions at its homes, and decisions beside what was forced by hand.
 */
import { type Database, withIdentified, withLink, withReadCommitted } from '../connection/database.ts'
import { arrayOf, attempt, findHomes, type Loss, page, patience, record, type Tally } from './report.ts'

/**
 * Finds evidence whose home has no decision. A decision goes only after its evidence, so if evidence is still
 * there after its decision was not, the home has lost it.
 */
export async function audit(databases: readonly Database[]): Promise<Pick<Tally, 'losses' | 'unreachable'>> {
  const report: Pick<Tally, 'losses' | 'unreachable'> = { losses: [], unreachable: [] }
  const homes = await findHomes(databases, report, true)
  for (const database of homes.values()) {
    await attempt(report, database, async () => {
      for await (const evidence of evidencePages(database)) {
        for (const [home, rows] of Map.groupBy(evidence, (row) => row.home)) {
          const asked = homes.get(home)
          if (asked !== undefined) await findLostDecisions(database, asked, home, rows, report.losses)
        }
      }
      await judgeHeuristics(database, homes)
    })
  }
  return report
}

interface Evidence {
  readonly id: string
  /** Its id. */
  readonly home: string
  readonly participant: string
}

async function* evidencePages(database: Database): AsyncGenerator<readonly Evidence[]> {
  let after: string | undefined
  for (;;) {
    const { rows } = await withLink(
      database.connectApart(patience),
      (session) =>
        session.query<Evidence>(
          `select e.transaction_id::text as id, e.home::text as home, e.participant
                 from once.evidence_page($1::int, coalesce($2::text::uuid, '00000000-0000-0000-0000-000000000000')) e`,
          [page, after ?? null],
        ),
      patience,
    )
    yield rows
    after = rows.at(-1)?.id
    if (rows.length < page) return
  }
}

async function findLostDecisions(
  database: Database,
  asked: Database,
  home: string,
  evidence: readonly Evidence[],
  losses: Loss[],
): Promise<void> {
  const known = await withIdentified(
    home,
    asked.connectApart(patience),
    (session) =>
      session.query<{ id: string }>(
        'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d',
        [arrayOf(evidence.map(({ id }) => id))],
      ),
    patience,
  )
  const decided = new Set(known.rows.map(({ id }) => id))
  const suspects = evidence.filter(({ id }) => !decided.has(id))
  if (suspects.length === 0) return
  await withReadCommitted(
    database.connectApart(patience),
    async (session) => {
      const still = await session.query<{ id: string }>(
        'select e::text as id from once.find_evidence($1::text::uuid[]) e',
        [arrayOf(suspects.map(({ id }) => id))],
      )
      const ours = new Set(still.rows.map(({ id }) => id))
      for (const { id, participant } of suspects.filter((suspect) => ours.has(suspect.id)))
        await record(session, { kind: 'lost decision', transactionId: id, participant, home }, losses)
    },
    patience,
  )
}

/**
 * Puts decisions beside branches that were finished by hand while their home was away.
 *
 * @see sql/operator/judge_heuristic.sql
 */
async function judgeHeuristics(database: Database, homes: ReadonlyMap<string, Database>): Promise<void> {
  const { rows } = await withLink(
    database.connectApart(patience),
    (session) =>
      session.query<{ id: string; home: string; xid: string }>(
        `select h.transaction_id::text as id, h.home::text as home, h.home_xid::text as xid
           from once.heuristic h where h.judged_at is null limit $1::int`,
        [page],
      ),
    patience,
  )
  for (const { id, home, xid } of rows) {
    const asked = homes.get(home)
    if (asked === undefined) continue
    const answer = await withReadCommitted(
      asked.connectApart(patience),
      (session) =>
        session.query<{ outcome: string }>(
          'select once.branch_outcome($1::uuid, $2::uuid, $3::text::xid8) as outcome',
          [home, id, xid],
        ),
      patience,
    )
    await withReadCommitted(
      database.connectApart(patience),
      (session) =>
        session.query('select once.judge_heuristic($1::uuid, $2)', [id, answer.rows[0]?.outcome ?? '']),
      patience,
    )
  }
}
