/**
 * One named database of a client: its pool, who it is, and how many of its connections are ours to use.
 */
import { type ConnectionProvider, DummyDriver, type Kysely, PostgresIntrospector, Transaction } from 'kysely'
import { environment } from '../environment.ts'
import {
  AbortedError,
  codeOf,
  DatabaseError,
  fromSql,
  isServerError,
  LimitError,
  PgonceError,
} from '../errors.ts'
import { type DatabaseTarget, type OpenDatabase, open } from './open.ts'
import { type Semaphore, semaphore } from './semaphore.ts'
import { acquire, type Session } from './session.ts'

/** The schema version that this client was written for; see `sql/database/schema_version.sql`. */
export const schemaVersion = 1

export interface Database {
  readonly name: string
  /** Its place in the order in which everybody takes permits. */
  readonly order: number
  readonly db: Kysely<unknown>
  /** One permit a connection; who holds one never waits long for the connection itself. */
  readonly permits: Semaphore
  /**
   * The id of the database (`once.database_id()`), asked once, and again where it is wanted `anew`; where `apart`,
   * over the connection of {@link connectApart}.
   *
   * @throws DatabaseError; AbortedError `CONNECTION_LOST` if there is no answer within `connectTimeout`
   */
  identify(how?: { readonly anew?: boolean; readonly apart?: boolean }): Promise<string>
  /** What {@link identify} found; undefined before. */
  readonly databaseId: string | undefined
  /** After `ONIDN`: what was found is another database's, or is no more, so {@link identify} asks anew. */
  forgetDatabaseId(): void
  /** Whether its driver sends several statements without parameters in one text, as found by {@link identify}. */
  readonly takesSeveral: boolean
  /**
   * A connection from the pool.
   * @throws AbortedError `CONNECTION_LOST`; LimitError `NO_CONNECTION`, `TOO_MANY_CONNECTIONS`; DatabaseError
   *   `NO_DATABASE`, `LOGIN_REFUSED`, `NO_PRIVILEGE`
   */
  connect(timeout?: number): Promise<Session>
  /** As {@link connect}, but from a connection apart that handlers cannot use up, where there is one. */
  connectApart(timeout?: number): Promise<Session>
  close(): Promise<void>
}

export interface DatabaseOptions {
  readonly maxConnections: number
  /** Milliseconds to wait for a connection, and for the database to say who it is. */
  readonly connectTimeout: number
}

export function createDatabase(
  name: string,
  order: number,
  target: DatabaseTarget<unknown>,
  options: DatabaseOptions,
): Database {
  const { maxConnections, connectTimeout } = options
  return databaseOver(
    name,
    order,
    open(target, { max: maxConnections, applicationName: 'pgonce', connectTimeout }),
    options,
  )
}

/** As {@link createDatabase}, over what is open already: the simulation opens databases of its own kind. */
export function databaseOver(
  name: string,
  order: number,
  main: OpenDatabase<unknown>,
  { maxConnections, connectTimeout }: DatabaseOptions,
): Database {
  let apart: OpenDatabase<unknown> | undefined
  let asking: Promise<string> | undefined

  const connect = (opened: OpenDatabase<unknown>, timeout = connectTimeout) =>
    within(timeout, name, acquire(opened.db))
  const database: { -readonly [Key in keyof Database]: Database[Key] } = {
    name,
    order,
    db: main.db,
    permits: semaphore(main.maxConnections ?? maxConnections),
    databaseId: undefined,
    takesSeveral: false,
    identify({ anew = false, apart = false } = {}) {
      if (anew && database.databaseId !== undefined) database.forgetDatabaseId()
      if (asking !== undefined) return asking
      const connecting = apart ? database.connectApart() : database.connect()
      const asked = identify(name, connecting, connectTimeout).then(
        ({ home, several }) => {
          if (asking === asked) database.databaseId = home
          database.takesSeveral = several
          return home
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
    connect: (timeout) => connect(main, timeout),
    connectApart: (timeout) => {
      apart ??= main.sibling()
      return connect(apart, timeout)
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
export async function withSession<T>(
  connecting: Promise<Session>,
  task: (session: Session) => Promise<T>,
  timeout?: number,
): Promise<T> {
  const session = await connecting
  try {
    const result = await (timeout === undefined ? task(session) : inTime(timeout, task(session)))
    session.release()
    return result
  } catch (error) {
    // A statement that failed outside a transaction leaves the connection clean; nothing else is sure to.
    if (isServerError(error)) session.release()
    else session.abandon()
    throw error
  }
}

/**
 * As {@link withSession}, in a transaction of its own under READ COMMITTED: whoever asks for outcomes needs
 * a new snapshot for each statement, whatever the sessions' default.
 */
export async function withReadCommitted<T>(
  connecting: Promise<Session>,
  task: (session: Session) => Promise<T>,
  timeout?: number,
  [text, parameters]: readonly [text?: string, parameters?: readonly unknown[]] = [],
): Promise<T> {
  return await withSession(
    connecting,
    async (session) => {
      const begun = session.query('begin isolation level read committed')
      // In the same round trip, where the driver lets us. It changes nothing, so it may run if BEGIN does not.
      const checked = text === undefined ? undefined : session.query(text, parameters)
      await Promise.allSettled([begun, checked])
      await begun
      try {
        await checked
        const result = await task(session)
        await session.query('commit')
        return result
      } catch (error) {
        await session.query('rollback').catch((failed: unknown) => {
          // Else an error of the server's, such as a request to cancel that comes late, would give it back as it is.
          session.abandon()
          throw failed
        })
        throw fromSql(error)
      }
    },
    timeout,
  )
}

/**
 * As {@link withReadCommitted}, in the database that has this id: one that has another by now, or that an
 * address leads to by now, is refused (`ONIDN`), since it knows nothing of what is asked or told there.
 *
 * @see sql/recovery/assert_home.sql
 */
export async function withIdentified<T>(
  databaseId: string,
  connecting: Promise<Session>,
  task: (session: Session) => Promise<T>,
  timeout?: number,
): Promise<T> {
  return await withReadCommitted(connecting, task, timeout, [
    'select once.assert_home($1::uuid)',
    [databaseId],
  ])
}

/** What is no answer of the server is the loss of it, in whatever words the driver says so. */
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
    answer.then(resolve, reject).finally(stopTimer)
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

async function identify(
  name: string,
  connecting: Promise<Session>,
  timeout: number,
): Promise<{ home: string; several: boolean }> {
  let found: { version: number; home: string; standby: boolean } | undefined
  let several = true
  try {
    const ask = async (session: Session) => {
      const answer = await session.query<{ version: number; home: string; standby: boolean }>(
        'select once.schema_version() as version, once.database_id()::text as home, pg_is_in_recovery() as standby',
      )
      if (!session.pipelines) {
        several = await session.query('select 1; select 1').then(
          () => true,
          () => false,
        )
      }
      return answer
    }
    // A server that lets us in and then hangs, or somebody who locks the table, must hold up nobody for ever.
    const { rows } = await withSession(connecting, ask, timeout)
    found = rows[0]
  } catch (error) {
    const code = codeOf(error)
    if (code === '3F000' || code === '42883') {
      throw new DatabaseError('NOT_INSTALLED', `Database ${name} has no schema once`, {
        hint: `Install it: npx pgonce migrate --database ${name}=postgres://…`,
        cause: error,
      })
    }
    if (code === '42501') {
      throw new DatabaseError('NO_PRIVILEGE', `Not allowed to use schema once in database ${name}`, {
        hint: "As its owner: select once.grant_app('<the role of this application>')",
        cause: error,
      })
    }
    if (code === 'TIMEOUT') {
      throw new AbortedError(
        'CONNECTION_LOST',
        `Database ${name} did not say who it is within ${timeout} ms`,
        {
          hint: 'Look there for what it waits for: select * from pg_stat_activity',
          cause: error,
        },
      )
    }
    throw asConnectionLost(name, fromSql(error))
  }
  if (found === undefined) throw new DatabaseError('NOT_INSTALLED', `Database ${name} did not say who it is`)
  if (Number(found.version) !== schemaVersion) {
    throw new DatabaseError(
      'SCHEMA_VERSION',
      `Database ${name} has schema once at version ${found.version}; this package needs version ${schemaVersion}`,
      {
        hint:
          Number(found.version) < schemaVersion
            ? `Bring it up to date: npx pgonce migrate --database ${name}=postgres://…`
            : 'Update the package: npm install pgonce@latest',
      },
    )
  }
  if (found.standby) {
    throw new DatabaseError('ONSTB', `Database ${name} is on a standby, which cannot be written to`, {
      hint: 'Give the URL of its primary',
    })
  }
  return { home: found.home, several }
}

/** A refusal of the server's meets whoever tries again, other than a server or a network that is down. */
function unreachable(name: string, cause: unknown): PgonceError {
  const { message } = cause as Error
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
        cause,
      })
  }
}

/** Gives up waiting for a connection after a while; one that comes later goes straight back. */
function within(timeout: number, name: string, session: Promise<Session>): Promise<Session> {
  return new Promise((resolve, reject) => {
    const stopTimer = environment.after(timeout, () => {
      reject(
        new LimitError('NO_CONNECTION', `Database ${name} gave no connection within ${timeout} ms`, {
          hint: 'Is the server up, and is the pool large enough for everybody who uses it? See maxConnections.',
        }),
      )
      session.then((late) => late.release()).catch(() => {})
    })
    session
      .then(resolve, (error: unknown) => {
        reject(unreachable(name, error))
      })
      .finally(stopTimer)
  })
}
