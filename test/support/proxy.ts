/** A proxy before a database, for tests that lose connections or answers at a chosen moment. */
import { startProxy } from '../../proof/rig/proxy/index.ts'
import type { Pgonce } from '../../src/index.ts'
import { client, reach, type Two } from './client.ts'
import type { TestContext } from './database.ts'
import { type EffectsDatabase, twoDatabases } from './effects.ts'

export interface TcpProxy {
  /** The URL of the server's database, through the proxy. */
  readonly url: string
  /** From now on what the server says is dropped, what it is told goes through. */
  muteServer(): void
  /** From now on what the server is told is dropped. */
  muteClient(): void
  /** Hangs up on everybody; new connections work as at first. */
  cut(): void
  /** Hangs up on everybody, now and later. */
  refuse(): void
}

export async function proxyTo(t: TestContext, target: string): Promise<TcpProxy> {
  const proxy = await startProxy({ target })
  t.teardown(() => proxy.close())
  return {
    url: proxy.url(),
    muteServer: () => proxy.drop('server'),
    muteClient: () => proxy.drop('client'),
    cut: proxy.cutAll,
    refuse: proxy.refuse,
  }
}

export interface BehindProxies {
  readonly a: EffectsDatabase
  readonly b: EffectsDatabase
  readonly toA: TcpProxy
  readonly toB: TcpProxy
  readonly once: Pgonce<Two>
}

/** Two databases behind proxies, a preferred as home. */
export async function behindProxies(t: TestContext, driver: string): Promise<BehindProxies> {
  const [a, b] = await twoDatabases(t)
  const [toA, toB] = await Promise.all([proxyTo(t, a.url), proxyTo(t, b.url)])
  const once = client<Two>(
    t,
    { a: reach(t, driver, toA.url), b: reach(t, driver, toB.url) },
    { transaction: { home: 'a', retries: 0 } },
  )
  // So that close(), which waits for what goes on, need not wait long.
  t.teardown(() => {
    toA.cut()
    toB.cut()
  })
  return { a, b, toA, toB, once }
}
