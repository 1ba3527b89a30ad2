/**
 * Which databases a command works on: `--database name=URL`, bare URLs, or the environment.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Command } from 'commander'
import { checkDatabaseName, show } from '../check.ts'
import { createDatabase, type Database } from '../connection/database.ts'
import { checkUrl, describeTarget } from '../connection/url.ts'
import { InvalidInputError } from '../errors.ts'
import { several } from './arguments.ts'

/** The variable that is read if the command line names no database. */
export const databasesVariable = 'PGONCE_DATABASES'

export interface ChosenDatabase {
  /** What messages call it: as given, or made of the URL's database name. */
  readonly name: string
  readonly url: string
  /** Whether the name was given, or made up here. */
  readonly named: boolean
  /** Whether it comes from the environment, so that the next command finds it there too. */
  readonly inEnvironment: boolean
}

export interface DatabaseFlags {
  readonly database?: readonly string[]
}

/** Adds the arguments that every command with databases takes. */
export function withDatabases(command: Command): Command {
  return command
    .argument('[url...]', 'databases by URL')
    .option(
      '--database <name=URL>',
      `a database by name, may be repeated; without any, ${databasesVariable} has them all`,
      several,
    )
}

/**
 * The databases that the command line names, or else the environment.
 *
 * @throws InvalidInputError `ONARG` if there is none, two have one name, or something is no URL of Postgres
 */
export function chooseDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  const given = givenDatabases(urls, flags)
  const chosen = given.length > 0 ? given : fromEnvironment()
  if (chosen.length > 0) return chosen
  throw new InvalidInputError('ONARG', 'Which databases? None is given', {
    hint:
      'Name each, as in --database orders=postgres://app@localhost/orders, ' +
      `or all in the environment: export ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  })
}

/** As {@link chooseDatabases}, without the environment; empty if the command line names none. */
export function givenDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  const named = (flags.database ?? []).map((text) => parseNamed(text, '--database'))
  const bare = urls.map((url) => {
    refuseSeveral(url, 'a URL')
    const [, name] = /^([A-Za-z0-9._-]+)=\w+:\/\//.exec(url) ?? []
    if (name !== undefined) {
      throw new InvalidInputError('ONARG', `Expected a URL, got one with the name ${name} before it`, {
        hint: `Type --database before it: --database ${name}=postgres://…`,
      })
    }
    return { name: nameFrom(checkUrl(url)), url, named: false, inEnvironment: false }
  })
  return distinct([...bare, ...named])
}

/**
 * Opens databases one connection each, runs the task on all at once, and closes them.
 *
 * @throws InvalidInputError `ONARG` if something given is no URL of Postgres
 */
export async function withEach<T>(
  chosen: readonly ChosenDatabase[],
  connectTimeout: number,
  task: (databases: readonly Database[]) => Promise<T>,
): Promise<T> {
  const databases = chosen.map(({ name, url }) =>
    createDatabase(name, url, { maxConnections: 1, connectTimeout }),
  )
  try {
    return await task(databases)
  } finally {
    await soon(Promise.all(databases.map((database) => database.close())))
  }
}

/** Waits for connections to be closed, but not for a server that does not answer: the process ends anyway. */
export async function soon(closing: Promise<unknown>): Promise<void> {
  await Promise.race([closing, sleep(500)])
}

/** A command of ours to type for these databases. Passwords are left out of it. */
export function commandFor(command: string, databases: readonly ChosenDatabase[]): string {
  const words = databases.map(({ name, url, inEnvironment }) =>
    inEnvironment ? '' : ` --database ${name}='${describeTarget(url)}'`,
  )
  return `pgonce ${command}${words.join('')}`
}

function fromEnvironment(): readonly ChosenDatabase[] {
  const words = (process.env[databasesVariable] ?? '').split(/\s+/).filter((word) => word !== '')
  return distinct(words.map((word) => parseNamed(word, databasesVariable)))
}

function parseNamed(text: string, source: string): ChosenDatabase {
  // The name is checked by its form, so that a URL without one, with a password and a "=" in its query, is
  // never taken for a name and shown.
  const [, name, url] = /^([^=:/@?]*)=(.*)$/s.exec(text) ?? []
  if (name === undefined || url === undefined || name === '') {
    throw new InvalidInputError(
      'ONARG',
      `Expected ${source} to have the form name=URL${sayGiven(text, source)}`,
      {
        hint: 'For example: orders=postgres://app@localhost/orders',
      },
    )
  }
  refuseSeveral(url, source)
  return {
    name: checkDatabaseName(name),
    url: checkUrl(url),
    named: true,
    inEnvironment: source === databasesVariable,
  }
}

/** Only what cannot hold a password, nor be a part of one that has spaces. */
function sayGiven(text: string, source: string): string {
  if (/^\w+:\/\//.test(text)) return ', got a URL without a name'
  return source === databasesVariable || /[=:@]/.test(text) ? '' : `, got ${show(text)}`
}

/** A comma is no separator: it would become a part of the first URL's database name. */
function refuseSeveral(url: string, source: string): void {
  if (!/[,;][A-Za-z0-9._-]*=?postgres(ql)?:\/\//.test(url)) return
  throw new InvalidInputError('ONARG', `Expected one database in ${source}, got several in one word`, {
    hint: `Separate them by spaces: ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  })
}

function nameFrom(url: string): string {
  const parsed = URL.parse(url)
  const last = parsed === null ? '' : decodeSafely(parsed.pathname.slice(1))
  return last.replaceAll(/[^A-Za-z0-9._-]/g, '_').slice(0, 50) || 'postgres'
}

function decodeSafely(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/** Two given names may not be one; a name made up here gives way. */
function distinct(databases: readonly ChosenDatabase[]): readonly ChosenDatabase[] {
  const taken = new Set<string>()
  for (const { name, named } of databases) {
    if (!named) continue
    if (taken.has(name)) {
      throw new InvalidInputError('ONARG', `Two databases are named ${name}`, {
        hint: 'Give each a name of its own: it is how messages tell them apart',
      })
    }
    taken.add(name)
  }
  return databases.map((database) => {
    if (database.named) return database
    let { name } = database
    for (let n = 2; taken.has(name); n += 1) name = `${database.name}-${n}`
    taken.add(name)
    return { ...database, name }
  })
}
