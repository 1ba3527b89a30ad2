/**
 * Recovery: finishes branches that a coordinator left in doubt, and forgets what is proven.
 *
 * It may run at any time, anywhere, any number of times, beside live coordinators and other recoverers: the
 * home decides (`once.decide`), a branch is finished by whoever comes first, and no clock decides anything. A
 * branch's age only says whether it is worth a look yet.
 *
 * Forgetting is a handshake: see the evidence of every participant, mark the decision proven, delete the
 * evidence, delete the decision. On the way the two audits find what no protocol can repair, a decision or a
 * branch that was lost with a server's storage; both are recorded in `once.heuristic`.
 *
 * @see sql/transaction/
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Database, withReadCommitted, withSession } from '../database/database.ts'
import type { Session } from '../database/session.ts'
import { codeOf, PgonceError } from '../errors.ts'
import { checkMilliseconds } from '../names.ts'
import { traced } from './channels.ts'
import { finishPrepared } from './commit.ts'
import { quoteGid } from './gid.ts'

/** A branch that could not be finished yet, and why. */
export interface UnfinishedBranch {
  readonly database: string
  readonly gid: string
  readonly reason: string
}

/** A decision or a branch that was lost; see `once.heuristic`. */
export interface Loss {
  /** `lost branch`: the home committed, this participant did not. `lost decision`: the reverse. */
  readonly kind: 'lost branch' | 'lost decision'
  readonly transactionId: string
  /** The participant's name in the gid. */
  readonly participant: string
  /** The identity of the home database. */
  readonly home: string
}

/** What a sweep did. */
export interface RecoveryReport {
  /** Branches that were committed, because their home had. */
  readonly committed: number
  /** Branches that were rolled back, because their home's transaction was over without a decision. */
  readonly rolledBack: number
  /** Branches whose home's transaction still runs. */
  readonly pending: number
  /** Branches that could not be finished: privileges, an unknown or unreachable home. */
  readonly unfinished: readonly UnfinishedBranch[]
  /** Databases that did not answer. */
  readonly unreachable: readonly { readonly database: string; readonly reason: string }[]
  /** Decisions that were proven, and decisions that were forgotten. */
  readonly proven: number
  readonly forgotten: number
  /** Losses found for the first time. */
  readonly losses: readonly Loss[]
}

export interface SweepOptions {
  /** Leave branches alone that are younger (milliseconds): their coordinator is probably at them. @defaultValue 0 */
  readonly settle?: number
  /** Forget what is proven for longer (milliseconds). @defaultValue 600000, ten minutes */
  readonly keep?: number
  /** Prove and forget, too. @defaultValue true */
  readonly forget?: boolean
}

export interface StartOptions extends Pick<SweepOptions, 'keep'> {
  /** Milliseconds between two looks. @defaultValue 250 */
  readonly interval?: number
  /** Called after each sweep that found anything, and after the first that found nothing any more. */
  readonly onReport?: (report: RecoveryReport) => void
}

/** A recovery that runs until it is stopped. */
export interface RunningRecovery extends AsyncDisposable {
  /** Looks at once instead of after the interval. */
  poke(): void
  /** Stops after the sweep at hand. */
  stop(): Promise<void>
}

export interface Recovery {
  /** Looks once, at everything. Never throws for what it finds; the report says it. */
  sweep(options?: SweepOptions): Promise<RecoveryReport>
  /** Looks again and again, through outages, until stopped or the client is closed. */
  start(options?: StartOptions): RunningRecovery
  /** Compares all evidence with the decisions at its homes; new losses are recorded and returned. */
  audit(): Promise<readonly Loss[]>
}

const defaults = { settle: 0, keep: 600_000, interval: 250 } as const

/** While running: branches younger than this are left to their coordinators, and forgetting can wait. */
const runningSettle = 150
const forgetEvery = 2_000
const auditEvery = 60_000

/** Milliseconds after which a server that does not answer is passed over until the next sweep. */
const patience = 10_000
const page = 1_000

interface BranchInDoubt {
  readonly database: Database
  readonly gid: string
  readonly transactionId: string
  readonly home: string
  readonly homeXid: string
  readonly owner: string
  /** Null: as we are; else the role to take first. */
  readonly role: string | null
  readonly allowed: boolean
}

type Tally = {
  -readonly [K in keyof RecoveryReport]: RecoveryReport[K] extends readonly (infer E)[]
    ? E[]
    : RecoveryReport[K]
}

export async function sweep(
  databases: readonly Database[],
  options: SweepOptions = {},
): Promise<RecoveryReport> {
  const settle = checkMilliseconds('settle', options.settle ?? defaults.settle)
  const keep = checkMilliseconds('keep', options.keep ?? defaults.keep)
  const report: Tally = {
    committed: 0,
    rolledBack: 0,
    pending: 0,
    unfinished: [],
    unreachable: [],
    proven: 0,
    forgotten: 0,
    losses: [],
  }
  const homes = await findHomes(databases, report)
  const reachable = [...homes.values()]

  const lists = await Promise.all(
    reachable.map((database) => attempt(report, database, () => listInDoubt(database, settle))),
  )
  const branches = lists.flatMap((list) => list ?? [])
  if (branches.length > 0) {
    const decisions = await askHomes(branches, homes, report)
    await Promise.all(
      reachable.map((database) => {
        const own = branches.filter((branch) => branch.database === database)
        return own.length === 0 ? undefined : finishBranches(database, own, decisions, report)
      }),
    )
  }
  if (options.forget ?? true) {
    for (const [home, database] of homes) {
      await attempt(report, database, () => prove(home, database, homes, report))
      await attempt(report, database, () => forget(home, database, homes, keep, report))
    }
    await Promise.all(reachable.map(stamp))
  }
  return report
}

/** Notes that somebody looked after this database. That the role may not, or no more, is no fault of recovery. */
async function stamp(database: Database): Promise<void> {
  await withSession(
    database.connectApart(patience),
    (session) => session.query("select once.stamp_recovery('pgonce')"),
    patience,
  ).catch(() => {})
}

/** Runs a step on a database; one that fails is reported and passed over. */
async function attempt<T>(report: Tally, { name }: Database, step: () => Promise<T>): Promise<T | undefined> {
  try {
    return await step()
  } catch (error) {
    if (!report.unreachable.some(({ database }) => database === name)) {
      report.unreachable.push({ database: name, reason: sayWhy(error) })
    }
    return undefined
  }
}

function sayWhy(error: unknown): string {
  const { message } = error as Error
  if (codeOf(error) === '42501')
    return `${message}. As its owner: select once.grant_recover('<the recovering role>')`
  return error instanceof PgonceError && error.hint !== undefined ? `${message}. ${error.hint}` : message
}

async function findHomes(databases: readonly Database[], report: Tally): Promise<Map<string, Database>> {
  const homes = new Map<string, Database>()
  await Promise.all(
    databases.map(async (database) => {
      const identity = await attempt(report, database, () => database.identify())
      if (identity !== undefined && !homes.has(identity)) homes.set(identity, database)
    }),
  )
  return homes
}

// ---------------------------------------------------------------------------------------------------
// Finishing

/** @see sql/transaction/branch.sql */
async function listInDoubt(database: Database, settle: number): Promise<BranchInDoubt[]> {
  const { rows } = await withSession(
    database.connectApart(patience),
    (session) =>
      session.query<{
        gid: string
        id: string
        home: string
        xid: string
        owner: string
        role: string | null
        allowed: boolean
      }>(
        `select d.gid, d.transaction_id::text as id, d.home::text as home, d.home_xid as xid, d.owner,
                case when d.owner <> current_user and not r.rolsuper then d.owner end as role, d.can_finish as allowed
           from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
          where d.ours and d.age >= $1::int * interval '1 millisecond'
          order by d.prepared_at`,
        [settle],
      ),
    patience,
  )
  return rows.map(({ id, xid, ...row }) => ({ ...row, database, transactionId: id, homeXid: xid }))
}

/** Each home in one question. A decision, once given, never changes, so it is still true when we act on it. */
async function askHomes(
  branches: readonly BranchInDoubt[],
  homes: ReadonlyMap<string, Database>,
  report: Tally,
): Promise<Map<string, string>> {
  const decisions = new Map<string, string>()
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
            session.query<{ id: string; xid: string; decision: string }>(
              `select i.id, i.xid, once.decide($1::uuid, i.id::uuid, i.xid::xid8) as decision
                 from unnest($2::text::text[], $3::text::text[]) i (id, xid)`,
              [
                home,
                arrayOf(questions.map(({ transactionId }) => transactionId)),
                arrayOf(questions.map(({ homeXid }) => homeXid)),
              ],
            ),
          patience,
        )
        for (const { id, xid, decision } of rows) {
          decisions.set(keyOf({ home, transactionId: id, homeXid: xid }), decision)
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
          : `its home ${home} is none of the databases given: add the one where once.identity has this id`,
    })
  }
  return decisions
}

/**
 * A decision is that of a whole id. Anybody can read the UUID in a gid and prepare another one that has it with
 * another xid; the answer to that question must not be taken for the answer to ours.
 */
function keyOf({
  home,
  transactionId,
  homeXid,
}: Pick<BranchInDoubt, 'home' | 'transactionId' | 'homeXid'>): string {
  return `${home} ${transactionId} ${homeXid}`
}

async function finishBranches(
  database: Database,
  branches: readonly BranchInDoubt[],
  decisions: ReadonlyMap<string, string>,
  report: Tally,
): Promise<void> {
  for (const branch of branches) {
    const decision = decisions.get(keyOf(branch))
    if (decision === 'pending') report.pending += 1
    if (decision !== 'committed' && decision !== 'aborted') continue
    if (!branch.allowed) {
      report.unfinished.push({
        database: database.name,
        gid: branch.gid,
        reason: `it belongs to role ${branch.owner}; let the recovering role finish it: grant ${branch.owner} to <that role>`,
      })
      continue
    }
    const verb = decision === 'committed' ? 'commit' : 'rollback'
    try {
      const finished = await traced(
        'recover',
        { database: database.name, transactionId: branch.transactionId, outcome: decision },
        () =>
          withSession(
            database.connectApart(patience),
            (session) =>
              finishAs(
                branch.role,
                session,
                `${verb} prepared ${quoteGid(branch.gid)}`,
                branch.transactionId,
              ),
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
  session: Session,
  statement: string,
  transactionId: string,
): Promise<boolean> {
  if (role === null) return await finishPrepared(session, statement, transactionId)
  await session.query(`set role "${role.replaceAll('"', '""')}"`)
  try {
    return await finishPrepared(session, statement, transactionId)
  } finally {
    await session.query('reset role')
  }
}

// ---------------------------------------------------------------------------------------------------
// Forgetting

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
async function prove(
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
async function forget(
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

/**
 * Finds evidence whose home has no decision. A decision goes only after its evidence, so if evidence is still
 * there after its decision was not, the home has lost it.
 */
export async function audit(
  databases: readonly Database[],
): Promise<{ losses: Loss[]; unreachable: RecoveryReport['unreachable'] }> {
  const report = { unreachable: [] as { database: string; reason: string }[] } as Tally
  const losses: Loss[] = []
  const homes = await findHomes(databases, report)
  for (const database of homes.values()) {
    await attempt(report, database, async () => {
      let after: string | undefined
      for (;;) {
        const { rows } = await withSession(
          database.connectApart(patience),
          (session) =>
            session.query<{ id: string; home: string; participant: string }>(
              `select e.transaction_id::text as id, e.home::text as home, e.participant
                 from once.evidence_page($1::int, coalesce($2::text::uuid, '00000000-0000-0000-0000-000000000000')) e`,
              [page, after ?? null],
            ),
          patience,
        )
        for (const [home, evidence] of Map.groupBy(rows, (row) => row.home)) {
          const asked = homes.get(home)
          if (asked === undefined) continue
          const ids = evidence.map(({ id }) => id)
          const known = await withReadCommitted(
            asked.connectApart(patience),
            (session) =>
              session.query<{ id: string }>(
                'select d.transaction_id::text as id from once.find_decisions($1::text::uuid[]) d',
                [arrayOf(ids)],
              ),
            patience,
          )
          const decided = new Set(known.rows.map(({ id }) => id))
          const suspects = evidence.filter(({ id }) => !decided.has(id))
          if (suspects.length === 0) continue
          await withReadCommitted(
            database.connectApart(patience),
            async (session) => {
              const still = await session.query<{ id: string }>(
                'select e::text as id from once.find_evidence($1::text::uuid[]) e',
                [arrayOf(suspects.map(({ id }) => id))],
              )
              const ours = new Set(still.rows.map(({ id }) => id))
              for (const { id, participant } of suspects.filter((suspect) => ours.has(suspect.id))) {
                await record(session, { kind: 'lost decision', transactionId: id, participant, home }, losses)
              }
            },
            patience,
          )
        }
        after = rows.at(-1)?.id
        if (rows.length < page) break
      }
      await judgeForced(database, homes)
    })
  }
  return { losses, unreachable: report.unreachable }
}

/**
 * Puts decisions beside branches that were finished by hand while their home was away.
 *
 * @see sql/operator/judge_forced.sql
 */
async function judgeForced(database: Database, homes: ReadonlyMap<string, Database>): Promise<void> {
  const { rows } = await withSession(
    database.connectApart(patience),
    (session) =>
      session.query<{ id: string; home: string; xid: string }>(
        `select f.transaction_id::text as id, f.home::text as home, f.home_xid::text as xid
           from once.forced f where f.judged_at is null limit $1::int`,
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
        session.query<{ decision: string }>(
          'select once.decide($1::uuid, $2::uuid, $3::text::xid8) as decision',
          [home, id, xid],
        ),
      patience,
    )
    await withReadCommitted(
      database.connectApart(patience),
      (session) =>
        session.query('select once.judge_forced($1::uuid, $2)', [id, answer.rows[0]?.decision ?? '']),
      patience,
    )
  }
}

async function record(session: Session, loss: Loss, losses: Loss[]): Promise<void> {
  const { rows } = await session.query<{ new: boolean }>(
    'select once.record_heuristic($1::uuid, $2, $3::uuid, $4) as new',
    [loss.transactionId, loss.participant, loss.home, loss.kind],
  )
  if (rows[0]?.new) losses.push(loss)
}

async function count(
  session: Session,
  text: string,
  ids: readonly string[],
  ...more: readonly string[]
): Promise<number> {
  const { rows } = await session.query<{ n: string }>(text, [arrayOf(ids), ...more])
  return Number(rows[0]?.n ?? 0)
}

/** UUIDs and numbers only: nothing in them needs quotes. */
function arrayOf(values: readonly string[]): string {
  return `{${values.join(',')}}`
}

// ---------------------------------------------------------------------------------------------------
// Running

export function startRecovery(databases: readonly Database[], options: StartOptions = {}): RunningRecovery {
  const interval = checkMilliseconds('interval', options.interval ?? defaults.interval)
  const keep = checkMilliseconds('keep', options.keep ?? defaults.keep)
  let stopped = false
  let wake = new AbortController()
  let forgotten = 0
  let audited = performance.now()
  let hadNews = false

  const loop = (async () => {
    while (!stopped) {
      const now = performance.now()
      const forgetNow = now - forgotten >= forgetEvery
      if (forgetNow) forgotten = now
      const report = await sweep(databases, { settle: runningSettle, keep, forget: forgetNow })
      const losses = [...report.losses]
      if (now - audited >= auditEvery) {
        audited = now
        losses.push(...(await audit(databases)).losses)
      }
      const full = { ...report, losses }
      const news = isNews(full)
      try {
        if (news || hadNews) options.onReport?.(full)
      } catch (error) {
        // What the listener does wrong must not leave branches in doubt.
        process.emitWarning(error as Error)
      }
      hadNews = news
      if (stopped) break
      await sleep(interval, undefined, { signal: wake.signal }).catch(() => {})
      if (wake.signal.aborted) wake = new AbortController()
    }
  })()
  const stop = async () => {
    stopped = true
    wake.abort()
    await loop
  }
  return { poke: () => wake.abort(), stop, [Symbol.asyncDispose]: stop }
}

function isNews({ committed, rolledBack, unfinished, unreachable, losses }: RecoveryReport): boolean {
  return committed + rolledBack + unfinished.length + unreachable.length + losses.length > 0
}
