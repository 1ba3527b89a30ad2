/**
 * A proxy between a client and a server that behaves like a distant network and counts the trips. What is
 * sent without waiting for an answer arrives in one piece, so each piece is one round trip.
 */
import { createServer, connect as dial, type Socket } from 'node:net'

export interface Proxy extends AsyncDisposable {
  /** The database's URL through the proxy. */
  readonly url: string
  /** How often the client has sent something and had to wait. */
  readonly trips: number
}

export interface ProxyOptions {
  /** The connection is cut instead of passing on a piece that contains this text. */
  readonly cutAt?: string
}

/** Long enough for a client to send all that it can without an answer. */
const quietMs = 15

export async function startProxy(target: string, { cutAt }: ProxyOptions = {}): Promise<Proxy> {
  const url = new URL(target)
  const port = Number(url.port)
  const host = url.hostname
  let trips = 0
  const sockets = new Set<Socket>()
  const server = createServer((client) => {
    const backend = dial(port, host)
    for (const socket of [client, backend]) {
      sockets.add(socket)
      socket.on('error', () => {})
    }
    const cut = () => {
      for (const socket of [client, backend]) {
        socket.destroy()
        sockets.delete(socket)
      }
    }
    client.on('close', cut)
    backend.on('close', cut)
    inPieces(client, (piece) => {
      if (cutAt !== undefined && piece.includes(cutAt)) return cut()
      trips += 1
      backend.write(piece)
    })
    inPieces(backend, (piece) => client.write(piece))
  })
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  const address = server.address()
  url.port = String(typeof address === 'object' ? address?.port : '')
  return {
    url: url.href,
    get trips() {
      return trips
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise((closed) => server.close(closed))
    },
  }
}

/** Collects what arrives until there is silence. */
function inPieces(socket: Socket, use: (piece: Buffer) => void): void {
  let parts: Buffer[] = []
  let timer: NodeJS.Timeout | undefined
  socket.on('data', (part) => {
    parts.push(part)
    clearTimeout(timer)
    timer = setTimeout(() => {
      const piece = Buffer.concat(parts)
      parts = []
      use(piece)
    }, quietMs)
  })
}
