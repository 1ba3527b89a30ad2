/** Which databases a command works on: `--database name=URL`, bare URLs, or the environment; and asking them. */
import { checkDatabaseName, show } from '../check.ts'
import { createDatabase, type Database } from '../connection/database.ts'
import { checkUrl, databaseIn } from '../connection/url.ts'
import { fromSql, InvalidInputError, withHint } from '../errors.ts'

/** The variable that is read if the command line names no database. */
export const databasesVariable = 'PGONCE_DATABASES'

export interface ChosenDatabase {
  /** What messages call it: as given, or made of the URL's database name. */
  readonly name: string
  readonly url: string
  /** Where it was found; one of the environment is found there by the next command, too. */
  readonly from: '--database' | 'a URL' | typeof databasesVariable
}

/** What every command with databases takes. */
export interface DatabaseFlags {
  readonly database?: readonly string[]
  readonly json?: boolean
}

/**
 * The databases that the command line names, or else the environment.
 *
 * @throws InvalidInputError `ONARG` if there is none, two have one name, or something is no URL of Postgres
 */
export function chooseDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  const given = givenDatabases(urls, flags)
  if (given.length > 0) return given
  const words = (process.env[databasesVariable] ?? '').split(/\s+/).filter((word) => word !== '')
  if (words.length > 0) return distinct(words.map((word) => parseNamed(word, databasesVariable)))
  return refuse(
    'Which databases? None is given',
    'Name each, as in --database orders=postgres://app@localhost/orders, ' +
      `or all in the environment: export ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  )
}

/** As {@link chooseDatabases}, without the environment; empty if the command line names none. */
export function givenDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  return distinct([
    ...urls.map(parseBare),
    ...(flags.database ?? []).map((text) => parseNamed(text, '--database')),
  ])
}

function parseBare(url: string): ChosenDatabase {
  const from = 'a URL'
  refuseSeveral(url, from)
  const [, name] = /^([A-Za-z0-9._-]+)=\w+:\/\//.exec(url) ?? []
  if (name !== undefined) {
    refuse(
      `Expected a URL, got one with the name ${name} before it`,
      `Type --database before it: --database ${name}=postgres://…`,
    )
  }
  const path = databaseIn(checkUrl(url)).replaceAll(/[^A-Za-z0-9._-]/g, '_')
  return { name: path.slice(0, 50) || 'postgres', url, from }
}

function parseNamed(text: string, from: ChosenDatabase['from']): ChosenDatabase {
  // The name is checked by its form, so that a URL without one, with a password and a "=" in its query, is
  // never taken for a name and shown.
  const [, name = '', url = ''] = /^([^=:/@?]+)=(.*)$/s.exec(text) ?? []
  if (name !== '') {
    refuseSeveral(url, from)
    return { name: checkDatabaseName(name), url: checkUrl(url), from }
  }
  // Only what cannot hold a password, nor be a part of one that has spaces.
  const isHarmless = from === '--database' && !/[=:@]/.test(text)
  const got = /^\w+:\/\//.test(text) ? ', got a URL without a name' : isHarmless ? `, got ${show(text)}` : ''
  return refuse(
    `Expected ${from} to have the form name=URL${got}`,
    'For example: orders=postgres://app@localhost/orders',
  )
}

/** A comma is no separator: it would become a part of the first URL's database name. */
function refuseSeveral(url: string, from: string): void {
  if (!/[,;][A-Za-z0-9._-]*=?postgres(ql)?:\/\//.test(url)) return
  refuse(
    `Expected one database in ${from}, got several in one word`,
    `Separate them by spaces: ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  )
}

/** Two given names may not be one; a name made up here gives way. */
function distinct(databases: readonly ChosenDatabase[]): readonly ChosenDatabase[] {
  const taken = new Set<string>()
  for (const { name, from } of databases) {
    if (from === 'a URL') continue
    if (taken.has(name)) {
      refuse(
        `Two databases are named ${name}`,
        'Give each a name of its own: it is how messages tell them apart',
      )
    }
    taken.add(name)
  }
  return databases.map((database) => {
    if (database.from !== 'a URL') return database
    let { name } = database
    for (let n = 2; taken.has(name); n += 1) name = `${database.name}-${n}`
    taken.add(name)
    return { ...database, name }
  })
}

function refuse(message: string, hint: string): never {
  throw new InvalidInputError('ONARG', message, { hint })
}

// ---------------------------------------------------------------------------------------------------
// Asking

/** Milliseconds for what is asked of a database. */
export const patience = 10_000

/** Opens databases, one connection each. Nobody closes them: the process ends with the command. */
export function openEach(chosen: readonly ChosenDatabase[]): readonly Database[] {
  return chosen.map(({ name, url }) =>
    createDatabase(name, url, { maxConnections: 1, connectTimeout: 5_000 }),
  )
}

/** Why there is no answer, with what to do about it, in place of an error. */
export async function tryAsking<T>(asking: Promise<T>): Promise<Asked<T>> {
  return await asking.then(
    (answer) => ({ answer, reason: null }),
    (error) => ({ answer: null, reason: withHint(fromSql(error)) }),
  )
}

type Asked<T> =
  | { readonly answer: T; readonly reason: null }
  | { readonly answer: null; readonly reason: string }
