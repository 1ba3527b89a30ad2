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
export interface BranchShown extends Found {
  readonly database: string
  /** The home's name among the given databases; null if it is none of them. */
  readonly homeName: string | null
  /** Null for what is not ours. */
  readonly outcome: BranchOutcome | null
  /** Why the outcome is unknown; else null. */
  readonly reason: string | null
  /** What finishes it in psql, connected to this database; null if it is not decided or not ours. */
  readonly type: string | null
}

/** A row of `once.branch`. */
interface Found {
  readonly gid: string
  /** Null, as the next three, if the gid only begins like one of ours. */
  readonly transactionId: string | null
  readonly home: string | null
  readonly homeXid: string | null
  readonly participant: string | null
  readonly owner: string | null
  readonly preparedAt: string
  readonly ageSeconds: number
  readonly ours: boolean
  readonly canFinish: boolean
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
  readonly found: Found
  /** Whether the owner's role must be taken on first. */
  readonly other: boolean
}

interface Answer {
  readonly outcome: BranchOutcome
  readonly reason: string | null
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
  const ours = listed.map(({ found }) => found).filter((found) => found.ours)
  const groups = [...Map.groupBy(ours, ({ home }) => home ?? '')]
  const answers = new Map(
    (await Promise.all(groups.map(([home, asked]) => askHome(home, homes.get(home), asked)))).flat(),
  )
  const branches = listed.map(({ database, found, other }): BranchShown => {
    const { outcome = null, reason = null } = answers.get(found) ?? {}
    return {
      ...{ database: database.name, ...found, outcome, reason },
      homeName: homes.get(found.home ?? '')?.name ?? null,
      type: lineFor(found, other, outcome),
    }
  })
  return { branches, unreachable }
}

async function listOne(database: Database): Promise<Listed[]> {
  const { rows } = await withLink(
    database.connect(),
    (session) =>
      session.query<Found & { readonly other: boolean }>(
        `select d.gid, d.transaction_id::text as "transactionId", d.home::text as home, d.home_xid::text as "homeXid",
                d.participant, d.owner::text as owner,
                to_char(d.prepared_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "preparedAt",
                extract(epoch from d.age)::float8 as "ageSeconds", d.ours, d.can_finish as "canFinish",
                d.owner <> current_user and not r.rolsuper as other
           from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
          order by d.prepared_at, d.gid`,
      ),
    patience,
  )
  return rows.map(({ other, ...found }) => ({ database, found, other }))
}

/** Asks a home once for all its branches. */
async function askHome(
  home: string,
  database: Database | undefined,
  asked: readonly Found[],
): Promise<(readonly [Found, Answer])[]> {
  const unknown = (reason: string) => asked.map((found) => [found, { outcome: 'unknown', reason }] as const)
  if (database === undefined) {
    return unknown(
      `its home ${home} is none of the databases that answered: add the one where once.database has this id`,
    )
  }
  try {
    const { rows } = await withReadCommitted(
      database.connect(),
      (session) =>
        session.query<{ outcome: BranchOutcome }>(
          `select once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
             from unnest($2::text::text[], $3::text::text[]) with ordinality i (id, xid, n) order by i.n`,
          [
            home,
            arrayOf(asked.map(({ transactionId }) => transactionId ?? '')),
            arrayOf(asked.map(({ homeXid }) => homeXid ?? '')),
          ],
        ),
      patience,
    )
    return asked.map((found, n) => [found, { outcome: rows[n]?.outcome ?? 'unknown', reason: null }] as const)
  } catch (error) {
    return unknown(withHint(fromSql(error)))
  }
}

function lineFor({ gid, owner }: Found, other: boolean, outcome: BranchOutcome | null): string | null {
  if (outcome !== 'committed' && outcome !== 'aborted') return null
  const line = `${outcome === 'committed' ? 'commit' : 'rollback'} prepared ${literal(gid)};`
  return other ? `set role ${identifier(owner ?? '')}; ${line} reset role;` : line
}

const styles = {
  committed: 'green',
  aborted: 'yellow',
  pending: 'cyan',
  unknown: 'red',
} as const satisfies Record<BranchOutcome, Style>

function rowOf(branch: BranchShown): Row {
  const { database, outcome, owner, ours, gid, type, reason } = branch
  const notes: string[] = []
  const notOurs = owner === null ? 'its owner was dropped' : 'its owner or its gid is none of pgonce'
  if (!ours) notes.push(`not ours (${notOurs}): ${gid}`)
  if (reason !== null) notes.push(`unknown: ${reason}`)
  if (outcome === 'pending') notes.push('its home transaction still runs: nothing to do but ask again')
  if (type !== null) notes.push(`→ in ${database}: ${type}`)
  if (type !== null && !branch.canFinish) notes.push(`  you may not: connect as ${owner} or as a superuser`)
  return {
    cells: [
      database,
      outcome === null ? { text: 'not ours', style: 'dim' } : { text: outcome, style: styles[outcome] },
      sayAge(branch.ageSeconds),
      owner ?? '?',
      branch.homeName ?? branch.home ?? '?',
      branch.transactionId ?? '?',
    ],
    notes,
  }
}

/** UUIDs and numbers only: nothing in them needs quotes. */
function arrayOf(values: readonly string[]): string {
  return `{${values.join(',')}}`
}
