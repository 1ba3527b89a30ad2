/** What the tests of the XA verbs share. */
import { randomBytes } from 'node:crypto'
import type { ExecutionContext } from 'ava'
import { startProxy } from '../../proof/rig/proxy/index.ts'
import type { DatabaseTarget } from '../../src/index.ts'
import {
  XaError,
  type XaErrorName,
  type XaOptions,
  type XaResource,
  type XidInput,
  xaResource,
} from '../../src/xa/index.ts'
import { emptyDatabase, type TestContext } from '../support/database.ts'
import { createEffects, type Effects, type EffectsDatabase, withEffects } from '../support/effects.ts'

/** A database with a table for effects and without schema once: the verbs need none. */
export async function xaDatabase(t: TestContext): Promise<EffectsDatabase> {
  const database = await emptyDatabase(t)
  await database.sql.unsafe(createEffects)
  return withEffects(database)
}

export function resource(
  t: TestContext,
  target: DatabaseTarget<Effects>,
  options: XaOptions = {},
): XaResource<Effects> {
  const xa = xaResource<Effects>(target, { connectTimeout: 30_000, ...options })
  t.teardown(() => xa.close())
  return xa
}

/** An xid that no other test uses: gids are unique in a server. */
export function freshXid(): XidInput {
  return { formatId: 4711, gtrid: randomBytes(16), bqual: 'branch' }
}

/** Does one branch's work and ends it. */
export async function work(xa: XaResource<Effects>, xid: XidInput, ...ids: number[]): Promise<void> {
  const trx = await xa.start(xid)
  for (const id of ids) await trx.insertInto('effect').values({ id }).execute()
  await xa.end(xid)
}

export async function throwsXa(
  t: ExecutionContext,
  promise: Promise<unknown>,
  name: XaErrorName,
): Promise<XaError> {
  const error = await promise.then(
    (value) => `no error, but ${String(value)}`,
    (reason) => reason,
  )
  if (!(error instanceof XaError)) {
    t.fail(`Expected ${name}, got ${error}`)
    throw error
  }
  t.is(error.code, name, error.message)
  return error
}

export interface Proxy {
  readonly url: string
  /** Cuts the connection at the next statement that begins with this text: before it arrives, or before its answer does. */
  cut(when: 'before' | 'after', text: string): void
}

/** A network between a client and a server that can fail at a chosen moment, once. */
export async function unsteady(t: TestContext, target: string): Promise<Proxy> {
  const proxy = await startProxy({ target })
  t.teardown(() => proxy.close())
  return {
    url: proxy.url(),
    cut(when, statement) {
      const direction = when === 'before' ? 'client' : 'server'
      const text = new RegExp(`^${statement}\\b`)
      proxy.inject({ when: { direction, text, nth: 1 }, action: 'cut-before' })
    },
  }
}
