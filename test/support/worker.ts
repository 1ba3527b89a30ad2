/**
 * A worker that processes messages over two databases, eight at a time, until it is done or killed; it prints
 * the id of each one that has taken effect, now or before.
 */
import { pgonce } from '../../src/index.ts'
import type { Three } from './client.ts'

const { a, b, ids } = JSON.parse(process.argv[2] ?? '{}') as { a: string; b: string; ids: number[] }
await using once = pgonce<Pick<Three, 'a' | 'b'>>({ databases: { a, b }, maxConnections: 8 })
const lane = async () => {
  for (let id = ids.shift(); id !== undefined; id = ids.shift()) {
    // Either may be the home, and half of them leave the branch to the background.
    const home = id % 3 === 0 ? 'b' : 'a'
    await once.process(
      home,
      { scope: 'soak', key: `message ${id}` },
      async (_, tx) => {
        await tx.a
          .insertInto('effect')
          .values({ id: id as number })
          .execute()
        await tx.b
          .insertInto('effect')
          .values({ id: id as number })
          .execute()
      },
      { finish: id % 2 === 0 ? 'await' : 'background' },
    )
    console.log(id)
  }
}
await Promise.all(Array.from({ length: 8 }, lane))
