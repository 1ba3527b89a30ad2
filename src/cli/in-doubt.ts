/** `pgonce in-doubt`: every prepared transaction of ours, with what its home decided and what to type. */
import type { Command } from 'commander'
import { type Database, withLink, withReadCommitted } from '../connection/database.ts'
import { arrayLiteral, identifier, literal } from '../connection/quote.ts'
import {
  chooseDatabases,
  type DatabaseFlags,
  openEach,
  patience,
  tryAsking,
  withDatabases,
} from './databases.ts'
import { count, paint, print, printJson, type Row, sayAge, table } from './output.ts'

/** A prepared transaction whose gid has our prefix, as `once.branch` shows it. */
interface Branch {
  readonly database: string
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

const colors = { committed: 'green', aborted: 'yellow', pending: 'cyan', unknown: 'red' } as const

interface Answer {
  /** As `once.branch_outcome` gives it; `unknown` if its home could not be asked; null for what is not ours. */
  readonly outcome: keyof typeof colors | null
  /** Why the outcome is unknown; else null. */
  readonly reason: string | null
}

/** What is printed of one, with `--json`. */
export interface BranchShown extends Branch, Answer {
  /** The home's name among the given databases; null if it is none of them. */
  readonly homeName: string | null
  /** What finishes it in psql, connected to this database; null if it is not decided or not ours. */
  readonly type: string | null
}

/** Adds the command to the program. */
export function inDoubtCommand(program: Command): void {
  withDatabases(program.command('in-doubt'))
    .description('list the branches in doubt, what their homes decided, and what to type')
    .option('--json', 'print one JSON object')
    .action(runInDoubt)
}

async function runInDoubt(urls: readonly string[], flags: DatabaseFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const { branches, unreachable } = await listInDoubt(openEach(chosen))
  if (unreachable.length > 0) process.exitCode = 1
  if (flags.json) return printJson({ branches, unreachable })

  for (const { database, reason } of unreachable)
    print(`${paint('cannot look into', 'red')} ${database}: ${reason}`)
  if (branches.length === 0) {
    const silent = new Set(unreachable.map(({ database }) => database))
    const looked = chosen.map(({ name }) => name).filter((name) => !silent.has(name))
    if (looked.length > 0) print(`Nothing is in doubt in ${looked.join(', ')}.`)
    return
  }
  print(`${table(['database', 'outcome', 'age', 'owner', 'home', 'transaction'], branches.map(rowOf))}\n`)
  const ours = branches.filter((branch) => branch.ours)
  const decided = ours.filter(({ type }) => type !== null).length
  const strange = branches.length - ours.length
  print(
    `${count(ours.length, 'branch', 'branches')} in doubt, ${decided} decided` +
      `${strange > 0 ? `; ${strange} not ours, left alone` : ''}.` +
      (decided > 0 ? ' pgonce recover finishes what is decided.' : ''),
  )
}

async function listInDoubt(databases: readonly Database[]) {
  const homes = new Map<string, Database>()
  const asked = await Promise.all(
    databases.map(async (database) => ({
      database: database.name,
      ...(await tryAsking(list(database, homes))),
    })),
  )
  const found = asked.flatMap(({ answer }) => answer ?? [])
  const groups = Map.groupBy(
    found.filter(({ ours }) => ours),
    ({ home }) => home ?? '',
  )
  const answers = new Map<object, Answer>()
  await Promise.all(
    [...groups].map(async ([home, branches]) => {
      const { answer, reason } = await tryAsking(askHome(home, homes.get(home), branches))
      for (const [n, branch] of branches.entries())
        answers.set(branch, { outcome: answer?.[n]?.outcome ?? 'unknown', reason })
    }),
  )
  const branches = found.map((branch): BranchShown => {
    const { finish, ...shown } = branch
    const { outcome, reason } = answers.get(branch) ?? { outcome: null, reason: null }
    const homeName = homes.get(branch.home ?? '')?.name ?? null
    return { ...shown, outcome, reason, homeName, type: lineFor(branch, outcome) }
  })
  const unreachable = asked.flatMap(({ database, reason }) => (reason === null ? [] : { database, reason }))
  return { branches, unreachable }
}

/** Whether the owner's role must be taken on to finish it. */
interface Listed extends Branch {
  readonly finish: 'as we are' | 'as its owner'
}

/** @see sql/recovery/branch.sql */
async function list(database: Database, homes: Map<string, Database>): Promise<readonly Listed[]> {
  const id = await database.identify()
  // Two names for one database show its branches once.
  if (homes.has(id)) return []
  homes.set(id, database)
  const { rows } = await withLink(
    database.connect(),
    (session) =>
      session.query<Listed>(
        `select $1::text as database, d.gid, d.transaction_id::text as "transactionId", d.home::text as home,
                d.home_xid::text as "homeXid", d.participant, d.owner::text as owner,
                to_char(d.prepared_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "preparedAt",
                extract(epoch from d.age)::float8 as "ageSeconds", d.ours, d.can_finish as "canFinish",
                case when d.owner <> current_user and not r.rolsuper then 'as its owner' else 'as we are' end as finish
           from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
          order by d.prepared_at, d.gid`,
        [database.name],
      ),
    patience,
  )
  return rows
}

/** Asks a home once for all its branches. @see sql/recovery/branch_outcome.sql */
async function askHome(home: string, database: Database | undefined, branches: readonly Branch[]) {
  if (database === undefined) {
    throw new Error(
      `its home ${home} is none of the databases that answered: add the one where once.database has this id`,
    )
  }
  const { rows } = await withReadCommitted(
    database.connect(),
    (session) =>
      session.query<{ outcome: keyof typeof colors }>(
        `select once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
           from unnest($2::text::text[], $3::text::text[]) with ordinality i (id, xid, n) order by i.n`,
        [
          home,
          arrayLiteral(branches.map(({ transactionId }) => transactionId)),
          arrayLiteral(branches.map(({ homeXid }) => homeXid)),
        ],
      ),
    patience,
  )
  return rows
}

function lineFor({ gid, owner, finish }: Listed, outcome: Answer['outcome']): string | null {
  if (outcome !== 'committed' && outcome !== 'aborted') return null
  const line = `${outcome === 'committed' ? 'commit' : 'rollback'} prepared ${literal(gid)};`
  return finish === 'as we are' ? line : `set role ${identifier(owner ?? '')}; ${line} reset role;`
}

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
      { text: outcome ?? 'not ours', style: outcome === null ? 'dim' : colors[outcome] },
      sayAge(branch.ageSeconds),
      owner ?? '?',
      branch.homeName ?? branch.home ?? '?',
      branch.transactionId ?? '?',
    ],
    notes,
  }
}
