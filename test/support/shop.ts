/** Three databases and a client that all tests of a file share, and what their handlers do and leave. */
import { CamelCasePlugin } from 'kysely'
import type { Pgonce } from '../../src/index.ts'
import { client, kyselyOnPg, type Shop, shop, type Three } from './client.ts'
import type { TestContext } from './database.ts'
import { shared } from './shared.ts'

export type Handles = Parameters<Parameters<Pgonce<Three>['transaction']>[0]>[0]

/** For tests that keep apart by the ids they use. */
export const sharedShop = () => shared(shop)

let last = 0

/** An id that no other test of this file uses. */
export const fresh = () => ++last

/** The same databases over both drivers: what pg does not tell must be found out otherwise. */
export const overDrivers = {
  'postgres.js': (_t: TestContext, { once }: Shop): Pgonce<Three> => once,
  pg: (t: TestContext, { a, b, c }: Shop): Pgonce<Three> =>
    client<Three>(t, {
      a: kyselyOnPg(t, a.url),
      b: kyselyOnPg(t, b.url),
      c: kyselyOnPg(t, c.url, { plugins: [new CamelCasePlugin()] }),
    }),
}

export async function read(handles: Handles, ...names: (keyof Three)[]): Promise<void> {
  for (const name of names) await handles[name].selectFrom('effect').select('id').limit(1).execute()
}

/** Where an effect is to be seen, such as 'ab'. */
export async function seen(shop: Pick<Shop, 'a' | 'b' | 'c'>, id: number): Promise<string> {
  const found = await Promise.all(
    (['a', 'b', 'c'] as const).map(async (name) => ((await shop[name].effects()).includes(id) ? name : '')),
  )
  return found.join('')
}
