/**
 * One named database of a client: its connections, who it is, and how many of its connections are ours to use.
 */
import { type ConnectionProvider, DummyDriver, type Kysely, Transaction } from 'kysely'
import { environment } from '../environment.ts'
import {
  AbortedError,
  codeOf,
  DatabaseError,
  fromSql,
  isErrorAnswer,
  isServerError,
  LimitError,
  PgonceError,
} from '../errors.ts'
import * as say from '../statements.ts'
import { probeDriver } from './kysely-link.ts'
import type { Link } from './link.ts'
import { Semaphore } from './semaphore.ts'
import { type DatabaseTarget, type OpenDatabase, open, postgresDialect } from './target.ts'

/** The schema version that this client was written for; see `sql/database/schema_version.sql`. */
export const schemaVersion = 1

export interface DatabaseOptions {
  readonly maxConnections: number
  /** Milliseconds to wait for a connection, and for the database to say who it is. */
  readonly connectTimeout: number
  /** Whether sessions read only outside of our transactions. @defaultValue false */
  readonly net?: boolean
}

export function createDatabase(
  name: string,
  target: DatabaseTarget<unknown>,
  options: DatabaseOptions,
): Database {
  const { maxConnections: max, connectTimeout, net = false } = options
  return new Database(name, open(target, { max, connectTimeout, net }), options)
}

/** Milliseconds between two questions whether an operator has made a database read-only. */
const fenceEvery = 1_000

export class Database {
  readonly name: string
  readonly db: Kysely<unknown>
  /** One permit a connection; who holds one never waits long for the connection itself. */
  readonly permits: Semaphore
  /** What {@link identify} found; undefined before. */
  databaseId: string | undefined
  readonly #main: OpenDatabase<unknown>
  readonly #connectTimeout: number
  #apart: OpenDatabase<unknown> | undefined
  #asking: Promise<string> | undefined
  #fenceAsked = Number.NEGATIVE_INFINITY

  /** @param main is open already: the simulation opens databases of its own kind */
  constructor(
    name: string,
    main: OpenDatabase<unknown>,
    { maxConnections, connectTimeout }: DatabaseOptions,
  ) {
    this.name = name
    this.db = main.db
    this.permits = new Semaphore(main.maxConnections ?? maxConnections)
    this.#main = main
    this.#connectTimeout = connectTimeout
  }

  /**
   * The database's id (`once.database_id()`), asked once, and again where it is wanted `anew`; where `apart`, over
   * the connection of {@link connectApart}.
   *
   * @throws DatabaseError; AbortedError `CONNECTION_LOST` if there is no answer within `connectTimeout`
   */
  identify({ anew = false, apart = false } = {}): Promise<string> {
    if (anew && this.databaseId !== undefined) this.forgetDatabaseId()
    if (this.#asking !== undefined) return this.#asking
    const connecting = apart ? this.connectApart() : this.connect()
    const asked = identify(this.name, connecting, this.#connectTimeout).then(
      (id) => {
        if (this.#asking === asked) this.databaseId = id
        return id
      },
      (error) => {
        if (this.#asking === asked) this.#asking = undefined
        throw error
      },
    )
    this.#asking = asked
    return asked
  }

  /** After `ONIDN`: what was found is another database's, or is no more, so {@link identify} asks anew. */
  forgetDatabaseId(): void {
    this.databaseId = undefined
    this.#asking = undefined
  }

  /** Whether it is time to ask again if an operator has made the database read-only; true once a second. */
  isFenceDue(): boolean {
    const now = environment.now()
    if (now - this.#fenceAsked < fenceEvery) return false
    this.#fenceAsked = now
    return true
  }

  /**
   * A connection from the pool.
   * @throws AbortedError `CONNECTION_LOST`; LimitError `NO_CONNECTION`, `TOO_MANY_CONNECTIONS`; DatabaseError
   *   `NO_DATABASE`, `LOGIN_REFUSED`, `NO_PRIVILEGE`
   */
  async connect(timeout = this.#connectTimeout): Promise<Link> {
    return this.#main.idle?.() ?? (await within(timeout, this.name, this.#main.take()))
  }

  /** As {@link connect}, but from a connection apart that handlers cannot use up, where there is one. */
  connectApart(timeout = this.#connectTimeout): Promise<Link> {
    this.#apart ??= this.#main.apart()
    return within(timeout, this.name, this.#apart.take())
  }

  async close(): Promise<void> {
    await Promise.all([this.#main.close(), this.#apart?.close()])
  }
}

/**
 * Runs a task on a connection of its own and gives the connection back. A task that has not ended after
 * `timeout` milliseconds is given up together with its connection.
 */
export async function withLink<T>(
  connecting: Promise<Link>,
  task: (link: Link) => Promise<T>,
  timeout?: number,
): Promise<T> {
  const link = await connecting
  try {
    const result = await (timeout === undefined ? task(link) : inTime(timeout, task(link)))
    link.release()
    return result
  } catch (error) {
    // A statement that failed outside a transaction leaves the connection clean; nothing else is sure to.
    if (isErrorAnswer(error)) link.release()
    else link.abandon()
    throw error
  }
}

/**
 * As {@link withLink}, in a transaction of its own under READ COMMITTED: whoever asks for outcomes needs a new
 * snapshot for each statement, whatever the sessions' default.
 */
export async function withReadCommitted<T>(
  connecting: Promise<Link>,
  task: (link: Link) => Promise<T>,
  timeout?: number,
): Promise<T> {
  const inTransaction = async (link: Link) => {
    await link.send(say.beginReadCommitted(link.isDirect))
    try {
      const result = await task(link)
      await link.send(say.end())
      return result
    } catch (error) {
      await link.send(say.rollback()).catch((failed: unknown) => {
        // Else an error of the server's, such as a request to cancel that comes late, would give it back as it is.
        link.abandon()
        throw failed
      })
      throw fromSql(error)
    }
  }
  return await withLink(connecting, inTransaction, timeout)
}

/** An error that the server did not send means the connection is gone, in whatever words the driver says so. */
export function asConnectionLost(name: string, error: unknown): unknown {
  if (isServerError(error) || error instanceof PgonceError) return error
  return new AbortedError('CONNECTION_LOST', `The connection to ${name} was lost`, { cause: error })
}

/** Rejects if there is no answer in time; the answer, should it come, is dropped. */
export function inTime<T>(milliseconds: number, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const stopTimer = environment.after(milliseconds, () =>
      reject(new AbortedError('TIMEOUT', `No answer within ${milliseconds} ms`)),
    )
    answer.then(
      (value) => {
        stopTimer()
        resolve(value)
      },
      (error) => {
        stopTimer()
        reject(error)
      },
    )
  })
}

/** A Kysely transaction over connections that we provide, with the plugins of the caller's instance. */
export function transactionOver<DB>(db: Kysely<DB>, provider: ConnectionProvider): Transaction<DB> {
  const executor = db.getExecutor().withConnectionProvider(provider)
  const driver = new DummyDriver()
  const dialect = { ...postgresDialect, createAdapter: () => executor.adapter, createDriver: () => driver }
  return new Transaction<DB>({ config: { dialect }, dialect, driver, executor })
}

async function identify(name: string, connecting: Promise<Link>, timeout: number): Promise<string> {
  const ask = async (link: Link) => {
    if (!link.isOwn) await probeDriver(link)
    return await link.send(say.identify())
  }
  // A server that lets us in and then hangs, or somebody who locks the table, must hold up nobody forever.
  const asked = withLink(connecting, ask, timeout)
  const { version, id, standby } = await asked.catch((error: unknown) => {
    throw notIdentified(name, timeout, error)
  })
  if (version !== schemaVersion) {
    const what = `Database ${name} has schema once at version ${version}; this package needs version ${schemaVersion}`
    const migrate = `Bring it up to date: npx pgonce migrate --database ${name}=postgres://…`
    const hint = version < schemaVersion ? migrate : 'Update the package: npm install pgonce@latest'
    throw new DatabaseError('SCHEMA_VERSION', what, { hint })
  }
  if (standby) {
    const what = `Database ${name} is on a standby, which cannot be written to`
    throw new DatabaseError('ONSTB', what, { hint: 'Give the URL of its primary' })
  }
  return id
}

function notIdentified(name: string, timeout: number, cause: unknown): unknown {
  switch (codeOf(cause)) {
    case '3F000':
    case '42883': {
      const hint = `Install it: npx pgonce migrate --database ${name}=postgres://…`
      return new DatabaseError('NOT_INSTALLED', `Database ${name} has no schema once`, { hint, cause })
    }
    case '42501': {
      const hint = "As its owner: select once.grant_app('<the role of this application>')"
      const what = `Not allowed to use schema once in database ${name}`
      return new DatabaseError('NO_PRIVILEGE', what, { hint, cause })
    }
    case 'TIMEOUT': {
      const hint = 'Look there for what it waits for: select * from pg_stat_activity'
      const what = `Database ${name} did not say who it is within ${timeout} ms`
      return new AbortedError('CONNECTION_LOST', what, { hint, cause })
    }
    default:
      return asConnectionLost(name, fromSql(cause))
  }
}

/** A refusal of the server's meets whoever tries again, other than a server or a network that is down. */
export function unreachable(name: string, cause: unknown): PgonceError {
  if (cause instanceof PgonceError && cause.code !== 'CONNECTION_LOST' && cause.code !== 'ABORTED')
    return cause
  // Where several addresses were tried, only the code says something.
  const message = (cause as Error).message || codeOf(cause)
  switch (codeOf(cause)) {
    case '3D000': {
      const hint = 'Correct the name at the end of its URL, or create it: create database …'
      return new DatabaseError('NO_DATABASE', `Database ${name} does not exist: ${message}`, { hint, cause })
    }
    case '28000':
    case '28P01': {
      const hint = 'Check user and password in its URL, and pg_hba.conf on its server'
      const what = `Database ${name} does not let this user in: ${message}`
      return new DatabaseError('LOGIN_REFUSED', what, { hint, cause })
    }
    case '42501': {
      const hint = 'As its owner: grant connect on database … to the role of this application'
      const what = `Not allowed to connect to database ${name}: ${message}`
      return new DatabaseError('NO_PRIVILEGE', what, { hint, cause })
    }
    case '53300': {
      const what = `The server of database ${name} is full: ${message}`
      return new LimitError('TOO_MANY_CONNECTIONS', what, { hint: fullHint, cause })
    }
    default: {
      const hint = 'Check host and port, and that a Postgres server is up there'
      const what = `Database ${name} could not be reached: ${message}`
      return new AbortedError('CONNECTION_LOST', what, {
        hint: isServerError(cause) ? undefined : hint,
        cause,
      })
    }
  }
}

const fullHint =
  'Make the pools of all processes together (maxConnections) smaller than its max_connections, or raise that'

/** Gives up waiting for a connection after a while; one that comes later goes straight back. */
async function within(timeout: number, name: string, taken: Promise<Link>): Promise<Link> {
  try {
    return await inTime(timeout, taken)
  } catch (error) {
    if (!(error instanceof AbortedError) || error.code !== 'TIMEOUT') throw unreachable(name, error)
    taken.then(
      (link) => link.release(),
      () => {},
    )
    const hint =
      'Is the server up, and is the pool large enough for everybody who uses it? See maxConnections.'
    throw new LimitError('NO_CONNECTION', `Database ${name} gave no connection within ${timeout} ms`, {
      hint,
    })
  }
}
