/**
 * Which databases a command works on: `--database name=URL`, bare URLs, or the environment.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Command } from 'commander'
import { checkDatabaseName, show } from '../check.ts'
import { createDatabase, type Database } from '../connection/database.ts'
import { checkUrl, databaseIn, describeTarget } from '../connection/url.ts'
import { InvalidInputError } from '../errors.ts'
import { several } from './arguments.ts'

/** The variable that is read if the command line names no database. */
export const databasesVariable = 'PGONCE_DATABASES'

export interface ChosenDatabase {
  /** What messages call it: as given, or made of the URL's database name. */
  readonly name: string
  readonly url: string
  /** Where it was found; one of the environment is found there by the next command, too. */
  readonly from: '--database' | 'a URL' | typeof databasesVariable
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
  if (given.length > 0) return given
  const words = (process.env[databasesVariable] ?? '').split(/\s+/).filter((word) => word !== '')
  if (words.length > 0) return distinct(words.map((word) => parseNamed(word, databasesVariable)))
  throw new InvalidInputError('ONARG', 'Which databases? None is given', {
    hint:
      'Name each, as in --database orders=postgres://app@localhost/orders, ' +
      `or all in the environment: export ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  })
}

/** As {@link chooseDatabases}, without the environment; empty if the command line names none. */
export function givenDatabases(urls: readonly string[], flags: DatabaseFlags): readonly ChosenDatabase[] {
  const named = (flags.database ?? []).map((text) => parseNamed(text, '--database'))
  const bare = urls.map((url): ChosenDatabase => {
    refuseSeveral(url, 'a URL')
    const [, name] = /^([A-Za-z0-9._-]+)=\w+:\/\//.exec(url) ?? []
    if (name !== undefined) {
      throw new InvalidInputError('ONARG', `Expected a URL, got one with the name ${name} before it`, {
        hint: `Type --database before it: --database ${name}=postgres://…`,
      })
    }
    const path = databaseIn(checkUrl(url)).replaceAll(/[^A-Za-z0-9._-]/g, '_')
    return { name: path.slice(0, 50) || 'postgres', url, from: 'a URL' }
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
  const words = databases.map(({ name, url, from }) =>
    from === databasesVariable ? '' : ` --database ${name}='${describeTarget(url)}'`,
  )
  return `pgonce ${command}${words.join('')}`
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
  throw new InvalidInputError('ONARG', `Expected ${from} to have the form name=URL${got}`, {
    hint: 'For example: orders=postgres://app@localhost/orders',
  })
}

/** A comma is no separator: it would become a part of the first URL's database name. */
function refuseSeveral(url: string, from: string): void {
  if (!/[,;][A-Za-z0-9._-]*=?postgres(ql)?:\/\//.test(url)) return
  throw new InvalidInputError('ONARG', `Expected one database in ${from}, got several in one word`, {
    hint: `Separate them by spaces: ${databasesVariable}='orders=postgres://… billing=postgres://…'`,
  })
}

/** Two given names may not be one; a name made up here gives way. */
function distinct(databases: readonly ChosenDatabase[]): readonly ChosenDatabase[] {
  const given = databases.flatMap(({ name, from }) => (from === 'a URL' ? [] : [name]))
  const twice = given.find((name, index) => given.indexOf(name) !== index)
  if (twice !== undefined) {
    throw new InvalidInputError('ONARG', `Two databases are named ${twice}`, {
      hint: 'Give each a name of its own: it is how messages tell them apart',
    })
  }
  const taken = new Set(given)
  return databases.map((database) => {
    if (database.from !== 'a URL') return database
    let { name } = database
    for (let n = 2; taken.has(name); n += 1) name = `${database.name}-${n}`
    taken.add(name)
    return { ...database, name }
  })
}
