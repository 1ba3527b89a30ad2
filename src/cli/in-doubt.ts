/** `pgonce in-doubt`: every prepared transaction of ours, with what its home decided and what to type. */
import { type Database, withLink, withReadCommitted } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { arrayLiteral, identifier, literal } from '../connection/quote.ts'
import { chooseDatabases, type DatabaseFlags, openOne, patience, tryAsking } from './databases.ts'
import { count, paint, print, printJson, type Row, sayAge, table } from './output.ts'

const colors = { committed: 'green', aborted: 'yellow', pending: 'cyan', unknown: 'red' } as const
type Outcome = keyof typeof colors

/** A prepared transaction whose gid has our prefix, as `once.branch` shows it, and what its home says. */
export interface BranchShown {
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
  /** `unknown` if its home could not be asked, for this reason; null for what is not ours. */
  readonly outcome: Outcome | null
  readonly reason: string | null
  /** The home's name among the given databases; null if it is none of them. */
  readonly homeName: string | null
  /** What finishes it in psql, connected to this database; null if it is not decided or not ours. */
  readonly type: string | null
}

export async function runInDoubt(urls: readonly string[], flags: DatabaseFlags): Promise<void> {
  const databases = chooseDatabases(urls, flags).map(openOne)
  const { branches, unreachable } = await listInDoubt(databases)
  if (unreachable.length > 0) process.exitCode = 1
  if (flags.json) return printJson({ branches, unreachable })

  for (const { database, reason } of unreachable)
    print(`${paint('cannot look into', 'red')} ${database}: ${reason}`)
  if (branches.length === 0) {
    const silent = new Set(unreachable.map(({ database }) => database))
    const looked = databases.map(({ name }) => name).filter((name) => !silent.has(name))
    if (looked.length > 0) print(`Nothing is in doubt in ${looked.join(', ')}.`)
    return
  }
  print(`${table(['database', 'outcome', 'age', 'owner', 'home', 'transaction'], branches.map(rowOf))}\n`)
  const ours = branches.filter((branch) => branch.ours).length
  const decided = branches.filter(({ type }) => type !== null).length
  const strange = ours < branches.length ? `; ${branches.length - ours} not ours, left alone` : ''
  const todo = decided > 0 ? ' pgonce recover finishes what is decided.' : ''
  print(`${count(ours, 'branch', 'branches')} in doubt, ${decided} decided${strange}.${todo}`)
}

async function listInDoubt(databases: readonly Database[]) {
  const homes = new Map<string, Database>()
  const asked = await Promise.all(
    databases.map(async (one) => ({ database: one.name, ...(await tryAsking(list(one, homes))) })),
  )
  const unreachable = asked.flatMap(({ database, reason }) => (reason === null ? [] : { database, reason }))
  const found = asked.flatMap(({ answer }) => answer ?? [])
  const ours = found.filter((branch) => branch.ours)
  await Promise.all(
    [...Map.groupBy(ours, ({ home }) => home ?? '')].map(async ([home, branches]) => {
      const { answer, reason } = await tryAsking(askHome(home, homes.get(home), branches))
      for (const [n, branch] of branches.entries())
        Object.assign(branch, { outcome: answer?.[n]?.outcome ?? 'unknown', reason })
    }),
  )
  const branches = found.map((listed): BranchShown => {
    const { otherRole, ...branch } = listed
    const homeName = homes.get(branch.home ?? '')?.name ?? null
    return { ...branch, homeName, type: lineFor(listed) }
  })
  return { branches, unreachable }
}

/** Whether the owner's role must be taken on to finish it. */
type Listed = Omit<BranchShown, 'homeName' | 'type'> & { readonly otherRole: boolean }

/** @see sql/recovery/branch.sql */
async function list(database: Database, homes: Map<string, Database>): Promise<readonly Listed[]> {
  const id = await database.identify()
  // Two names for one database show its branches once.
  if (homes.has(id)) return []
  homes.set(id, database)
  const text = `
    select $1::text as database, d.gid, d.transaction_id::text as "transactionId", d.home::text as home,
           d.home_xid::text as "homeXid", d.participant, d.owner::text as owner,
           to_char(d.prepared_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "preparedAt",
           extract(epoch from d.age)::float8 as "ageSeconds", d.ours, d.can_finish as "canFinish",
           null as outcome, null as reason, d.owner <> current_user and not r.rolsuper as "otherRole"
      from once.branch d join pg_catalog.pg_roles r on r.rolname = current_user
     order by d.prepared_at, d.gid`
  const ask = (session: Link) => session.query<Listed>(text, [database.name])
  return (await withLink(database.connect(), ask, patience)).rows
}

/** Asks a home once for all its branches. @see sql/recovery/branch_outcome.sql */
async function askHome(home: string, database: Database | undefined, branches: readonly Listed[]) {
  if (database === undefined) {
    throw new Error(
      `its home ${home} is none of the databases that answered: add the one where once.database has this id`,
    )
  }
  const text = `
    select once.branch_outcome($1::uuid, i.id::uuid, i.xid::xid8) as outcome
      from unnest($2::text::text[], $3::text::text[]) with ordinality i (id, xid, n) order by i.n`
  const ids = arrayLiteral(branches.map(({ transactionId }) => transactionId))
  const xids = arrayLiteral(branches.map(({ homeXid }) => homeXid))
  const ask = (session: Link) => session.query<{ outcome: Outcome }>(text, [home, ids, xids])
  return (await withReadCommitted(database.connect(), ask, patience)).rows
}

function lineFor({ gid, owner, outcome, otherRole }: Listed): string | null {
  if (outcome !== 'committed' && outcome !== 'aborted') return null
  const line = `${outcome === 'committed' ? 'commit' : 'rollback'} prepared ${literal(gid)};`
  return otherRole ? `set role ${identifier(owner ?? '')}; ${line} reset role;` : line
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
