/**
 * Branches that are prepared. They belong to no connection, nor to the resource that prepared them: what is known of
 * them is what the server says.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Database, withLink } from '../connection/database.ts'
import type { Link } from '../connection/link.ts'
import { literal } from '../connection/quote.ts'
import { codeOf, isErrorAnswer } from '../errors.ts'
import { localTransaction, unavailable, unfinished, unknown, XaError } from './errors.ts'
import { isOwnGidSql, parseXid, type RawXid, type Xid } from './xid.ts'

/** A prepared branch. It can be passed to `commit` and `rollback` as it is. */
export type RecoveredXid = (Xid | RawXid) & {
  /** What Postgres calls it. */
  readonly gid: string
  readonly preparedAt: Date
  /** The role that prepared it: it or a superuser may finish it. */
  readonly owner: string | null
}

/** Milliseconds to wait for whoever else is finishing the same branch. */
const patience = 2_000

/**
 * @param borrowed whether others use the pool as well, and may have left something open on a connection
 * @param timeout milliseconds for what is asked of the server
 */
export function preparedBranches(database: Database, borrowed: boolean, timeout: number) {
  /**
   * Asks on some connection: one of the pool if one is free, else one apart, so that open branches, which may
   * wait for the locks of a prepared one, cannot keep it from being finished.
   */
  async function ask<T>(failure: string, task: (session: Link) => Promise<T>): Promise<T> {
    const pooled = database.permits.tryTake()
    try {
      return await withLink(pooled ? database.connect() : database.connectApart(), task, timeout)
    } catch (error) {
      throw unavailable(failure, error)
    } finally {
      if (pooled) database.permits.give()
    }
  }

  return {
    /** Refuses a branch that is not here: it is prepared, or there is none. @throws XaError */
    async refuse(gid: string, ifPrepared: string): Promise<never> {
      const { rows } = await ask(`Branch ${gid} could not be looked for`, (session) =>
        session.query(
          `select from pg_catalog.pg_prepared_xacts p
            where p.gid = $1 and p.database = pg_catalog.current_database()`,
          [gid],
        ),
      )
      throw rows.length > 0 ? new XaError('XAER_PROTO', `Branch ${gid} ${ifPrepared}`) : unknown(gid)
    },

    /** The second phase. @throws XaError */
    async finish(verb: 'commit' | 'rollback', gid: string): Promise<void> {
      const deadline = performance.now() + Math.min(timeout, patience)
      for (;;) {
        // A refusal is returned: thrown, it would cost the connection, and the local transaction on it.
        const refusal = await ask(`The answer to ${verb} of branch ${gid} is missing`, async (session) => {
          // The statement itself would be refused there, and the refusal would break the local transaction.
          if (borrowed && (await isInTransaction(session))) return localTransaction('XAER_RMFAIL', gid)
          try {
            await session.query(`${verb} prepared ${literal(gid)}`)
          } catch (error) {
            if (isErrorAnswer(error)) return unfinished(verb, gid, error)
            throw error
          }
        })
        if (refusal === undefined) return
        if (codeOf(refusal.cause) !== '55000' || performance.now() > deadline) throw refusal
        await sleep(20)
      }
    },

    /** All of this database but pgonce's own, oldest first. @throws XaError */
    async list(): Promise<RecoveredXid[]> {
      const { rows } = await ask('The prepared branches could not be listed', (session) =>
        session.query<{ gid: string; owner: string | null; prepared: string }>(
          `select p.gid, p.owner::text as owner,
                  (pg_catalog.date_part('epoch', p.prepared) * 1000)::text as prepared
             from pg_catalog.pg_prepared_xacts p
            where p.database = pg_catalog.current_database() and not p.${isOwnGidSql}
            order by p.prepared, p.gid`,
        ),
      )
      return rows.map(({ gid, owner, prepared }) => {
        return { ...parseXid(gid), gid, owner, preparedAt: new Date(Number(prepared)) }
      })
    },
  }
}

/**
 * Whether a transaction is open on a connection that was idle. What is set locally outlives its statement in a
 * transaction only. (SAVEPOINT would tell as well, but where all is well it leaves an error in the server's log;
 * and comparing the ages of statement and transaction depends on the driver's protocol.)
 */
export async function isInTransaction(session: Link): Promise<boolean> {
  try {
    const [, { rows }] = await Promise.all([
      session.query("select pg_catalog.set_config('pgonce.probe', 'open', true)"),
      session.query<{ probe: string | null }>(
        "select pg_catalog.current_setting('pgonce.probe', true) as probe",
      ),
    ])
    return rows[0]?.probe === 'open'
  } catch (error) {
    if (codeOf(error) === '25P02') return true
    throw error
  }
}
