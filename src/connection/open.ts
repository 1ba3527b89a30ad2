/**
 * One database from whatever the caller has: a URL, a postgres.js instance or a Kysely instance.
 */
import { Kysely } from 'kysely'
import postgres from 'postgres'
import { show } from '../check.ts'
import { InvalidInputError } from '../errors.ts'
import { backendsOf } from './backends.ts'
import { type ConnectionSource, postgresJsDialect } from './dialect.ts'
import { callersPool, ownPool } from './pool.ts'
import { type OpenSocket, openPatiently } from './socket.ts'

/** A database by its URL, by a postgres.js instance, or by a Kysely instance of any Postgres dialect. */
export type DatabaseTarget<DB = unknown> = string | URL | postgres.Sql | Kysely<DB>

export interface OpenDatabase<DB> {
  readonly db: Kysely<DB>
  /** How many connections the pool has; undefined where the caller's instance does not tell. */
  readonly maxConnections: number | undefined
  /** One more connection to the same database outside this pool; the caller's Kysely instance has only its own. */
  sibling(): OpenDatabase<DB>
  /** Ends only what was opened here, and waits a while for backends that are being ended. */
  close(): Promise<void>
}

export interface OpenOptions {
  /** @defaultValue 1 */
  readonly max?: number
  /** @defaultValue pgonce */
  readonly applicationName?: string
  /** Milliseconds. @defaultValue 10000 */
  readonly connectTimeout?: number
}

/** @throws InvalidInputError `ONARG` if it is none of the three */
export function open<DB>(target: unknown, options: OpenOptions = {}): OpenDatabase<DB> {
  const { max = 1, applicationName = 'pgonce', connectTimeout = 10_000 } = options
  const own = {
    onnotice: () => {},
    max: 1,
    connect_timeout: Math.max(1, Math.ceil(connectTimeout / 1000)),
    // postgres.js cannot end a connection that is reserved, and never ends it afterwards.
    max_lifetime: null,
    // A connection that breaks while postgres.js fetches them ends the process; see arrays.ts.
    fetch_types: false,
    socket: openPatiently(),
  }
  if (typeof target === 'string' || target instanceof URL) {
    const url = checkUrl(String(target))
    return overOwnPool(max, connectTimeout, applicationName, (name, onclose) =>
      postgres(url, { ...own, onclose, connection: { application_name: name } }),
    )
  }
  if (isKysely<DB>(target)) {
    if (target.isTransaction) {
      throw new InvalidInputError('ONARG', 'Expected a database, got a Kysely transaction', {
        hint: 'Pass the Kysely instance that the transaction came from',
      })
    }
    const borrowed: OpenDatabase<DB> = {
      db: target,
      maxConnections: undefined,
      sibling: () => borrowed,
      close: async () => {},
    }
    return borrowed
  }
  if (typeof target === 'function' && 'unsafe' in target && 'reserve' in target) {
    const client = target as unknown as postgres.Sql
    if (client.options.fetch_types === false) {
      throw new InvalidInputError('ONARG', 'Expected a postgres.js instance with `fetch_types` left on', {
        detail: 'Without it postgres.js (3.4.9) never hands out a reserved connection.',
        hint: 'Remove `fetch_types: false`, or pass a URL',
      })
    }
    // What postgres() made of the caller's options, put in again: hosts and ports are lists by now.
    const {
      host,
      port,
      database,
      user,
      pass,
      ssl,
      path,
      prepare,
      target_session_attrs,
      connection,
      ...others
    } = client.options as postgres.ParsedOptions & { path?: string }
    const { sslnegotiation, socket } = others as { sslnegotiation?: string | null; socket?: OpenSocket }
    const again = {
      ...{ host, port, database, user, pass, ssl, prepare, target_session_attrs, sslnegotiation },
      ...(path ? { path } : {}),
      ...(socket ? { socket: openPatiently(socket) } : {}),
    }
    const make = (name: string, onclose: () => void) =>
      postgres({
        ...own,
        ...again,
        onclose,
        connection: { ...connection, application_name: name },
      } as unknown as postgres.Options<Record<string, postgres.PostgresType>>)
    const name = String(connection.application_name ?? applicationName)
    const backends = backendsOf(() => make(name, () => {}), connectTimeout)
    return {
      db: overConnections(callersPool(client, backends)),
      maxConnections: client.options.max,
      sibling: () => overOwnPool<DB>(1, connectTimeout, `${name} recovery`, make),
      close: () => backends.end(),
    }
  }
  throw new InvalidInputError(
    'ONARG',
    `Expected a URL, a postgres.js instance or a Kysely instance, got ${target === null ? 'null' : typeof target}`,
  )
}

/** What to call a target in a message: never with the password. */
export function describeTarget(target: unknown): string {
  return typeof target === 'string' || target instanceof URL
    ? withoutPassword(String(target))
    : 'the given database'
}

/**
 * Refuses here what the driver could not read when it connects, or would read as something else: a "/" in a
 * password ends the host there, and what follows becomes the database's name, which is no secret.
 *
 * @throws InvalidInputError `ONARG`
 */
export function checkUrl(url: string): string {
  if (!/^postgres(ql)?:\/\//.test(url)) {
    throw new InvalidInputError(
      'ONARG',
      `Expected a URL such as postgres://user@host:5432/database, got ${show(describeTarget(url))}`,
    )
  }
  if (isReadable(url)) return url
  throw new InvalidInputError('ONARG', `This URL cannot be read: ${show(describeTarget(url))}`, {
    hint: 'Percent-encode the password: / is %2F, @ is %40, # is %23, ? is %3F, % is %25, : is %3A',
  })
}

/** The name of the database in a URL that can be read; empty if it has none, and a default is taken. */
export function databaseIn(url: string): string {
  return /^\/([^?#]*)/.exec(partsOf(url).rest)?.[1] ?? ''
}

/** The host and port of a URL as it says them; what it leaves to defaults, as they are taken. */
export function hostIn(url: string): string {
  return partsOf(url).host || process.env.PGHOST || 'localhost'
}

/** As postgres.js reads it (3.4.9): of several hosts, separated by commas, only the first is part of a URL. */
function isReadable(url: string): boolean {
  const { login, host, rest } = partsOf(url)
  if (isMisplaced(rest) || (host.includes(',') && login.includes('@'))) return false
  const [first = ''] = host.split(',')
  const parsed = URL.parse(`${url.slice(0, url.indexOf('://') + 3)}${login}${login && '@'}${first}${rest}`)
  if (parsed === null) return false
  try {
    for (const part of [parsed.username, parsed.password, host]) decodeURIComponent(part)
    return true
  } catch {
    return false
  }
}

/** The parts of a URL that has a scheme: what stands before the last "@" of its authority, and after it. */
function partsOf(url: string): { login: string; host: string; rest: string } {
  const [, authority = '', rest = ''] = /^.*?:\/\/([^/?#]*)(.*)$/s.exec(url) ?? []
  const at = authority.lastIndexOf('@')
  return { login: authority.slice(0, Math.max(at, 0)), host: authority.slice(at + 1), rest }
}

/** Whether an "@" follows where only a path may, or the name of an option: what is before it is a login. */
function isMisplaced(rest: string): boolean {
  return /^(\/[^?#]*|[?#][^=]*)@/.test(rest)
}

/** Whatever it is that was given for a URL: what might be a password must not be shown. */
function withoutPassword(text: string): string {
  const scheme = /^\W*[A-Za-z][\w+.-]*:\/+/.exec(text)?.[0] ?? ''
  const { login, host, rest } = partsOf(text)
  const at =
    scheme.endsWith('://') && !isMisplaced(rest)
      ? // A port is a number; else it is a password whose host was forgotten.
        login === '' && !isPort(host)
        ? text.length - rest.length
        : scheme.length + login.length
      : text.lastIndexOf('@')
  const end = Math.max(at, scheme.length)
  const before = text.slice(scheme.length, end)
  const colon = before.indexOf(':')
  const shown = colon < 0 ? before : `${before.slice(0, colon)}:…`
  return `${scheme}${shown}${text.slice(end)}`.replace(
    /(pass(?:word|wd|phrase)?\s*=\s*)('[^']*'|[^&'\s][^&\s]*)/gi,
    '$1…',
  )
}

function isPort(host: string): boolean {
  return host.split(',').every((one) => /^(\[[^\]]*\]|[^:]*)(:\d*)?$/.test(one))
}

/** By what it can do: the caller's Kysely may be another copy of the module than ours. */
function isKysely<DB>(target: unknown): target is Kysely<DB> {
  return (
    typeof target === 'object' && target !== null && 'withoutPlugins' in target && 'getExecutor' in target
  )
}

function overOwnPool<DB>(
  max: number,
  connectTimeout: number,
  applicationName: string,
  make: (applicationName: string, onclose: () => void) => postgres.Sql,
): OpenDatabase<DB> {
  const pool = ownPool((onclose) => make(applicationName, onclose), max, connectTimeout)
  return {
    db: overConnections(pool),
    maxConnections: max,
    sibling: () => overOwnPool(1, connectTimeout, `${applicationName} recovery`, make),
    close: () => pool.end(),
  }
}

function overConnections<DB>(source: ConnectionSource): Kysely<DB> {
  return new Kysely<DB>({ dialect: postgresJsDialect(source) })
}
