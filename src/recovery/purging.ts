/**
 * Recovery's second step: purges what is proven, by a handshake: see the evidence of every participant, mark
 * the decision proven; a while later see it once more, mark the decision confirmed; delete the evidence, delete
 * the decision. On the way it finds lost branches.
 *
 * @see sql/recovery/
 */
import { type Database, withIdentified, withLink } from '../connection/database.ts'
import { arrayOf, attempt, count, page, patience, record, type Tally } from './report.ts'

interface DecisionRow {
  readonly id: string
  readonly participants: readonly { readonly name: string; readonly databaseId: string }[]
}

const decisionColumns = `d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
                         array_to_string(d.database_ids, ',') as ids`

function decisionRow({ id, names, ids }: { id: string; names: string; ids: string }): DecisionRow {
  const split = (list: string) => (list === '' ? [] : list.split(','))
  const name = split(names)
  return {
    id,
    participants: split(ids).map((databaseId, index) => ({ databaseId, name: name[index] ?? '' })),
  }
}

/** One of the two looks at the evidence. */
interface Look {
  /** The decisions to look after, a page; all parameters may be null. */
  readonly list: string
  /** Marks those whose evidence stands at every participant. */
  readonly mark: string
  /** Of a decision (`d`, of `once.find_decisions`): nobody has come as far as the mark yet. */
  readonly unmarked: string
}

const first: Look = {
  list: `select ${decisionColumns}, to_json(d.decided_at) #>> '{}' as at
           from once.unproven($1::int, coalesce($2::text::timestamptz, '-infinity'),
                              coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`,
  mark: 'select once.mark_proven($1::text::uuid[])::text as n',
  unmarked: 'not d.proven',
}

const second: Look = {
  list: `select ${decisionColumns}, to_json(d.proven_at) #>> '{}' as at
           from once.proven($1::int, $4::int * interval '1 millisecond', coalesce($2::text::timestamptz, '-infinity'),
                            coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`,
  mark: 'select once.mark_confirmed($1::text::uuid[])::text as n',
  unmarked: 'not d.confirmed',
}

/** Marks decisions proven whose evidence stands at every participant. */
export async function prove(
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  report: Tally,
): Promise<void> {
  report.proven += await lookForEvidence(first, [], home, database, homes, report)
}

/**
 * Marks decisions confirmed that are proven for `keep` milliseconds and whose evidence still stands at every
 * participant. A standby that took over from a participant may have lost what was seen there the first time.
 */
export async function confirm(
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  keep: number,
  report: Tally,
): Promise<void> {
  await lookForEvidence(second, [keep], home, database, homes, report)
}

/**
 * Marks the decisions whose evidence stands at every participant; returns how many.
 *
 * A decision read without the mark, whose branch is then neither prepared nor, after that, evident, and which is
 * still without the mark after that, has lost the branch: it was prepared when the decision was made; what leaves
 * the list of prepared transactions by committing has left its evidence before; and evidence goes only after the
 * decision is marked. Hence the order of the four readings.
 */
async function lookForEvidence(
  { list, mark, unmarked }: Look,
  parameters: readonly unknown[],
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  report: Tally,
): Promise<number> {
  let marked = 0
  for await (const decisions of pagesOf(database, list, parameters)) {
    const missing = new Map<string, { id: string; name: string }[]>()
    const open = new Set<string>()
    await Promise.all(
      [...byParticipant(decisions)].map(async ([databaseId, branches]) => {
        const participant = homes.get(databaseId)
        const seen =
          participant &&
          (await attempt(report, participant, () =>
            lookForBranches(
              databaseId,
              participant,
              branches.map(({ id }) => id),
            ),
          ))
        for (const { id, name } of branches) {
          if (seen?.evident.has(id)) continue
          open.add(id)
          if (seen && !seen.prepared.has(id)) missing.set(id, [...(missing.get(id) ?? []), { id, name }])
        }
      }),
    )
    const evident = decisions.map(({ id }) => id).filter((id) => !open.has(id))
    await withIdentified(
      home,
      database.connectApart(patience),
      async (session) => {
        if (evident.length > 0) marked += await count(session, mark, evident)
        if (missing.size === 0) return
        const { rows: still } = await session.query<{ id: string }>(
          `select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d where ${unmarked}`,
          [arrayOf([...missing.keys()])],
        )
        for (const { id } of still) {
          for (const { name } of missing.get(id) ?? []) {
            await record(
              session,
              { kind: 'lost branch', transactionId: id, participant: name, home },
              report.losses,
            )
          }
        }
      },
      patience,
    )
  }
  return marked
}

/** First what is prepared, then, with a newer snapshot, what is evident: see {@link lookForEvidence}. */
async function lookForBranches(
  databaseId: string,
  participant: Database,
  ids: readonly string[],
): Promise<{ prepared: Set<string>; evident: Set<string> }> {
  return await withIdentified(
    databaseId,
    participant.connectApart(patience),
    async (session) => {
      const prepared = await session.query<{ id: string }>(
        'select d.transaction_id::text as id from once.branch d where d.transaction_id is not null',
      )
      const evident = await session.query<{ id: string }>(
        'select e::text as id from once.find_evidence($1::text::uuid[]) e',
        [arrayOf(ids)],
      )
      return {
        prepared: new Set(prepared.rows.map(({ id }) => id)),
        evident: new Set(evident.rows.map(({ id }) => id)),
      }
    },
    patience,
  )
}

/** Deletes the evidence of decisions that are confirmed for `keep` milliseconds, everywhere, and then the decisions. */
export async function purge(
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  keep: number,
  report: Tally,
): Promise<void> {
  const list = `select ${decisionColumns}, to_json(d.confirmed_at) #>> '{}' as at
                  from once.confirmed($1::int, $4::int * interval '1 millisecond', coalesce($2::text::timestamptz, '-infinity'),
                                      coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`
  for await (const decisions of pagesOf(database, list, [keep])) {
    const kept = new Set<string>()
    await Promise.all(
      [...byParticipant(decisions)].map(async ([databaseId, branches]) => {
        const ids = branches.map(({ id }) => id)
        const participant = homes.get(databaseId)
        const deleted =
          participant &&
          (await attempt(report, participant, () =>
            withIdentified(
              databaseId,
              participant.connectApart(patience),
              (session) =>
                count(
                  session,
                  'select once.delete_evidence($2::uuid, $1::text::uuid[])::text as n',
                  ids,
                  home,
                ),
              patience,
            ),
          ))
        if (deleted === undefined) for (const id of ids) kept.add(id)
      }),
    )
    const gone = decisions.map(({ id }) => id).filter((id) => !kept.has(id))
    if (gone.length === 0) continue
    report.purged += await withIdentified(
      home,
      database.connectApart(patience),
      (session) => count(session, 'select once.purge($1::text::uuid[])::text as n', gone),
      patience,
    )
  }
}

/**
 * Goes through a list of decisions, oldest first: what cannot be done now must not keep the rest from it. Its times
 * are ISO 8601, since the names of zones are read back as others in some sessions.
 */
async function* pagesOf(
  database: Database,
  list: string,
  parameters: readonly unknown[],
): AsyncGenerator<readonly DecisionRow[]> {
  let after: { at: string; id: string } | undefined
  for (;;) {
    const { rows } = await withLink(
      database.connectApart(patience),
      (session) =>
        session.query<{ id: string; names: string; ids: string; at: string }>(list, [
          page,
          after?.at ?? null,
          after?.id ?? null,
          ...parameters,
        ]),
      patience,
    )
    if (rows.length > 0) yield rows.map(decisionRow)
    after = rows.at(-1)
    if (after === undefined || rows.length < page) return
  }
}

function byParticipant(
  decisions: readonly DecisionRow[],
): Map<string, { id: string; name: string; databaseId: string }[]> {
  return Map.groupBy(
    decisions.flatMap(({ id, participants }) => participants.map((participant) => ({ id, ...participant }))),
    ({ databaseId }) => databaseId,
  )
}
