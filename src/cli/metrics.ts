/**
 * `pgonce metrics`: the checks of `once.health` as Prometheus metrics, printed once or served.
 *
 * @see sql/operator/health.sql
 */
import { createServer } from 'node:http'
import { type Command, InvalidArgumentError } from 'commander'
import type { Gauge } from 'prom-client'
import { type Database, withLink } from '../connection/database.ts'
import { fromSql, withHint } from '../errors.ts'
import { chooseDatabases, type DatabaseFlags, withDatabases, withEach } from './databases.ts'
import { type HealthRow, readHealth } from './health.ts'
import { print } from './output.ts'
import { aborted, interruption } from './signals.ts'

interface MetricsFlags extends DatabaseFlags {
  readonly listen?: Address
}

interface Address {
  readonly host: string
  readonly port: number
}

/** Adds the command to the program. */
export function metricsCommand(program: Command): void {
  withDatabases(program.command('metrics'))
    .description('print the checks of once.health as Prometheus metrics, or serve them')
    .option(
      '--listen <[host:]port>',
      'serve them at /metrics until Ctrl-C, read anew for each request (default host: 127.0.0.1)',
      parseAddress,
    )
    .action(runMetrics)
}

/** Runs the command. A database that does not answer is `pgonce_up 0`, and exit code 1 if it was printed. */
async function runMetrics(urls: readonly string[], flags: MetricsFlags): Promise<void> {
  const chosen = chooseDatabases(urls, flags)
  const { listen } = flags
  await withEach(chosen, connectTimeout, async (databases) => {
    if (listen !== undefined) return await serve(databases, listen)
    const { text, failures } = await collect(databases)
    process.stdout.write(text)
    for (const failure of failures) process.stderr.write(`pgonce: ${failure}\n`)
    if (failures.length > 0) process.exitCode = 1
  })
}

const connectTimeout = 5_000
const patience = 10_000
const levels = { ok: 0, warn: 1, critical: 2 } as const

/** One look at every database. */
async function collect(
  databases: readonly Database[],
): Promise<{ text: string; contentType: string; failures: string[] }> {
  const { Gauge, Registry } = await import('prom-client')
  const registry = new Registry()
  const up = new Gauge({
    name: 'pgonce_up',
    help: 'Whether the database answered',
    labelNames: ['database'],
    registers: [registry],
  })
  const status = new Gauge({
    name: 'pgonce_check_status',
    help: 'Each check of once.health: 0 ok, 1 warn, 2 critical',
    labelNames: ['database', 'check'],
    registers: [registry],
  })
  const values = new Map<string, Gauge<'database'>>()
  const failures: string[] = []
  const looks = await Promise.all(
    databases.map(async (database) => ({ database, rows: await look(database, failures) })),
  )
  for (const { database, rows } of looks) {
    up.set({ database: database.name }, rows === undefined ? 0 : 1)
    for (const { name, status: found, value } of rows ?? []) {
      status.set({ database: database.name, check: name }, levels[found])
      if (value === null) continue
      const gauge =
        values.get(name) ??
        new Gauge({
          name: `pgonce_${name}`,
          help: `Value of the check ${name} in once.health`,
          labelNames: ['database'],
          registers: [registry],
        })
      values.set(name, gauge)
      gauge.set({ database: database.name }, value)
    }
  }
  return { text: await registry.metrics(), contentType: registry.contentType, failures }
}

async function look(database: Database, failures: string[]): Promise<readonly HealthRow[] | undefined> {
  try {
    return await withLink(database.connect(patience), readHealth, patience)
  } catch (error) {
    failures.push(`${database.name}: ${withHint(fromSql(error))}`)
    return undefined
  }
}

async function serve(databases: readonly Database[], { host, port }: Address): Promise<void> {
  const stop = interruption()
  let last: { at: number; answer: ReturnType<typeof collect> } | undefined
  const server = createServer((request, response) => {
    const answer = async () => {
      if (request.method !== 'GET' && request.method !== 'HEAD') return response.writeHead(405).end()
      if (new URL(request.url ?? '/', 'http://localhost').pathname !== '/metrics')
        return response.writeHead(404).end('Metrics are at /metrics\n')
      // Several scrapers at once ask the databases once.
      if (last === undefined || performance.now() - last.at > 1_000)
        last = { at: performance.now(), answer: collect(databases) }
      const { text, contentType } = await last.answer
      response.writeHead(200, { 'content-type': contentType }).end(text)
    }
    answer().catch(() => response.writeHead(500).end())
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, resolve)
  })
  const address = server.address()
  const place = typeof address === 'object' && address !== null ? address.port : port
  print(`http://${host.includes(':') ? `[${host}]` : host}:${place}/metrics; Ctrl-C ends`)
  await aborted(stop)
  server.closeAllConnections()
  await new Promise<void>((resolve) => server.close(() => resolve()))
}

function parseAddress(text: string): Address {
  const [, host, port] = /^(?:\[?([^\]]*?)\]?:)?(\d{1,5})$/.exec(text) ?? []
  if (port === undefined || Number(port) > 65535) {
    throw new InvalidArgumentError('Expected [host:]port, as in 9187 or 0.0.0.0:9187.')
  }
  return { host: host || '127.0.0.1', port: Number(port) }
}
