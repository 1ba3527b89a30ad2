/**
 * A courier between databases: it asks each what it wants to know, carries the questions to those who can answer, the
 * answers back, and runs the statements that come of them. What is asked, answered and done is decided in SQL; here is
 * only who can be reached.
 *
 * It may be late, be one of many, or stop anywhere: see docs/protocol.md#couriers.
 *
 * @see sql/recovery/ask.sql, answer.sql, apply.sql
 */
import { traced } from '../commit/channels.ts'
import { type Database, inTime, withLink, withReadCommitted } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { environment } from '../environment.ts'
import { codeOf, isServerError } from '../errors.ts'
import * as say from '../statements.ts'
import { type Asked, type Question, readApplied, readAsked, type Statement, unexpected } from './messages.ts'
import { merged, newTally, sayWhy, type Tally } from './report.ts'

/** What to ask for, in the order in which it is done. */
export type Step = 'finish' | 'prove' | 'confirm' | 'purge' | 'audit' | 'judge'

export interface Look {
  /** What came of it, and of earlier looks since the last one. */
  readonly report: Tally
  /** There is more: requests for it. */
  readonly next: readonly string[]
  /** There will be more soon. */
  readonly again: boolean
}

export interface Courier {
  /**
   * Asks a database, and settles what it asks. What cannot be done is reported, and fails nothing. What is not settled
   * after `grace` milliseconds goes on, and is not begun again before it has ended.
   */
  look(database: Database, request: string, grace?: number): Promise<Look>
  /** Whether it did not answer when it was asked last. */
  isSilent(database: Database): boolean
  /** Waits for what still goes on. */
  settled(): Promise<void>
}

/** Milliseconds after which a database that does not answer is passed over. */
const patience = 10_000
/** Statements on their way over one connection; others wait for it meanwhile. */
const atOnce = 100

export function requestOf(
  steps: readonly Step[],
  { settle, keep }: { readonly settle: number; readonly keep: number },
): string {
  return JSON.stringify({ steps, settle: `${settle} ms`, keep: `${keep} ms`, recoverer: 'pgonce' })
}

export function courierAmong(databases: readonly Database[]): Courier {
  /** Which database is which, as each said last. */
  const ids = new Map<Database, string>()
  const silent = new Set<Database>()
  /** Those that are being asked. */
  const asking = new Map<Database, Promise<unknown>>()
  /** What is being settled, and what came of it that nobody was told yet. */
  const underWay = new Map<string, Promise<void>>()
  const untold = new Map<Database, Tally>()
  const find = (id: string) => databases.find((database) => ids.get(database) === id)

  /** Runs a step on a database; one that fails is reported and passed over. */
  async function attempt<T>(
    report: Tally,
    database: Database,
    step: () => Promise<T>,
  ): Promise<T | undefined> {
    try {
      return await step()
    } catch (error) {
      if (codeOf(error) === 'ONIDN') {
        database.forgetDatabaseId()
        ids.delete(database)
      }
      if (!isServerError(error)) silent.add(database)
      const { name } = database
      if (!report.unreachable.some((one) => one.database === name))
        report.unreachable.push({ database: name, reason: sayWhy(error) })
      return undefined
    }
  }

  async function ask(database: Database, request: string): Promise<Asked[]> {
    // Once: it says in words what is wrong with a database that is not installed, or a standby.
    await inTime(patience, database.identify({ apart: true }))
    const rows = await carry(database, say.ask(request))
    const asked = rows.map(readAsked)
    const [first] = asked
    if (first?.id === undefined) throw unexpected('no id')
    if (first.id !== database.databaseId) database.forgetDatabaseId()
    ids.set(database, first.id)
    silent.delete(database)
    return asked
  }

  /** The database that a question is for: one that is being asked may turn out to be it. */
  async function placeOf(id: string): Promise<Database | undefined> {
    const known = find(id)
    if (known !== undefined) return known
    await Promise.allSettled(
      [...asking].flatMap(([database, asked]) => (silent.has(database) ? [] : [asked])),
    )
    return find(id)
  }

  async function answerTo(
    { to, text, gids }: Question,
    from: Database,
    report: Tally,
  ): Promise<string | undefined> {
    const place = await placeOf(to)
    const answer =
      place === undefined || silent.has(place)
        ? undefined
        : await attempt(report, place, () => carry(place, say.answer(text)))
    if (answer !== undefined) return answer
    const reason =
      place !== undefined
        ? `its home ${place.name} does not answer`
        : silent.size > 0
          ? `its home ${to} is none of the databases that could be reached`
          : `its home ${to} is none of the databases given: add the one where once.database has this id`
    for (const gid of gids) report.unfinished.push({ database: from.name, gid, reason })
    return undefined
  }

  async function settle(database: Database, batch: readonly Question[]): Promise<void> {
    const report = newTally()
    await settleInto(report, database, batch)
    untold.set(database, merged(untold.get(database), report))
  }

  async function settleInto(report: Tally, database: Database, batch: readonly Question[]): Promise<void> {
    const answers = await Promise.all(batch.map((question) => answerTo(question, database, report)))
    const given = answers.filter((answer) => answer !== undefined)
    if (given.length === 0) return
    const applied = await attempt(report, database, async () => {
      const rows = await carry(database, say.apply(`[${given.join(',')}]`))
      return rows.map(readApplied)
    })
    const statements: Statement[] = []
    for (const { statement, told } of applied ?? []) {
      if (statement !== undefined) statements.push(statement)
      if (told !== undefined) tell(told, database, report)
    }
    await finish(database, statements, report)
  }

  return {
    isSilent: (database) => silent.has(database),
    async settled() {
      await Promise.all(underWay.values())
    },
    async look(database, request, grace) {
      const report = newTally()
      const asked = attempt(report, database, () => ask(database, request))
      asking.set(database, asked)
      const rows = (await asked) ?? []
      asking.delete(database)
      // Under two names it is looked after once.
      const isFirst = find(ids.get(database) ?? '') === database
      const questions = isFirst ? rows.flatMap(({ question }) => question ?? []) : []
      const settling = [...Map.groupBy(questions, ({ batch }) => batch)].map(([name, batch]) => {
        const key = `${database.name} ${name} ${request}`
        const before = underWay.get(key)
        if (before !== undefined) return before
        const begun = settle(database, batch).finally(() => underWay.delete(key))
        underWay.set(key, begun)
        return begun
      })
      const all = Promise.all(settling)
      await (grace === undefined ? all : inTime(grace, all).catch(() => {}))
      for (const { told } of rows) if (told !== undefined && isFirst) tell(told, database, report)
      const came = untold.get(database)
      untold.delete(database)
      return {
        report: merged(came, report),
        next: isFirst ? rows.flatMap(({ next }) => next ?? []) : [],
        again: rows.some(({ again }) => again),
      }
    },
  }
}

function tell(
  { action, subject, detail, count, participant, home }: NonNullable<Asked['told']>,
  { name }: Database,
  report: Tally,
): void {
  if (action === 'pending') report.pending += 1
  else if (action === 'unfinished') report.unfinished.push({ database: name, gid: subject, reason: detail })
  else if (action === 'proven' || action === 'purged') report[action] += count
  else report.losses.push({ kind: action, transactionId: subject, participant, home })
}

// ---------------------------------------------------------------------------------------------------
// Statements

/**
 * Sends a message, alone. It is refused where a statement alone has a snapshot for all of it; there it is sent in a
 * transaction that has not.
 */
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
 * Runs what `once.apply` returned, many at once where the driver lets us. Only what was done here is counted: what is
 * gone, somebody else has finished.
 */
async function finish(database: Database, statements: readonly Statement[], report: Tally): Promise<void> {
  for (const [role, all] of Map.groupBy(statements, (statement) => statement.role)) {
    for (let from = 0; from < all.length; from += atOnce) {
      const left = new Set(all.slice(from, from + atOnce))
      const failed = (one: Statement, error: unknown) => {
        if (left.delete(one))
          report.unfinished.push({ database: database.name, gid: one.gid, reason: sayWhy(error) })
      }
      const runOne = async (link: Link, one: Statement) => {
        const { id: transactionId, outcome } = one
        try {
          const done = await traced('recover', { database, transactionId, outcome }, () =>
            runStatement(link, one),
          )
          if (left.delete(one) && done) report[outcome === 'committed' ? 'committed' : 'rolledBack'] += 1
        } catch (error) {
          failed(one, error)
          if (!isServerError(error)) throw error
        }
      }
      try {
        await withLink(
          database.connectApart(patience),
          (link) => runAs(role, link, [...left], runOne),
          patience,
        )
      } catch (error) {
        for (const one of left) failed(one, error)
        // Who does not answer would keep us waiting again and again.
        if (isServerError(error)) continue
        for (const one of all.slice(from + atOnce))
          report.unfinished.push({ database: database.name, gid: one.gid, reason: sayWhy(error) })
        return
      }
    }
  }
}

/** Only its owner or a superuser may finish a branch; a member of the owner's role must take it on first. */
async function runAs(
  role: string | null,
  link: Link,
  statements: readonly Statement[],
  runOne: (link: Link, statement: Statement) => Promise<void>,
): Promise<void> {
  const runAll = async () => {
    if (link.isOwn) await Promise.all(statements.map((one) => runOne(link, one)))
    else for (const one of statements) await runOne(link, one)
  }
  if (role === null) return await runAll()
  try {
    await link.takeRole(role)
    await runAll()
  } finally {
    await link.leaveRole()
  }
}

/** COMMIT PREPARED or ROLLBACK PREPARED; false if the branch is gone. That proves nothing: evidence does, later. */
async function runStatement(link: Link, { text, gid, outcome }: Statement): Promise<boolean> {
  for (;;) {
    try {
      await link.send(say.finishAs(text, outcome === 'committed' ? 'commit' : 'rollback', gid))
      return true
    } catch (error) {
      if (codeOf(error) === '42704') return false
      // Somebody else is finishing it right now, or PREPARE still waits for a standby.
      if (codeOf(error) !== '55000') throw error
      await environment.sleep(20)
    }
  }
}
