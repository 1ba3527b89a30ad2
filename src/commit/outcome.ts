/** What became of a transaction: only its home can say. */
import { asConnectionLost, type Database, inTime, withReadCommitted } from '../connection/database.ts'
import { environment } from '../environment.ts'
import { codeOf, InvalidInputError } from '../errors.ts'
import * as say from '../statements.ts'
import { parseId } from './gid.ts'

/** What became of a global transaction: `purged` means it ended too long ago to tell. */
export type Outcome = 'committed' | 'aborted' | 'pending' | 'purged'

/** Milliseconds that a home may take to answer. */
const patience = 10_000

/** @see sql/recovery/outcome.sql */
export async function readOutcome(home: Database, global: say.GlobalId): Promise<Outcome> {
  return await withReadCommitted(home.connectApart(), (link) => link.send(say.outcome(global)), patience)
}

/** Asks the home until it answers for certain; undefined if it does not in time. */
export async function awaitOutcome(
  home: Database,
  global: say.GlobalId,
  time: number,
): Promise<'committed' | 'aborted' | undefined> {
  const deadline = environment.now() + time
  while (environment.now() < deadline) {
    try {
      const outcome = await inTime(deadline - environment.now(), readOutcome(home, global))
      if (outcome === 'committed' || outcome === 'aborted') return outcome
    } catch {
      // Not reachable yet; only an answer counts.
    }
    await environment.sleep(Math.min(50, Math.max(0, deadline - environment.now())))
  }
  return undefined
}

/** Asks whichever of the databases is the home of a transaction, by the transaction's id as the client gave it. */
export async function outcomeOf(databases: readonly Database[], id: string): Promise<Outcome> {
  const global = parseId(id)
  const ask = (home: Database) =>
    readOutcome(home, global).catch((error: unknown) => {
      throw asConnectionLost(home.name, error)
    })
  const known = databases.find(({ databaseId }) => databaseId === global.home)
  if (known !== undefined) {
    try {
      return await ask(known)
    } catch (error) {
      // It is not what it was when it said who it is; perhaps another is the home by now.
      if (codeOf(error) !== 'ONIDN') throw error
    }
  }
  const home = await findHome(databases, global.home)
  if (home !== undefined) return await ask(home)
  const hint = `Add it: in that database once.database has the id ${global.home}`
  throw new InvalidInputError('ONARG', `None of the databases is the home of transaction ${id}`, { hint })
}

/** Whichever says that it is this one: the others, of which one may not answer, are waited for only until then. */
function findHome(databases: readonly Database[], home: string): Promise<Database | undefined> {
  return new Promise((resolve, reject) => {
    const asked = databases.map(async (database) => {
      if ((await database.identify({ anew: true, apart: true })) === home) resolve(database)
    })
    Promise.all(asked).then(
      () => resolve(undefined),
      (error) => Promise.allSettled(asked).then(() => reject(error)),
    )
  })
}
