/**
 * One database as a resource manager of XA: a transaction manager of another make drives its branches through the two
 * phases, and answers for the decision. An unprepared branch lives and dies with a connection, which `start` takes out
 * of the pool; a prepared one belongs to none: see prepared.ts.
 *
 * @see X/Open C193, chapter 5 (the verbs) and section 6.3 (the states of a branch)
 */
import type { Transaction } from 'kysely'
import { checkInteger, checkMilliseconds, checkObject } from '../check.ts'
import { createDatabase, inTime, transactionOver } from '../connection/database.ts'
import type { Executor, Link } from '../connection/link.ts'
import { literal } from '../connection/quote.ts'
import { type Cursors, noCursors, withStreams } from '../connection/stream.ts'
import type { DatabaseTarget } from '../connection/target.ts'
import { codeOf, HandlerError, isErrorAnswer } from '../errors.ts'
import * as xa from './codes.ts'
import * as say from './errors.ts'
import { XaError } from './errors.ts'
import { isInTransaction, preparedBranches, type RecoveredXid } from './prepared.ts'
import { formatXid, gidOf, type RawXid, type XidInput } from './xid.ts'

export interface XaOptions {
  /** Connections that branches may hold at once; more than the given instance's pool has is of no use. @defaultValue 10 */
  readonly maxConnections?: number
  /** Milliseconds to wait for a connection. @defaultValue 10000 */
  readonly connectTimeout?: number
  /** Milliseconds to wait for what a verb asks of the server; then the answer is XAER_RMFAIL. @defaultValue 60000 */
  readonly timeout?: number
}

/**
 * The verbs. Success is returned, and all else is thrown, as an {@link XaError} whose
 * `xaCode` is the number: a manager that forgot to compare a number would take a failed `prepare` for a vote to
 * commit; one that forgets to catch an error stops.
 *
 * All verbs throw `XAER_INVAL` for an xid or flags that are none, `XAER_RMFAIL` if the database cannot be reached
 * or does not answer, `XAER_PROTO` if the branch is in a state where the verb has no place or the resource is
 * closed, and but for `start` and `recover` `XAER_NOTA` if there is no such branch. A branch that is prepared is
 * never answered with `XAER_RMERR` or `XA_RB*`, which would let a manager forget it.
 */
export interface XaResource<DB> extends AsyncDisposable {
  /**
   * Begins a branch, or with `TMJOIN` goes on with one that was ended here.
   *
   * @returns a handle to work in the branch until `end`; nobody else sees the branch's connection
   * @throws XaError `XAER_DUPID` if the xid is taken; `XAER_NOTA` if the branch to join is none of this resource's;
   *   `XAER_OUTSIDE` if the pool gave a connection with an open transaction; `XAER_RMERR` for `TMRESUME`;
   *   `XA_RBROLLBACK` if the branch to join was ended with `TMFAIL`
   */
  start(xid: XidInput, flags?: number): Promise<Transaction<DB>>
  /**
   * Ends the work in a branch, for better (`TMSUCCESS`, the default) or worse (`TMFAIL`: it can then only be rolled
   * back). The handle is of no use afterwards. Asks nothing of the server.
   *
   * @throws XaError `XAER_RMERR` for `TMSUSPEND`
   */
  end(xid: XidInput, flags?: number): Promise<typeof xa.XA_OK>
  /**
   * Votes. After `XA_OK` the branch is prepared: it outlives connections, this process and the server, and waits for
   * `commit` or `rollback`. After `XA_RDONLY` there is nothing to finish: it wrote nothing, and is committed.
   *
   * @throws XaError `XA_RB*` if it is rolled back instead, also because an earlier statement had failed;
   *   `XAER_RMERR` if its own SQL has ended its transaction. After `XAER_RMFAIL` it may be prepared: `recover` tells
   */
  prepare(xid: XidInput): Promise<typeof xa.XA_OK | typeof xa.XA_RDONLY>
  /**
   * Commits a prepared branch, whoever prepared it; or, with `TMONEPHASE`, one that was ended here.
   *
   * @throws XaError `XA_RETRY` if another session is at it; with `TMONEPHASE` as `prepare`, and after `XAER_RMFAIL`
   *   the outcome is not known; without, ask again: `XA_OK` or `XAER_NOTA`
   */
  commit(xid: XidInput | RawXid, flags?: number): Promise<typeof xa.XA_OK>
  /** Rolls back a branch that was ended here, or a prepared one, whoever prepared it. */
  rollback(xid: XidInput | RawXid): Promise<typeof xa.XA_OK>
  /**
   * The prepared branches of this database, oldest first, all at once: with `TMSTARTRSCAN`, which is in the default.
   * Without, nothing more follows, and `XAER_INVAL` if no scan was started. Gids in no known format are among them
   * as they are ({@link RawXid}); the branches of pgonce itself are not, since their home decides on them.
   */
  recover(flags?: number): Promise<RecoveredXid[]>
  /** Always refused: Postgres completes no branch by itself, so there is no heuristic outcome to forget. */
  forget(xid: XidInput | RawXid): Promise<never>
  /** Rolls back what is not prepared, leaves what is, and ends the connections that were opened here. */
  close(): Promise<void>
}

/** What one `start` has begun and nothing has finished. */
interface Branch {
  readonly gid: string
  readonly session: Link
  /** Of its streams, whoever is associated with it. */
  readonly cursors: Cursors
  state: say.State
  /** Which handle may be used: each `start` gives a new one. */
  association: object
  rollbackOnly: boolean
  /** What failed last in it. */
  failure: unknown
}

/**
 * A database as an XA resource manager. It needs nothing installed but `max_prepared_transactions` above 0.
 *
 * @param target a URL, a postgres.js instance, or a Kysely instance on any Postgres driver; what is given open
 *   stays open
 * @throws InvalidInputError `ONARG` if it is none of these, or an option is out of range
 * @see docs/xa.md
 */
export function xaResource<DB = unknown>(
  target: DatabaseTarget<DB>,
  options: XaOptions = {},
): XaResource<DB> {
  checkObject('options', options)
  const maxConnections = Number(checkInteger('maxConnections', options.maxConnections ?? 10, 1n, 10_000n))
  const connectTimeout = checkMilliseconds('connectTimeout', options.connectTimeout ?? 10_000, 1)
  const timeout = checkMilliseconds('timeout', options.timeout ?? 60_000, 1)
  const database = createDatabase('xa', target as DatabaseTarget, { maxConnections, connectTimeout })
  // Others use the pool as well, and may have left something open on a connection.
  const borrowed = typeof target !== 'string' && !(target instanceof URL)
  const prepared = preparedBranches(database, borrowed, timeout)
  /** By gid; undefined while it begins. */
  const branches = new Map<string, Branch | undefined>()
  let scanning = false
  let closing: Promise<void> | undefined

  const checkOpen = () => {
    if (closing) throw new XaError('XAER_PROTO', 'This resource is closed')
  }

  /** The branch if it is here; undefined if not. @throws XaError `XAER_PROTO` if it is in another state */
  function find(gid: string, state: say.State | 'prepared'): Branch | undefined {
    if (!branches.has(gid)) return undefined
    const branch = branches.get(gid)
    const found = branch?.state ?? 'active'
    if (found !== state) throw say.improper(gid, found)
    return branch
  }

  // -------------------------------------------------------------------------------------------------
  // Branches that live here

  async function begin(gid: string): Promise<Transaction<DB>> {
    await database.permits.take(AbortSignal.timeout(connectTimeout)).catch((cause) => {
      throw new XaError('XAER_RMFAIL', 'All connections stayed in use by branches', {
        hint: 'Finish branches, or make the pool larger (maxConnections)',
        cause,
      })
    })
    let session: Link | undefined
    try {
      session = await database.connect()
      const refusal = await inTime(timeout, open(session, gid))
      // From here on without a pause: who closes the resource finds the branch, or has closed it before.
      checkOpen()
      if (refusal === undefined) {
        const fresh = { association: {}, rollbackOnly: false, failure: undefined }
        const branch: Branch = { gid, session, cursors: noCursors(), state: 'active', ...fresh }
        branches.set(gid, branch)
        return associate(branch)
      }
      session.release()
      session = undefined
      throw refusal
    } catch (error) {
      session?.abandon()
      database.permits.give()
      throw error instanceof XaError ? error : say.unavailable(`Branch ${gid} could not begin`, error)
    }
  }

  /** Begins the transaction; a refusal leaves the connection as it was. */
  async function open(session: Link, gid: string): Promise<XaError | undefined> {
    if (borrowed && (await isInTransaction(session))) return say.localTransaction('XAER_OUTSIDE', gid)
    const [{ rows }] = await Promise.all([
      session.query<{ taken: boolean }>(
        'select exists (select from pg_catalog.pg_prepared_xacts p where p.gid = $1) as taken',
        [gid],
      ),
      session.query('begin'),
      // It ends with the transaction: as long as it is there, the transaction is the one we began. Not by a
      // function: a query would keep the branch from choosing its isolation level.
      session.query("set local pgonce.branch = 'open'"),
    ])
    if (!rows[0]?.taken) return undefined
    await session.query('rollback')
    return say.duplicate(gid)
  }

  /** Gives out a new handle, the only one that works in the branch from now on. */
  function associate(branch: Branch): Transaction<DB> {
    const { gid, session, cursors } = branch
    const association = {}
    Object.assign(branch, { association, state: 'active' })
    const executor: Executor = {
      async executeQuery(query) {
        // Checked where a query is sent: one that was not awaited must not follow PREPARE on the same connection.
        if (branch.association !== association) {
          throw new HandlerError('ENDED', `The work in branch ${gid} was ended`, {
            hint: 'Await every query before end; start with TMJOIN gives a handle to go on with',
          })
        }
        try {
          return await session.executeQuery<never>(query)
        } catch (error) {
          // The one before it says why.
          if (codeOf(error) !== '25P02') branch.failure = error
          throw isErrorAnswer(error)
            ? error
            : say.unavailable(`The connection of branch ${gid} was lost`, error)
        }
      },
    }
    const connection = withStreams(executor, cursors)
    return transactionOver(database.db, {
      provideConnection: (consumer) => consumer(connection),
    }) as unknown as Transaction<DB>
  }

  /**
   * Ends a branch's transaction and gives its connection back. Nobody else completes the branch meanwhile.
   *
   * @returns whether the branch wrote
   * @throws XaError after rolling back, or if nobody can know what became of it
   */
  async function complete(branch: Branch, verb: 'prepare' | 'commit' | 'rollback'): Promise<boolean> {
    const { gid, session } = branch
    branch.state = 'completing'
    try {
      const ending = verb === 'rollback' ? session.query(verb).then(() => false) : settle(branch, verb)
      const wrote = await inTime(timeout, ending)
      session.release()
      return wrote
    } catch (error) {
      const isRefused = error instanceof XaError
      if (!isRefused && !isErrorAnswer(error)) {
        session.abandon()
        throw say.unavailable(`The answer to ${verb} of branch ${gid} is missing`, error, verb)
      }
      await inTime(timeout, session.query('rollback')).then(
        () => session.release(),
        () => session.abandon(),
      )
      throw isRefused ? error : say.rolledBack(gid, error)
    } finally {
      branches.delete(gid)
      database.permits.give()
    }
  }

  /** Commits, or prepares what wrote. @throws XaError if it can only be rolled back */
  async function settle(branch: Branch, verb: 'prepare' | 'commit'): Promise<boolean> {
    const { gid, session } = branch
    if (branch.rollbackOnly) throw say.endedWithFail(gid)
    const { rows } = await session
      .query<{ same: boolean; wrote: boolean }>(
        `select pg_catalog.current_setting('pgonce.branch', true) is not distinct from 'open' as same,
                pg_catalog.pg_current_xact_id_if_assigned() is not null as wrote`,
      )
      .catch((error) => {
        throw codeOf(error) === '25P02' ? say.rolledBack(gid, branch.failure) : error
      })
    if (!rows[0]?.same) {
      throw new XaError('XAER_RMERR', `The SQL of branch ${gid} has ended the branch's transaction itself`, {
        detail: 'What it committed stands, and what came after is rolled back.',
        hint: 'Leave BEGIN, COMMIT, ROLLBACK and PREPARE TRANSACTION to the transaction manager',
      })
    }
    const { wrote } = rows[0]
    const isPrepared = verb === 'prepare' && wrote
    const { command } = await session.query(isPrepared ? `prepare transaction ${literal(gid)}` : 'commit')
    // In a failed transaction both roll back, and say so in the tag alone. Without tags, the question has told.
    if (command !== undefined && command !== (isPrepared ? 'PREPARE TRANSACTION' : 'COMMIT'))
      throw say.rolledBack(gid, branch.failure)
    return wrote
  }

  // -------------------------------------------------------------------------------------------------
  // The verbs

  const resource: XaResource<DB> = {
    async start(xid, flags = xa.TMNOFLAGS) {
      checkOpen()
      const gid = formatXid(xid)
      say.checkFlags('start', flags, [xa.TMNOFLAGS, xa.TMJOIN], 'TMNOFLAGS or TMJOIN')
      if (flags === xa.TMJOIN) {
        const branch = find(gid, 'ended')
        if (branch === undefined) {
          throw new XaError('XAER_NOTA', `There is no branch ${gid} to join`, {
            detail:
              'An unprepared transaction of Postgres lives on one connection; only the resource that started it can join it.',
          })
        }
        if (branch.rollbackOnly) throw say.endedWithFail(gid)
        return associate(branch)
      }
      if (branches.has(gid)) throw say.duplicate(gid)
      branches.set(gid, undefined)
      try {
        return await begin(gid)
      } catch (error) {
        branches.delete(gid)
        throw error
      }
    },

    async end(xid, flags = xa.TMSUCCESS) {
      checkOpen()
      const gid = formatXid(xid)
      say.checkFlags('end', flags, [xa.TMSUCCESS, xa.TMFAIL], 'TMSUCCESS or TMFAIL')
      const branch = find(gid, 'active')
      if (branch === undefined) throw say.unknown(gid)
      Object.assign(branch, { association: {}, state: 'ended', rollbackOnly: flags === xa.TMFAIL })
      return xa.XA_OK
    },

    async prepare(xid) {
      checkOpen()
      const gid = formatXid(xid)
      const branch = find(gid, 'ended')
      if (branch === undefined) return await prepared.refuse(gid, 'is prepared already')
      return (await complete(branch, 'prepare')) ? xa.XA_OK : xa.XA_RDONLY
    },

    async commit(xid, flags = xa.TMNOFLAGS) {
      checkOpen()
      const gid = gidOf(xid)
      say.checkFlags('commit', flags, [xa.TMNOFLAGS, xa.TMONEPHASE], 'TMNOFLAGS or TMONEPHASE')
      if (flags === xa.TMNOFLAGS) {
        find(gid, 'prepared')
        await prepared.finish('commit', gid)
        return xa.XA_OK
      }
      const branch = find(gid, 'ended')
      if (branch === undefined) return await prepared.refuse(gid, 'is prepared, and takes the second phase')
      await complete(branch, 'commit')
      return xa.XA_OK
    },

    async rollback(xid) {
      checkOpen()
      const gid = gidOf(xid)
      const branch = find(gid, 'ended')
      if (branch === undefined) await prepared.finish('rollback', gid)
      else await complete(branch, 'rollback')
      return xa.XA_OK
    },

    async recover(flags = xa.TMSTARTRSCAN | xa.TMENDRSCAN) {
      checkOpen()
      const scans = [xa.TMNOFLAGS, xa.TMSTARTRSCAN, xa.TMENDRSCAN, xa.TMSTARTRSCAN | xa.TMENDRSCAN]
      say.checkFlags('recover', flags, scans, 'a combination of TMSTARTRSCAN and TMENDRSCAN')
      const starts = (flags & xa.TMSTARTRSCAN) !== 0
      if (!starts && !scanning)
        throw new XaError('XAER_INVAL', 'No scan was started', { hint: 'The first call takes TMSTARTRSCAN' })
      const found = starts ? await prepared.list() : []
      scanning = (flags & xa.TMENDRSCAN) === 0
      return found
    },

    async forget(xid) {
      checkOpen()
      const gid = gidOf(xid)
      find(gid, 'prepared')
      return await prepared.refuse(gid, 'is prepared, and was not completed heuristically')
    },

    close() {
      closing ??= closeAll()
      return closing
    },

    [Symbol.asyncDispose]: () => resource.close(),
  }
  return resource

  async function closeAll(): Promise<void> {
    // One that begins finds the resource closed; one that completes is waited for by the database.
    const rollingBack = [...branches.values()].map(async (branch) => {
      if (branch === undefined || branch.state === 'completing') return
      branch.association = {}
      await complete(branch, 'rollback').catch(() => {})
    })
    await Promise.all(rollingBack)
    await database.close()
  }
}
