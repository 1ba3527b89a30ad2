/**
 * A connection of the caller's own Kysely instance, on whatever driver. Nothing is known of that driver but what
 * each statement shows: it may tell no command tags, and reopen a lost connection without a word. So statements are
 * sent one at a time, each of ours asks itself whether it is inside our transaction, and PREPARE and COMMIT share a
 * text with that question.
 */
import { CompiledQuery, type DatabaseConnection, type Kysely, type QueryResult } from 'kysely'
import { AbortedError, isErrorAnswer } from '../errors.ts'
import * as say from '../statements.ts'
import { type Answer, type Link, neverSent, refuseAnswer } from './link.ts'
import { identifier, literal } from './quote.ts'

/** Takes a connection out of the pool behind a Kysely instance. */
export function takeKyselyLink(db: Kysely<unknown>): Promise<Link> {
  return new Promise((resolve, reject) => {
    const hold = (connection: DatabaseConnection) =>
      new Promise<void>((release) => resolve(kyselyLink(connection, release)))
    db.getExecutor().provideConnection(hold).catch(reject)
  })
}

/**
 * Refuses a driver of which we could not see what it does: one that changes text, or does not run all of several
 * statements in one text. Where it ran the first only, nothing would be committed, and be called committed.
 *
 * @throws DatabaseError `DRIVER`; AbortedError `CONNECTION_LOST` if it opened another connection meanwhile
 */
export async function probeDriver(link: Link): Promise<void> {
  await link.send(say.probe())
  await link.send(say.begin(undefined))
  try {
    await link.send(say.probeSeveral())
  } catch (error) {
    if (!isErrorAnswer(error)) throw error
    refuseAnswer('an error', both)
  }
  const found = await link.send(say.readProbe())
  if (found === 'one') refuseAnswer('the answer to the first', both)
  if (found !== 'two') {
    throw new AbortedError('CONNECTION_LOST', 'The connection changed within a transaction', {
      hint: keepHint,
    })
  }
  await link.send(say.rollback())
}

const keepHint =
  'If this comes again: the instance must keep one connection for as long as it is taken out of its pool'
const both = 'the answers to two statements in one text'

function kyselyLink(connection: DatabaseConnection, free: () => void): Link {
  // Not every driver queues statements by itself.
  let last: Promise<unknown> = Promise.resolve()
  let held = true
  const run = <R>(query: CompiledQuery): Promise<QueryResult<R>> => {
    if (!held) return Promise.reject(neverSent(new AbortedError('ENDED', 'This connection was given back')))
    const result = last.then(() => {
      if (!held) throw neverSent(new AbortedError('ABORTED', 'The connection was given up'))
      return connection.executeQuery<R>(query)
    })
    last = result.catch(() => {})
    return result
  }
  /** The role to take on again, as setting `role` has it. */
  let before: string | undefined
  const send = async <A>(statement: say.Statement<A>): Promise<A> => {
    const query = CompiledQuery.raw(statement.text, [...(statement.isScript ? [] : statement.values)])
    // By its name the simulation knows it.
    const result = await run({ ...query, ...{ statement } })
    return statement.read(statement.isSeveral ? { rows: [], command: undefined } : answerOf(result))
  }
  /** @throws if the role from before cannot be had: better one connection less than one that acts as somebody else */
  const clean = async () => {
    const again = (text: string) => {
      const go = () => connection.executeQuery(CompiledQuery.raw(text, []))
      // A request to cancel what ran before may come late, and hit this: once more then.
      return go().catch((error: unknown) => {
        if (isErrorAnswer(error)) return go()
        throw error
      })
    }
    await again('rollback').catch(() => {})
    if (before === undefined) return
    await again(`select pg_catalog.set_config('role', ${literal(before)}, false)`).catch((error: unknown) => {
      // A connection that is lost acts as nobody any more; its pool will see.
      if (isErrorAnswer(error)) throw error
    })
  }
  const link: Link = {
    isOwn: false,
    isDirect: false,
    durability: undefined,
    executeQuery: run,
    send,
    async query<R>(text: string, parameters: readonly unknown[] = []) {
      const { rows } = await run<R>(CompiledQuery.raw(text, [...parameters]))
      return { rows, command: undefined }
    },
    async takeRole(role) {
      before = await send(say.tellRole())
      await link.query(`set role ${identifier(role)}`)
    },
    async leaveRole() {
      if (before === undefined) return
      try {
        await send(say.setRole(before))
        before = undefined
      } catch {
        link.abandon()
      }
    },
    outdate() {},
    release() {
      if (held) free()
      held = false
    },
    abandon() {
      if (!held) return
      held = false
      // After the statement that runs.
      last.then(clean).then(free, () => {})
    },
  }
  return link
}

/** The first column of each row; a driver gives objects, whose names somebody may have changed. */
function answerOf({ rows }: QueryResult<unknown>): Answer {
  const textOf = (row: unknown) => {
    const [value] = Object.values(row as object) as unknown[]
    return value === null || typeof value === 'string' ? value : refuseAnswer(value, 'text')
  }
  return { command: undefined, rows: (rows ?? []).map(textOf) }
}
