/** `pgonce metrics`: the checks of `once.health` as Prometheus metrics, printed once or served. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { InvalidArgumentError } from 'commander'
import { type Database, withLink } from '../connection/database.ts'
import { chooseDatabases, type DatabaseFlags, openOne, patience, tryAsking } from './databases.ts'
import { readHealth } from './doctor.ts'
import { print } from './output.ts'
import { aborted, interruption } from './signals.ts'

interface Address {
  readonly host: string
  readonly port: number
}

/** Runs the command. A database that does not answer is `pgonce_up 0`, and exit code 1 if it was printed. */
export async function runMetrics(
  urls: readonly string[],
  flags: DatabaseFlags & { readonly listen?: Address },
): Promise<void> {
  const { listen } = flags
  const databases = chooseDatabases(urls, flags).map(openOne)
  if (listen !== undefined) return await serve(databases, listen)
  const { text, failures } = await collect(databases)
  process.stdout.write(text)
  for (const failure of failures) process.stderr.write(`pgonce: ${failure}\n`)
  if (failures.length > 0) process.exitCode = 1
}

const levels = { ok: 0, warn: 1, critical: 2 } as const

/** One look at every database. */
async function collect(databases: readonly Database[]) {
  const { Gauge, Registry } = await import('prom-client')
  const registry = new Registry()
  const set = (name: string, help: string, labels: Record<string, string>, value: number) => {
    const known = registry.getSingleMetric(name) as InstanceType<typeof Gauge> | undefined
    const gauge = known ?? new Gauge({ name, help, labelNames: Object.keys(labels), registers: [registry] })
    gauge.set(labels, value)
  }
  const failures: string[] = []
  const looks = databases.map(async (database) => {
    const asked = withLink(database.connect(patience), readHealth, patience)
    return { database: database.name, ...(await tryAsking(asked)) }
  })
  for (const { database, answer, reason } of await Promise.all(looks)) {
    if (reason !== null) failures.push(`${database}: ${reason}`)
    set('pgonce_up', 'Whether the database answered', { database }, reason === null ? 1 : 0)
    for (const { name, status, value } of answer ?? []) {
      const help = 'Each check of once.health: 0 ok, 1 warn, 2 critical'
      set('pgonce_check_status', help, { database, check: name }, levels[status])
      if (value !== null)
        set(`pgonce_${name}`, `Value of the check ${name} in once.health`, { database }, value)
    }
  }
  return { text: await registry.metrics(), contentType: registry.contentType, failures }
}

async function serve(databases: readonly Database[], { host, port }: Address): Promise<void> {
  const stop = interruption()
  const server = createServer(async (request, response) => {
    try {
      if (request.method !== 'GET' && request.method !== 'HEAD') return response.writeHead(405).end()
      if (new URL(request.url ?? '/', 'http://localhost').pathname !== '/metrics')
        return response.writeHead(404).end('Metrics are at /metrics\n')
      const { text, contentType } = await collect(databases)
      response.writeHead(200, { 'content-type': contentType }).end(text)
    } catch {
      response.writeHead(500).end()
    }
  }).listen(port, host)
  await once(server, 'listening')
  const place = (server.address() as AddressInfo).port
  print(`http://${host.includes(':') ? `[${host}]` : host}:${place}/metrics; Ctrl-C ends`)
  await aborted(stop)
}

export function parseAddress(text: string): Address {
  const [, host, port] = /^(?:\[?([^\]]*?)\]?:)?(\d{1,5})$/.exec(text) ?? []
  if (port === undefined || Number(port) > 65535)
    throw new InvalidArgumentError('Expected [host:]port, as in 9187 or 0.0.0.0:9187.')
  return { host: host || '127.0.0.1', port: Number(port) }
}
