/** The thread behind `network.ts`: a proxy before each of the databases whose URLs it is given; answers with its own. */
import { once } from 'node:events'
import { type AddressInfo, createServer, connect as dial } from 'node:net'
import { parentPort, workerData } from 'node:worker_threads'

/**
 * All of it on the way to the server, since one timer differs less from its word than two: Node's of 1 ms takes 1.1 ms,
 * and hardly ever more than 1.2.
 */
const delayMs = 1

async function startProxy(target: string): Promise<string> {
  const url = new URL(target)
  const { hostname, port } = url
  const server = createServer({ noDelay: true }, (client) => {
    const backend = dial({ host: hostname, port: Number(port), noDelay: true })
    // Timers of one length fire in the order in which they were set.
    client.on('data', (chunk) => void setTimeout(() => backend.write(chunk), delayMs))
    client.on('end', () => void setTimeout(() => backend.end(), delayMs))
    backend.pipe(client)
    for (const socket of [client, backend]) socket.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  url.port = String((server.address() as AddressInfo).port)
  return url.href
}

parentPort?.postMessage(await Promise.all((workerData as readonly string[]).map(startProxy)))
