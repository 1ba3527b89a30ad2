/**
 * A recoverer of a run: `node recoverer.ts '{"kind":"client","urls":{…},"keep":15000}'`. Kind `client` is
 * `once.recovery.start()`; `sql` calls `once.recover()` in every database again and again; `command line` is
 * `pgonce recover --watch`.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { pgonce } from '../../src/index.ts'
import type { Instructions } from './protocol.ts'
import { connection } from './servers.ts'

// Nobody is to go on recovering when the run is gone.
process.on('disconnect', () => process.exit())

const { kind, urls, keep } = JSON.parse(process.argv[2] ?? '{}') as Instructions
if (kind === 'client') {
  const once = pgonce<Record<string, object>>({ databases: urls, maxConnections: 2, connectTimeout: 2_000 })
  once.recovery.start({ keep, onReport: (report) => console.log(JSON.stringify(report)) })
} else if (kind === 'command line') {
  const databases = Object.entries(urls).flatMap(([name, url]) => ['--database', `${name}=${url}`])
  process.argv.splice(
    2,
    Number.POSITIVE_INFINITY,
    'recover',
    '--watch',
    '--json',
    '--keep',
    String(keep),
    ...databases,
  )
  await import('../../src/cli/main.ts')
} else {
  await Promise.all(
    Object.values(urls).map(async (url) => {
      for (;;) {
        try {
          await using session = connection(url, 2)
          for (;;) {
            const rows = await session.sql.unsafe(`select * from once.recover('${keep} milliseconds')`)
            if (rows.length > 0) console.log(JSON.stringify(rows))
            await sleep(1_000)
          }
        } catch (error) {
          console.log(String(error))
          await sleep(500)
        }
      }
    }),
  )
}
