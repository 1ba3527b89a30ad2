/** A proxy before each server, and what it does at random. */
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type Action,
  type MessageName,
  type Proxy as MessageProxy,
  type Rule,
  startProxy,
} from '../rig/proxy/index.ts'
import { random as randomOf } from '../rig/random.ts'
import type { Cluster, Name } from './servers.ts'

export interface NamedProxies extends AsyncDisposable {
  readonly urls: Readonly<Record<Name, string>>
  /** Breaks something; says what, or nothing if the moment did not come. */
  readonly break: (fault: 'message' | 'partition', name: Name) => Promise<string | undefined>
  /** Cuts what is left of faults. */
  heal(): void
}

/** How long a fault waits for its moment. */
const patience = 3_000

/** What the server may be told, or may say, when it happens. */
const statements: readonly (RegExp | undefined)[] = [
  /^commit$/i,
  /^prepare transaction/i,
  /^commit prepared/i,
  /^rollback/i,
  /^begin/i,
  /once\.(vote|begin_global|claim|advance)/,
  /once\.(decide|mark_proven|find_evidence|branch)/,
  undefined,
]
const tags: readonly (RegExp | undefined)[] = [
  // The decision most often.
  /^COMMIT$/,
  /^COMMIT$/,
  /^COMMIT$/,
  /^COMMIT$/,
  /^PREPARE TRANSACTION/,
  /^PREPARE TRANSACTION/,
  /^COMMIT PREPARED/,
  /^ROLLBACK/,
  /^INSERT|^UPDATE/,
  undefined,
]
const asked: readonly MessageName[] = ['Query', 'Parse', 'Bind', 'Execute']

export async function startProxies(cluster: Cluster, seed: number): Promise<NamedProxies> {
  const random = randomOf(seed + 1)
  const { pick } = random
  const proxies = new Map<Name, MessageProxy>()
  for (const { name, server } of cluster.nodes) {
    const target = { host: '127.0.0.1', port: server.port }
    proxies.set(name, await startProxy({ target, random: randomOf(seed + 2 + proxies.size).next }))
  }
  const chooseRule = (): Rule => {
    const milliseconds = Math.round(100 + random.next() * 1_900)
    const nth = 1 + Math.floor(random.next() ** 2 * 5)
    const common = { milliseconds }
    if (random.chance(0.6)) {
      const action: Action = pick([
        'drop',
        'drop',
        'drop',
        'drop',
        'kill',
        'cut-before',
        'delay',
        'stall',
        'cancel',
      ])
      const text = pick(tags)
      return {
        when: { direction: 'server', message: 'CommandComplete', nth, ...(text && { text }) },
        action,
        ...common,
      }
    }
    const action: Action = pick(['kill', 'cut-before', 'drop', 'delay', 'stall', 'cancel'])
    const text = pick(statements)
    return {
      when: { direction: 'client', nth, message: pick(asked), ...(text && { text }) },
      action,
      ...common,
    }
  }
  return {
    urls: Object.fromEntries(
      cluster.nodes.map(({ name, url }) => [name, proxies.get(name)?.url(url) ?? url]),
    ) as Record<Name, string>,
    async break(fault, name) {
      const proxy = proxies.get(name)
      if (proxy === undefined) return undefined
      const rule: Rule =
        fault === 'message'
          ? chooseRule()
          : {
              when: { direction: pick(['client', 'server'] as const), nth: 1 },
              action: pick(['partition-in', 'partition-out'] as const),
              milliseconds: Math.round(300 + random.next() * 2_700),
            }
      const injected = proxy.inject(rule)
      const until = performance.now() + patience
      while (injected.count === 0 && performance.now() < until) await sleep(20)
      injected.remove()
      if (injected.count === 0) return undefined
      await injected.over()
      return rule.action
    },
    heal() {
      for (const proxy of proxies.values()) proxy.cutAll()
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([...proxies.values()].map((proxy) => proxy.close()))
    },
  }
}
