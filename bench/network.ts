/**
 * A distant network: what a client says reaches its server a millisecond later. The proxies run in a thread of their
 * own, since their work is not the client's.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { type Case, median } from './harness.ts'
import { type Servers, withConnection } from './servers.ts'

/** The same case over the network. */
export function withNetwork({ keys, measure }: Case): Case {
  return {
    keys,
    async measure(servers, quick) {
      await using network = await startNetwork(servers)
      const trip = await roundTripOf(network.servers.a)
      const figures = await measure(network.servers, quick)
      return figures.map((figure) => ({
        ...figure,
        note: `${figure.note}; a round trip ${trip.toFixed(1)} ms`,
      }))
    },
  }
}

interface Network extends AsyncDisposable {
  /** The servers, through it. */
  readonly servers: Servers
}

async function startNetwork({ a, b, c, version }: Servers): Promise<Network> {
  const worker = new Worker(new URL('./delay.ts', import.meta.url), { workerData: [a, b, c] })
  const stop = async () => void (await worker.terminate())
  const [urls] = await once(worker, 'message')
  const [nearA, nearB, nearC] = urls as [string, string, string]
  return {
    servers: { a: nearA, b: nearB, c: nearC, version, [Symbol.asyncDispose]: stop },
    [Symbol.asyncDispose]: stop,
  }
}

/** In milliseconds, with what the server does for the least of statements. */
function roundTripOf(url: string): Promise<number> {
  return withConnection(url, async (sql) => {
    const times: number[] = []
    for (let count = 0; count < 100; count += 1) {
      const start = performance.now()
      await sql.unsafe('select')
      times.push(performance.now() - start)
    }
    return median(times)
  })
}
