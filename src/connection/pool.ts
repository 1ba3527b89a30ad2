/**
 * Our own connections to one database: clients of postgres.js with one connection each. One that broke, was given
 * up or has prepared too much is closed, and its place is free once its socket is.
 */
import { environment } from '../environment.ts'
import { AbortedError } from '../errors.ts'
import type { Link } from './link.ts'
import { OwnLink, type Wire } from './own-link.ts'
import { type ArrayType, learnArrays } from './parameters.ts'

export interface PoolOptions {
  readonly max: number
  /** Milliseconds for opening a connection and hearing who is there. */
  readonly connectTimeout: number
  /** Whether sessions read only outside of our transactions. */
  readonly net: boolean
}

/** Milliseconds that connections in use have to be given back when the pool ends. */
const patience = 5_000

/** Texts of handlers that are remembered; of more than these none would come again soon. */
const mostSeen = 2_000

export class Pool {
  /** Counts up when all connections are to be opened anew. */
  generation = 0
  readonly #make: (onclose: (error: unknown) => void) => Wire
  readonly #options: PoolOptions
  /** What has a place in the pool: in use, idle, or closing. */
  readonly #open = new Set<OwnLink>()
  readonly #idle: OwnLink[] = []
  readonly #waiting: (() => void)[] = []
  readonly #seen = new Set<string>()
  #arrays: readonly ArrayType[] | undefined
  #ended: (() => void) | undefined

  /** @param make makes a client of one connection, and is told when that has closed, or could not be opened */
  constructor(make: (onclose: (error: unknown) => void) => Wire, options: PoolOptions) {
    this.#make = make
    this.#options = options
  }

  /** Opens a connection where none is idle. @throws the server's refusal; AbortedError `CLOSED` */
  async take(): Promise<Link> {
    for (;;) {
      if (this.#ended) throw new AbortedError('CLOSED', 'This client is closed')
      const link = this.idle()
      if (link !== undefined) return link
      if (this.#open.size < this.#options.max) return await this.#connect()
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  /** One that is free; undefined if there is none, or the pool has ended. */
  idle(): Link | undefined {
    for (let link = this.#idle.pop(); link !== undefined; link = this.#idle.pop()) {
      if (link.isFit) {
        link.reuse()
        return link
      }
      link.close()
    }
    return undefined
  }

  /** Of texts that handlers send: whether this one came before, so that it is worth preparing. */
  hasSeen(text: string): boolean {
    if (this.#seen.has(text)) return true
    if (this.#seen.size >= mostSeen) this.#seen.clear()
    this.#seen.add(text)
    return false
  }

  release(link: OwnLink): void {
    if (this.#ended || !link.isFit) return void link.close()
    this.#idle.push(link)
    this.#waiting.shift()?.()
  }

  /** Waits a while for connections in use, then hangs up. */
  async end(): Promise<void> {
    const { promise: empty, resolve } = Promise.withResolvers<void>()
    this.#ended = resolve
    for (const enter of this.#waiting.splice(0)) enter()
    for (const link of this.#idle.splice(0)) link.close()
    if (this.#open.size === 0) return
    const stopTimer = environment.after(patience, () => {
      for (const link of this.#open) link.close()
      resolve()
    })
    await empty
    stopTimer()
  }

  async #connect(): Promise<Link> {
    const wire = this.#make((error) => this.#closed(link, error))
    const link = new OwnLink(wire, this)
    this.#open.add(link)
    // postgres.js would try forever with a server that accepts connections and hangs up.
    const stopTimer = environment.after(this.#options.connectTimeout, () => link.abandon())
    try {
      const greeting = await link.greet(this.#options.net, this.#arrays === undefined)
      this.#arrays ??= greeting.arrays
      learnArrays(wire.client, this.#arrays)
      return link
    } catch (error) {
      link.close()
      throw error
    } finally {
      stopTimer()
    }
  }

  #closed(link: OwnLink, error: unknown): void {
    if (!this.#open.delete(link)) return
    link.lose(error)
    const at = this.#idle.indexOf(link)
    if (at >= 0) this.#idle.splice(at, 1)
    this.#waiting.shift()?.()
    if (this.#open.size === 0) this.#ended?.()
  }
}
