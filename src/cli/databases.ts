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
  if (words.length > 0) return distinct(words.map((word) => parse(word, databasesVariable)))
  return refuse(
    'Which databases? None is given',
    'Name each, as in --database orders=postgres://app@localhost/orders, ' +
      `or all in the environment: export ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  )
}

/** As {@link chooseDatabases}, without the environment; empty if the command line names none. */
export function givenDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  const named = (flags.database ?? []).map((text) => parse(text, '--database'))
  return distinct([...urls.map((url) => parse(url, 'a URL')), ...named])
}

function parse(text: string, from: ChosenDatabase['from']): ChosenDatabase {
  // A comma is no separator: it would become a part of the first URL's database name.
  if (/[,;][A-Za-z0-9._-]*=?postgres(ql)?:\/\//.test(text)) {
    refuse(
      `Expected one database in ${from}, got several in one word`,
      `Separate them by spaces: ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
    )
  }
  // The name is checked by its form, so that a URL without one, with a password and a "=" in its query, is
  // never taken for a name and shown.
  const [, name, url = ''] = /^([^=:/@?]+)=(.*)$/s.exec(text) ?? []
  if (from !== 'a URL' && name !== undefined)
    return { name: checkDatabaseName(name), url: checkUrl(url), from }
  if (from === 'a URL') {
    if (/^[\w.-]+=\w+:\/\//.test(text))
      refuse(
        `Expected a URL, got one with the name ${name} before it`,
        `Type --database ${name}=postgres://…`,
      )
    const path = databaseIn(checkUrl(text)).replaceAll(/[^A-Za-z0-9._-]/g, '_')
    return { name: path.slice(0, 50) || 'postgres', url: text, from }
  }
  // Only what cannot hold a password, nor be a part of one that has spaces.
  const isHarmless = from === '--database' && !/[=:@]/.test(text)
  const got = /^\w+:\/\//.test(text) ? ', got a URL without a name' : isHarmless ? `, got ${show(text)}` : ''
  const example = 'For example: orders=postgres://app@localhost/orders'
  return refuse(`Expected ${from} to have the form name=URL${got}`, example)
}

/** Two given names may not be one; a name made up here gives way. */
function distinct(databases: readonly ChosenDatabase[]): readonly ChosenDatabase[] {
  const taken = new Set<string>()
  for (const { name, from } of databases) {
    if (from === 'a URL') continue
    if (taken.has(name))
      refuse(`Two databases are named ${name}`, 'Messages tell them apart by name: give each its own')
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

/** Opens a database for one connection. Nobody closes it: the process ends with the command. */
export function openOne({ name, url }: ChosenDatabase): Database {
  return createDatabase(name, url, { maxConnections: 1, connectTimeout: 5_000 })
}

/** Why there is no answer, with what to do about it, in place of an error. */
export async function tryAsking<T>(
  asking: Promise<T>,
): Promise<
  { readonly answer: T; readonly reason: null } | { readonly answer: null; readonly reason: string }
> {
  return await asking.then(
    (answer) => ({ answer, reason: null }),
    (error) => ({ answer: null, reason: withHint(fromSql(error)) }),
  )
}
