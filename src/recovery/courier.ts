/**
 * A courier between databases: it asks each what it wants to know, carries the questions to those who can answer, the
 * answers back, and runs the statements that come of them. All is decided in SQL; here is only who can be reached. It may
 * be late, be one of many, or stop anywhere: see docs/protocol.md#couriers.
 *
 * @see sql/recovery/ask.sql, answer.sql, apply.sql
 */
import { traced } from '../commit/channels.ts'
import { finishPrepared } from '../commit/finish.ts'
import { type Database, inTime, withLink, withReadCommitted } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { codeOf, isServerError } from '../errors.ts'
import * as say from '../statements.ts'
import { type Row, read, type Told, told, unexpected } from './messages.ts'
import { newTally, type RecoveryReport, sayWhy, type Tally } from './report.ts'

/** What to ask for, in the order in which it is done. */
export type Step = 'finish' | 'prove' | 'confirm' | 'purge' | 'audit' | 'judge'

/** Milliseconds after which a database that does not answer is passed over. */
const patience = 10_000
/** Statements on their way over one connection; others wait for it meanwhile. */
const atOnce = 100

/** `settle` and `keep` in milliseconds; see `once.ask`. */
export const requestOf = (steps: readonly Step[], settle: number, keep: number) =>
  JSON.stringify({ steps, settle: `${settle} ms`, keep: `${keep} ms`, recoverer: 'pgonce' })

/** A database in a recovery, and what its courier knows of it. */
export interface Place {
  readonly database: Database
  /** Its own and the others of the recovery. */
  readonly places: readonly Place[]
  /** The id of the database, as it said last. */
  id: string | undefined
  /** Whether it did not answer when it was asked last, which {@link asked} waits for. */
  isSilent: boolean
  asked: Promise<unknown>
  /** What is under way, by batch and request. */
  readonly settling: Map<string, Promise<void>>
  /** What nobody was told yet. */
  report: Tally
}

export function placesOf(databases: readonly Database[]): readonly Place[] {
  const places: Place[] = []
  for (const database of databases) {
    const settling = new Map<string, Promise<void>>()
    const asked = Promise.resolve()
    places.push({ database, places, id: undefined, isSilent: false, asked, settling, report: newTally() })
  }
  return places
}

/** What came of all looks since this was called last. */
export function takeReport(place: Place): RecoveryReport {
  const { report } = place
  place.report = newTally()
  return report
}

/**
 * Asks a database, and settles what it asks. What cannot be done is reported, and fails nothing. What is not settled
 * after `grace` milliseconds goes on, and is not begun again before it has ended. Returns what more to request, and
 * whether there will be more soon.
 */
export async function look(
  place: Place,
  request: string,
  grace?: number,
): Promise<{ readonly next: readonly string[]; readonly again: boolean }> {
  const asked = attempt(place, place, () => ask(place, request))
  place.asked = asked
  const rows = (await asked) ?? []
  // Under two names it is looked after once.
  if (find(place, place.id) !== place) return { next: [], again: false }
  const questions = rows.filter((row) => row.kind === 'question')
  const settling = [...Map.groupBy(questions, ({ batch }) => batch)].map(([name, batch]) => {
    const key = `${name} ${request}`
    const begun = place.settling.get(key) ?? settle(place, batch).finally(() => place.settling.delete(key))
    place.settling.set(key, begun)
    return begun
  })
  const all = Promise.all(settling)
  await (grace === undefined ? all : inTime(grace, all).catch(() => {}))
  const next: string[] = []
  for (const row of rows) {
    if (row.kind === 'next') next.push(JSON.stringify(row.next))
    else if (row.kind !== 'question' && row.kind !== 'again') tell(place, row)
  }
  return { next, again: rows.some(({ kind }) => kind === 'again') }
}

const find = ({ places }: Place, id: string | undefined) => places.find((place) => place.id === id)

/** Runs a step on a database, for one that asks; a step that fails is reported and passed over. */
async function attempt<T>(asker: Place, place: Place, step: () => Promise<T>): Promise<T | undefined> {
  const { database } = place
  try {
    return await step()
  } catch (error) {
    if (codeOf(error) === 'ONIDN') {
      database.forgetDatabaseId()
      place.id = undefined
    }
    if (!isServerError(error)) place.isSilent = true
    const { unreachable } = asker.report
    if (!unreachable.some((one) => one.database === database.name))
      unreachable.push({ database: database.name, reason: sayWhy(error) })
    return undefined
  }
}

async function ask(place: Place, request: string) {
  const { database } = place
  // Once: it says in words what is wrong with a database that is not installed, or a standby.
  await inTime(patience, database.identify({ apart: true }))
  const said = await carry(database, say.ask(request))
  const [first, ...rows] = said.map((row) => read(row, ['id', 'question', 'next', 'again', ...told]))
  if (first?.kind !== 'id') throw unexpected('no id')
  if (first.id !== database.databaseId) database.forgetDatabaseId()
  place.id = first.id
  place.isSilent = false
  return rows.filter((row) => row.kind !== 'id')
}

async function settle(place: Place, batch: readonly Row<'question'>[]): Promise<void> {
  const answers = await Promise.all(batch.map((question) => answerTo(place, question)))
  const given = answers.filter((answer) => answer !== undefined)
  if (given.length === 0) return
  const applied = await attempt(place, place, async () => {
    const rows = await carry(place.database, say.apply(`[${given.join(',')}]`))
    return rows.map((row) => read(row, ['run', ...told]))
  })
  const statements: Row<'run'>[] = []
  for (const row of applied ?? []) {
    if (row.kind === 'run') statements.push(row)
    else tell(place, row)
  }
  await finish(place, statements)
}

async function answerTo(asker: Place, { to, question, gids = [] }: Row<'question'>) {
  const { places } = asker
  // One that is being asked may turn out to be it.
  if (find(asker, to) === undefined)
    await Promise.all(places.filter(({ isSilent }) => !isSilent).map(({ asked }) => asked))
  const home = find(asker, to)
  if (home !== undefined && !home.isSilent) {
    const text = JSON.stringify(question)
    const answer = await attempt(asker, home, () => carry(home.database, say.answer(text)))
    if (answer !== undefined) return answer
  }
  const whichever = places.some(({ isSilent }) => isSilent)
    ? 'that could be reached'
    : 'given: add the one where once.database has this id'
  const reason =
    home === undefined
      ? `${to} is none of the databases ${whichever}`
      : `${home.database.name} does not answer`
  for (const gid of gids) unfinished(asker, gid, `its home ${reason}`)
  return undefined
}

function tell(place: Place, row: Told): void {
  const { report } = place
  if (row.kind === 'pending') report.pending += 1
  else if (row.kind === 'unfinished') unfinished(place, row.subject, row.detail)
  else if (row.kind === 'proven' || row.kind === 'purged') report[row.kind] += row.count
  else {
    const { kind, subject: transactionId, participant, home } = row
    report.losses.push({ kind, transactionId, participant, home })
  }
}

function unfinished({ database, report }: Place, gid: string, reason: string): void {
  report.unfinished.push({ database: database.name, gid, reason })
}

// ---------------------------------------------------------------------------------------------------
// Statements

/** Sends a message alone or, where a statement alone has one snapshot for all of it, in a transaction that has not. */
async function carry<A>(database: Database, message: say.Statement<A>): Promise<A> {
  const send = (link: Link) => link.send(message)
  try {
    return await withLink(database.connectApart(patience), send, patience)
  } catch (error) {
    if (codeOf(error) !== 'ONISO') throw error
    return await withReadCommitted(database.connectApart(patience), send, patience)
  }
}

/**
 * Runs what `once.apply` returned, many at once where the driver lets us. Only its owner or a superuser may finish a
 * branch; a member of the owner's role must take it on first. Only what was done here is counted: what is gone,
 * somebody else has finished.
 */
async function finish(place: Place, statements: readonly Row<'run'>[]): Promise<void> {
  const { database } = place
  const left = new Set(statements)
  const fail = (those: Iterable<Row<'run'>>, error: unknown) => {
    for (const one of those) if (left.delete(one)) unfinished(place, one.gid, sayWhy(error))
  }
  const runOne = async (link: Link, one: Row<'run'>) => {
    const { id: transactionId, outcome, gid } = one
    const verb = outcome === 'committed' ? 'commit' : 'rollback'
    const run = () => finishPrepared(link, say.finish(verb, gid, one.statement))
    try {
      const done = await traced('recover', { database, transactionId, outcome }, run)
      if (left.delete(one) && done) place.report[outcome === 'committed' ? 'committed' : 'rolledBack'] += 1
    } catch (error) {
      fail([one], error)
      if (!isServerError(error)) throw error
    }
  }
  const nameOf = ({ role }: Row<'run'>, index: number) => `${Math.floor(index / atOnce)} ${role}`
  for (const batch of Map.groupBy(statements, nameOf).values()) {
    const role = batch[0]?.role ?? null
    const runAll = async (link: Link) => {
      try {
        if (role !== null) await link.takeRole(role)
        if (link.isOwn) await Promise.all(batch.map((one) => runOne(link, one)))
        else for (const one of batch) await runOne(link, one)
      } finally {
        if (role !== null) await link.leaveRole()
      }
    }
    try {
      await withLink(database.connectApart(patience), runAll, patience)
    } catch (error) {
      // Who does not answer would keep us waiting again and again.
      if (!isServerError(error)) return fail(left, error)
      fail(batch, error)
    }
  }
}
