/**
 * Recovery's second step: forgets what is proven, by a handshake: see the evidence of every participant, mark
 * the decision proven, delete the evidence, delete the decision. On the way it finds lost branches.
 *
 * @see sql/transaction/
 */
import { type Database, withReadCommitted, withSession } from '../database/database.ts'
import { arrayOf, attempt, count, page, patience, record, type Tally } from './report.ts'

interface DecisionRow {
  readonly id: string
  readonly participants: readonly { readonly name: string; readonly identity: string }[]
}

const decisionColumns = `d.transaction_id::text as id, array_to_string(d.participants, ',') as names,
                         array_to_string(d.participant_homes, ',') as identities`

function decisionRow({
  id,
  names,
  identities,
}: {
  id: string
  names: string
  identities: string
}): DecisionRow {
  const split = (list: string) => (list === '' ? [] : list.split(','))
  const name = split(names)
  return {
    id,
    participants: split(identities).map((identity, index) => ({ identity, name: name[index] ?? '' })),
  }
}

/**
 * Marks decisions proven whose evidence stands at every participant.
 *
 * A decision read as unproven, whose branch is then neither prepared nor, after that, evident, and which is
 * still unproven after that, has lost the branch: it was prepared when the decision was made; what leaves the
 * list of prepared transactions by committing has left its evidence before; and evidence goes only after the
 * decision is marked. Hence the order of the four readings.
 */
export async function prove(
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  report: Tally,
): Promise<void> {
  let after: { at: string; id: string } | undefined
  for (;;) {
    const { rows } = await withSession(
      database.connectApart(patience),
      (session) =>
        session.query<{ id: string; names: string; identities: string; at: string }>(
          `select ${decisionColumns}, d.decided_at::text as at
             from once.unproven($1::int, coalesce($2::text::timestamptz, '-infinity'),
                                coalesce($3::text::uuid, '00000000-0000-0000-0000-000000000000')) d`,
          [page, after?.at ?? null, after?.id ?? null],
        ),
      patience,
    )
    const decisions = rows.map(decisionRow)
    const missing = new Map<string, { id: string; name: string }[]>()
    const open = new Set<string>()
    const byParticipant = Map.groupBy(
      decisions.flatMap(({ id, participants }) =>
        participants.map((participant) => ({ id, ...participant })),
      ),
      ({ identity }) => identity,
    )
    await Promise.all(
      [...byParticipant].map(async ([identity, branches]) => {
        const participant = homes.get(identity)
        const seen =
          participant &&
          (await attempt(report, participant, () =>
            lookForBranches(
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
    const proven = decisions.filter(({ id }) => !open.has(id)).map(({ id }) => id)
    await withReadCommitted(
      database.connectApart(patience),
      async (session) => {
        if (proven.length > 0)
          report.proven += await count(
            session,
            'select once.mark_proven($1::text::uuid[])::text as n',
            proven,
          )
        if (missing.size === 0) return
        const { rows: still } = await session.query<{ id: string }>(
          'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d where not d.proven',
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
    const last = rows.at(-1)
    if (last === undefined || rows.length < page) return
    after = { at: last.at, id: last.id }
  }
}

/** First what is prepared, then, with a newer snapshot, what is evident: see {@link prove}. */
async function lookForBranches(
  participant: Database,
  ids: readonly string[],
): Promise<{ prepared: Set<string>; evident: Set<string> }> {
  return await withReadCommitted(
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

/** Deletes the evidence of proven decisions, everywhere, and then the decisions. */
export async function forget(
  home: string,
  database: Database,
  homes: ReadonlyMap<string, Database>,
  keep: number,
  report: Tally,
): Promise<void> {
  for (;;) {
    const { rows } = await withSession(
      database.connectApart(patience),
      (session) =>
        session.query<{ id: string; names: string; identities: string }>(
          `select ${decisionColumns} from once.proven($1::int, $2::int * interval '1 millisecond') d`,
          [page, keep],
        ),
      patience,
    )
    const decisions = rows.map(decisionRow)
    const byParticipant = Map.groupBy(
      decisions.flatMap(({ id, participants }) => participants.map(({ identity }) => ({ id, identity }))),
      ({ identity }) => identity,
    )
    const kept = new Set<string>()
    await Promise.all(
      [...byParticipant].map(async ([identity, branches]) => {
        const ids = branches.map(({ id }) => id)
        const participant = homes.get(identity)
        const deleted =
          participant &&
          (await attempt(report, participant, () =>
            withReadCommitted(
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
    if (gone.length === 0) return
    report.forgotten += await withReadCommitted(
      database.connectApart(patience),
      (session) => count(session, 'select once.forget_proven($1::text::uuid[])::text as n', gone),
      patience,
    )
    if (rows.length < page) return
  }
}
