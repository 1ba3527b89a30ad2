/**
 * `pgonce in-doubt`: every prepared transaction of ours, with what its home decided and what to type.
 */
import type { Command } from 'commander'
import { type Database, withLink, withReadCommitted } from '../connection/database.ts'
import { identifier, literal } from '../connection/quote.ts'
import { fromSql, withHint } from '../errors.ts'
import { chooseDatabases, type DatabaseFlags, withDatabases, withEach } from './databases.ts'
import { count, paint, print, printJson, type Row, type Style, sayAge, table } from './output.ts'

/** As `once.branch_outcome` gives it; `unknown` if its home could not be asked. */
export type BranchOutcome = 'committed' | 'aborted' | 'pending' | 'unknown'

/** One prepared transaction whose gid has our prefix. */
export interface BranchShown {
  readonly database: string
  readonly gid: string
  /** Null, as the next three, if the gid only begins like one of ours. */
  readonly transactionId: string | null
  readonly home: string | null
  readonly homeXid: string | null
  readonly participant: string | null
  /** The home's name among the given databases; null if it is none of them. */
  readonly homeName: string | null
  readonly owner: string | null
  readonly preparedAt: string
  readonly ageSeconds: number
  readonly ours: boolean
  readonly canFinish: boolean
  /** Null for what is not ours. */
  readonly outcome: BranchOutcome | null
  /** Why the outcome is unknown; else null. */
  readonly reason: string | null
  /** What finishes it in psql, connected to this database; null if it is not decided or not ours. */
  readonly type: string | null
}

interface InDoubtFlags extends DatabaseFlags {
  readonly json?: boolean
}

/** Adds the command to the program. */
export function inDoubtCommand(program: Command): void {
  withDatabases(program.command('in-doubt'))
    .description('list the branches in doubt, what their homes decided, and what to type')
    .option('--json', 'print one JSON object')
    .action(runInDoubt)
}

async function runInDoubt(urls: readonly string[], flags: InDoubtFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const { branches, unreachable } = await withEach(chosen, connectTimeout, listInDoubt)
  if (unreachable.length > 0) process.exitCode = 1
  if (flags.json) return printJson({ branches, unreachable })

  for (const { database, reason } of unreachable)
    print(`${paint('cannot look into', 'red')} ${database}: ${reason}`)
  if (branches.length === 0) {
    const looked = chosen.filter(({ name }) => !unreachable.some(({ database }) => database === name))
    if (looked.length > 0) print(`Nothing is in doubt in ${looked.map(({ name }) => name).join(', ')}.`)
    return
  }
  print(table(['database', 'outcome', 'age', 'owner', 'home', 'transaction'], branches.map(rowOf)))
  const ours = branches.filter((branch) => branch.ours)
  const open = ours.filter(({ type }) => type !== null)
  print()
  const strange = branches.length - ours.length
  print(
    `${count(ours.length, 'branch', 'branches')} in doubt, ${open.length} decided` +
      `${strange > 0 ? `; ${strange} not ours, left alone` : ''}.` +
      (open.length > 0 ? ' pgonce recover finishes what is decided.' : ''),
  )
}

const connectTimeout = 5_000
const patience = 10_000

interface Listed {
  readonly database: Database
  readonly gid: string
  readonly id: string | null
  readonly home: string | null
  readonly xid: string | null
  readonly participant: string | null
  readonly owner: string | null
  readonly prepared: string
  readonly age: number
  readonly ours: boolean
  readonly allowed: boolean
  /** Whether the owner's role must be taken on first. */
  readonly other: boolean
}

/** @see sql/recovery/branch.sql, sql/recovery/branch_outcome.sql */
async function listInDoubt(databases: readonly Database[]) {
  const unreachable: { database: string; reason: string }[] = []
  const homes = new Map<string, Database>()
  const lists = await Promise.all(
    databases.map(async (database) => {
      try {
        const databaseId = await database.identify()
        if (!homes.has(databaseId)) homes.set(databaseId, database)
        return await listOne(database)
      } catch (error) {
        unreachable.push({ database: database.name, reason: withHint(error) })
        return []
      }
    }),
  )
  // Two names for one database show its branches once.
  const listed = lists.flat().filter(({ database }) => homes.get(database.databaseId ?? '') === database)
  const answers = await askHomes(listed, homes)
  const branches = listed.map((branch): BranchShown => {
    const { database, gid, id, home, xid, participant, owner, prepared, age, ours, allowed } = branch
    const answer = ours ? answers.get(keyOf(branch)) : undefined
    const outcome = ours ? (answer?.outcome ?? 'unknown') : null
    return {
      database: database.name,
      gid,
      transactionId: id,
      home,
      homeXid: xid,
      participant,
      homeName: home === null ? null : (homes.get(home)?.name ?? null),
      owner,
      preparedAt: prepared,
      ageSeconds: age,
      ours,
      canFinish: allowed,
      outcome,
      reason: outcome === 'unknown' ? (answer?.reason ?? noHome(home)) : null,
      type: outcome === null ? null : lineFor(branch, outcome),
    }
  })
  return { branches, unreachable }
}

async function listOne(database: Database): Promise<Listed[]> {
  const { rows } = await withLink(
    database.connect(),
    (session) =>
      session.query<Omit<Listed, 'database'>>(
        `select d.gid, d.transaction_id::text as id, d.home::text as home, d.home_xid::text as xid, d.participant,
                d.owner::text as owner,
                to_char(d.prepared_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as prepared,
                extract(epoch from d.age)::float8 as age, d.ours, d.can_finish as allowed,
                d.owner <> current_user and not r.rolsuper as other
           from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
          order by d.prepared_at, d.gid`,
      ),
    patience,
  )
  return rows.map((row) => ({ ...row, database }))
}

interface Answer {
  readonly outcome: BranchOutcome
  readonly reason: string | null
}

/** Each home once, for all its branches. */
async function askHomes(
  branches: readonly Listed[],
  homes: ReadonlyMap<string, Database>,
): Promise<Map<string, Answer>> {
  const answers = new Map<string, Answer>()
  const ours = branches.filter((branch) => branch.ours)
  await Promise.all(
    [...Map.groupBy(ours, (branch) => branch.home ?? '')].map(async ([home, asked]) => {
      const database = homes.get(home)
      if (database === undefined) return
      try {
        const { rows } = await withReadCommitted(
          database.connect(),
          (session) =>
            session.query<{ id: string; xid: string; outcome: BranchOutcome }>(
              `select i.id, i.xid, once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
                 from unnest($2::text::text[], $3::text::text[]) i (id, xid)`,
              [home, arrayOf(asked.map(({ id }) => id ?? '')), arrayOf(asked.map(({ xid }) => xid ?? ''))],
            ),
          patience,
        )
        for (const { id, xid, outcome } of rows)
          answers.set(`${home} ${id} ${xid}`, { outcome, reason: null })
      } catch (error) {
        for (const branch of asked)
          answers.set(keyOf(branch), { outcome: 'unknown', reason: withHint(fromSql(error)) })
      }
    }),
  )
  return answers
}

function keyOf({ home, id, xid }: Listed): string {
  return `${home} ${id} ${xid}`
}

function noHome(home: string | null): string {
  return `its home ${home} is none of the databases that answered: add the one where once.database has this id`
}

function lineFor({ gid, owner, other }: Listed, outcome: BranchOutcome): string | null {
  if (outcome !== 'committed' && outcome !== 'aborted') return null
  const line = `${outcome === 'committed' ? 'commit' : 'rollback'} prepared ${literal(gid)};`
  return other ? `set role ${identifier(owner ?? '')}; ${line} reset role;` : line
}

function rowOf(branch: BranchShown): Row {
  const {
    database,
    outcome,
    ageSeconds,
    owner,
    home,
    homeName,
    transactionId,
    ours,
    gid,
    type,
    reason,
    canFinish,
  } = branch
  const styles: Record<BranchOutcome, Style> = {
    committed: 'green',
    aborted: 'yellow',
    pending: 'cyan',
    unknown: 'red',
  }
  const notes: string[] = []
  if (!ours)
    notes.push(
      `not ours (${owner === null ? 'its owner was dropped' : 'its owner or its gid is none of pgonce'}): ${gid}`,
    )
  if (reason !== null) notes.push(`unknown: ${reason}`)
  if (outcome === 'pending') notes.push('its home transaction still runs: nothing to do but ask again')
  if (type !== null) notes.push(`→ in ${database}: ${type}`)
  if (type !== null && !canFinish) notes.push(`  you may not: connect as ${owner} or as a superuser`)
  return {
    cells: [
      database,
      outcome === null ? { text: 'not ours', style: 'dim' } : { text: outcome, style: styles[outcome] },
      sayAge(ageSeconds),
      owner ?? '?',
      homeName ?? home ?? '?',
      transactionId ?? '?',
    ],
    notes,
  }
}

/** UUIDs and numbers only: nothing in them needs quotes. */
function arrayOf(values: readonly string[]): string {
  return `{${values.join(',')}}`
}
