/** Where a run takes place: three databases on two servers, with the settings that people trust. */
import postgres from 'postgres'
import { migrate } from '../src/database/migrate.ts'
import { type EmbeddedServer, startServer } from '../src/embedded/server.ts'
import { type DatabaseName, databaseNames } from './plan.ts'
import { createTally } from './tally.ts'

/** On which server each database lives. */
const serverOf: Readonly<Record<DatabaseName, number>> = { west: 0, central: 0, east: 1 }

/** Where the ledger and the workers' positions are kept. */
export const home: DatabaseName = 'central'

export interface Environment extends AsyncDisposable {
  readonly servers: readonly EmbeddedServer[]
  readonly urls: Readonly<Record<DatabaseName, string>>
}

/** @throws EmbeddedServerError if there is no embedded Postgres, or it does not start */
export async function startEnvironment(packageName: string | undefined): Promise<Environment> {
  await using started = new AsyncDisposableStack()
  const starting = [0, 1].map(async () =>
    started.use(
      await startServer({
        ...(packageName === undefined ? {} : { package: packageName }),
        // Said explicitly, for it is the point: what is acknowledged is on disk.
        settings: { fsync: 'on', full_page_writes: 'on', synchronous_commit: 'on' },
      }),
    ),
  )
  // All of them, also if one fails: what was started must be stopped.
  await Promise.allSettled(starting)
  const servers = await Promise.all(starting)
  const urls = Object.fromEntries(
    databaseNames.map((name) => [name, servers[serverOf[name]]?.url(name) ?? '']),
  ) as Record<DatabaseName, string>
  await Promise.all(
    servers.map(async (server, index) => {
      for (const name of databaseNames.filter((one) => serverOf[one] === index)) {
        await run(server.url(), `create database ${name}`)
        await run(urls[name], createTally)
        await migrate(urls[name])
      }
    }),
  )
  const stack = started.move()
  return { servers, urls, [Symbol.asyncDispose]: () => stack.disposeAsync() }
}

async function run(url: string, statement: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  try {
    await sql.unsafe(statement)
  } finally {
    await sql.end()
  }
}
