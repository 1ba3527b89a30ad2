/** A proxy before a database, for tests that lose connections or answers at a chosen moment. */
import { startProxy } from '../../chaos/proxy/index.ts'
import type { TestContext } from './database.ts'

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
  const { hostname, port } = new URL(target)
  const proxy = await startProxy({ target: { host: hostname, port: Number(port) } })
  t.teardown(() => proxy.close())
  return {
    url: proxy.url(target),
    muteServer: () => proxy.drop('server'),
    muteClient: () => proxy.drop('client'),
    cut: proxy.cutAll,
    refuse: proxy.refuse,
  }
}
