/**
 * One named database of a client: its connections, who it is, and how many of its connections are ours to use.
 */
import { type ConnectionProvider, DummyDriver, type Kysely, PostgresIntrospector, Transaction } from 'kysely'
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
import { type Semaphore, semaphore } from './semaphore.ts'
import { type DatabaseTarget, type OpenDatabase, open } from './target.ts'

/** The schema version that this client was written for; see `sql/database/schema_version.sql`. */
export const schemaVersion = 1

export interface Database {
  readonly name: string
  readonly db: Kysely<unknown>
  /** One permit a connection; who holds one never waits long for the connection itself. */
  readonly permits: Semaphore
  /**
   * The database's id (`once.database_id()`), asked once, and again where it is wanted `anew`; where `apart`, over
   * the connection of {@link connectApart}.
   *
   * @throws DatabaseError; AbortedError `CONNECTION_LOST` if there is no answer within `connectTimeout`
   */
  identify(how?: { readonly anew?: boolean; readonly apart?: boolean }): Promise<string>
  /** What {@link identify} found; undefined before. */
  readonly databaseId: string | undefined
  /** After `ONIDN`: what was found is another database's, or is no more, so {@link identify} asks anew. */
  forgetDatabaseId(): void
  /** Whether it is time to ask again if an operator has made the database read-only; true once a second. */
  isFenceDue(): boolean
  /**
   * A connection from the pool.
   * @throws AbortedError `CONNECTION_LOST`; LimitError `NO_CONNECTION`, `TOO_MANY_CONNECTIONS`; DatabaseError
   *   `NO_DATABASE`, `LOGIN_REFUSED`, `NO_PRIVILEGE`
   */
  connect(timeout?: number): Promise<Link>
  /** As {@link connect}, but from a connection apart that handlers cannot use up, where there is one. */
  connectApart(timeout?: number): Promise<Link>
  close(): Promise<void>
}

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
  const { maxConnections, connectTimeout, net = false } = options
  return databaseOver(name, open(target, { max: maxConnections, connectTimeout, net }), options)
}

/** Milliseconds between two questions whether an operator has made a database read-only. */
const fenceEvery = 1_000

/** As {@link createDatabase}, over what is open already: the simulation opens databases of its own kind. */
export function databaseOver(
  name: string,
  main: OpenDatabase<unknown>,
  { maxConnections, connectTimeout }: DatabaseOptions,
): Database {
  let apart: OpenDatabase<unknown> | undefined
  let asking: Promise<string> | undefined
  let fenceAsked = Number.NEGATIVE_INFINITY

  const database: { -readonly [Key in keyof Database]: Database[Key] } = {
    name,
    db: main.db,
    permits: semaphore(main.maxConnections ?? maxConnections),
    databaseId: undefined,
    identify({ anew = false, apart: isApart = false } = {}) {
      if (anew && database.databaseId !== undefined) database.forgetDatabaseId()
      if (asking !== undefined) return asking
      const connecting = isApart ? database.connectApart() : database.connect()
      const asked = identify(name, connecting, connectTimeout).then(
        (id) => {
          if (asking === asked) database.databaseId = id
          return id
        },
        (error) => {
          if (asking === asked) asking = undefined
          throw error
        },
      )
      asking = asked
      return asked
    },
    forgetDatabaseId() {
      database.databaseId = undefined
      asking = undefined
    },
    isFenceDue() {
      const now = environment.now()
      if (now - fenceAsked < fenceEvery) return false
      fenceAsked = now
      return true
    },
    async connect(timeout = connectTimeout) {
      return main.idle?.() ?? (await within(timeout, name, main.take()))
    },
    connectApart: (timeout = connectTimeout) => {
      apart ??= main.apart()
      return within(timeout, name, apart.take())
    },
    async close() {
      await Promise.all([main.close(), apart?.close()])
    },
  }
  return database
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
  return await withLink(
    connecting,
    async (link) => {
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
    },
    timeout,
  )
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
  const dialect = {
    createAdapter: () => executor.adapter,
    createDriver: () => driver,
    createIntrospector: (inner: Kysely<unknown>) => new PostgresIntrospector(inner),
    createQueryCompiler: () => {
      throw new Error('unreachable: the executor brings its compiler')
    },
  }
  return new Transaction<DB>({ config: { dialect }, dialect, driver, executor })
}

async function identify(name: string, connecting: Promise<Link>, timeout: number): Promise<string> {
  let found: say.Identity
  try {
    const ask = async (link: Link) => {
      if (!link.isOwn) await probeDriver(link)
      return await link.send(say.identify())
    }
    // A server that lets us in and then hangs, or somebody who locks the table, must hold up nobody forever.
    found = await withLink(connecting, ask, timeout)
  } catch (error) {
    throw notIdentified(name, timeout, error)
  }
  const { version, id, standby } = found
  if (version !== schemaVersion) {
    throw new DatabaseError(
      'SCHEMA_VERSION',
      `Database ${name} has schema once at version ${version}; this package needs version ${schemaVersion}`,
      {
        hint:
          version < schemaVersion
            ? `Bring it up to date: npx pgonce migrate --database ${name}=postgres://…`
            : 'Update the package: npm install pgonce@latest',
      },
    )
  }
  if (standby) {
    throw new DatabaseError('ONSTB', `Database ${name} is on a standby, which cannot be written to`, {
      hint: 'Give the URL of its primary',
    })
  }
  return id
}

function notIdentified(name: string, timeout: number, cause: unknown): unknown {
  switch (codeOf(cause)) {
    case '3F000':
    case '42883':
      return new DatabaseError('NOT_INSTALLED', `Database ${name} has no schema once`, {
        hint: `Install it: npx pgonce migrate --database ${name}=postgres://…`,
        cause,
      })
    case '42501':
      return new DatabaseError('NO_PRIVILEGE', `Not allowed to use schema once in database ${name}`, {
        hint: "As its owner: select once.grant_app('<the role of this application>')",
        cause,
      })
    case 'TIMEOUT':
      return new AbortedError(
        'CONNECTION_LOST',
        `Database ${name} did not say who it is within ${timeout} ms`,
        {
          hint: 'Look there for what it waits for: select * from pg_stat_activity',
          cause,
        },
      )
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
    case '3D000':
      return new DatabaseError('NO_DATABASE', `Database ${name} does not exist: ${message}`, {
        hint: 'Correct the name at the end of its URL, or create it: create database …',
        cause,
      })
    case '28000':
    case '28P01':
      return new DatabaseError('LOGIN_REFUSED', `Database ${name} does not let this user in: ${message}`, {
        hint: 'Check user and password in its URL, and pg_hba.conf on its server',
        cause,
      })
    case '42501':
      return new DatabaseError('NO_PRIVILEGE', `Not allowed to connect to database ${name}: ${message}`, {
        hint: 'As its owner: grant connect on database … to the role of this application',
        cause,
      })
    case '53300':
      return new LimitError('TOO_MANY_CONNECTIONS', `The server of database ${name} is full: ${message}`, {
        hint: 'Make the pools of all processes together (maxConnections) smaller than its max_connections, or raise that',
        cause,
      })
    default:
      return new AbortedError('CONNECTION_LOST', `Database ${name} could not be reached: ${message}`, {
        hint: isServerError(cause)
          ? undefined
          : 'Check host and port, and that a Postgres server is up there',
        cause,
      })
  }
}

/** Gives up waiting for a connection after a while; one that comes later goes straight back. */
function within(timeout: number, name: string, taken: Promise<Link>): Promise<Link> {
  return new Promise((resolve, reject) => {
    let isLate = false
    const stopTimer = environment.after(timeout, () => {
      isLate = true
      reject(
        new LimitError('NO_CONNECTION', `Database ${name} gave no connection within ${timeout} ms`, {
          hint: 'Is the server up, and is the pool large enough for everybody who uses it? See maxConnections.',
        }),
      )
    })
    taken.then(
      (link) => {
        stopTimer()
        if (isLate) link.release()
        else resolve(link)
      },
      (error: unknown) => {
        stopTimer()
        reject(unreachable(name, error))
      },
    )
  })
}
