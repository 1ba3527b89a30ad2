/** Where a run takes place: three databases on two servers, with the settings that people trust. */
import { makeDatabase, type Servers, startServers } from '../proof/rig/servers.ts'
import type { EmbeddedServer } from '../src/embedded/server.ts'
import { type DatabaseName, databaseNames } from './plan.ts'
import { createTally } from './tally.ts'

/** On which server each database lives. */
const serverOf: Readonly<Record<DatabaseName, number>> = { west: 0, central: 0, east: 1 }

/** Where the ledger and the workers' positions are kept. */
export const home: DatabaseName = 'central'

export interface Environment extends Servers {
  readonly urls: Readonly<Record<DatabaseName, string>>
}

/** @throws EmbeddedServerError if there is no embedded Postgres, or it does not start */
export async function startEnvironment(packageName: string | undefined): Promise<Environment> {
  const options = {
    ...(packageName === undefined ? {} : { package: packageName }),
    // Said explicitly, for it is the point: what is acknowledged is on disk.
    settings: { fsync: 'on', full_page_writes: 'on', synchronous_commit: 'on' },
  }
  await using starting = new AsyncDisposableStack()
  const { servers } = starting.use(await startServers([options, options]))
  const made = databaseNames.map(async (name) => {
    return [name, await makeDatabase(servers[serverOf[name]] as EmbeddedServer, name, createTally)] as const
  })
  const urls = Object.fromEntries(await Promise.all(made)) as Record<DatabaseName, string>
  const started = starting.move()
  return { servers, urls, [Symbol.asyncDispose]: () => started.disposeAsync() }
}
