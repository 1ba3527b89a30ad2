/** The thread behind `network.ts`: a proxy before each of the databases whose URLs it is given; answers with its own. */
import { parentPort, workerData } from 'node:worker_threads'
import { startProxy } from '../proof/rig/proxy/index.ts'

/** Node's timer of 1 ms takes 1.1 ms, and hardly ever more than 1.2. */
const far = { delayMs: 1, blind: true }

const proxies = await Promise.all(
  (workerData as readonly string[]).map((target) => startProxy({ target, ...far })),
)
parentPort?.postMessage(proxies.map((proxy) => proxy.url()))
