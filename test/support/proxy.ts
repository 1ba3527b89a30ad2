/** A TCP proxy before a server, to lose connections or answers at a chosen moment. */

import type { AddressInfo } from 'node:net'
import { createServer, connect as dial, type Socket } from 'node:net'
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
  const sockets = new Set<Socket>()
  let toClient = true
  let toServer = true
  let accepting = true
  const server = createServer((client) => {
    if (!accepting) return void client.destroy()
    const upstream = dial(Number(port), hostname)
    // Data of a muted direction are dropped for connections that were open then, not for new ones.
    let down = true
    let up = true
    client.on('data', (data) => {
      up &&= toServer
      if (up) upstream.write(data)
    })
    upstream.on('data', (data) => {
      down &&= toClient
      if (down) client.write(data)
    })
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(one)
      one.setNoDelay(true)
      one.on('error', () => {})
      one.on('close', () => {
        sockets.delete(one)
        other.destroy()
      })
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const cut = () => {
    for (const socket of sockets) socket.destroy()
    toClient = true
    toServer = true
  }
  t.teardown(async () => {
    cut()
    await new Promise((resolve) => server.close(resolve))
  })
  const url = new URL(target)
  url.port = String((server.address() as AddressInfo).port)
  return {
    url: url.href,
    muteServer() {
      toClient = false
    },
    muteClient() {
      toServer = false
    },
    cut,
    refuse() {
      accepting = false
      cut()
    },
  }
}
