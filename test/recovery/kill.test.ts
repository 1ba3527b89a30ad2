import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import test from 'ava'
import { OutcomeUnknownError, type Pgonce } from '../../src/index.ts'
import { client, type Two, write } from '../support/client.ts'
import type { Instructions } from '../support/coordinator.ts'
import { connect, installSchema, ownServer, type TestContext } from '../support/database.ts'
import { createEffects, twoDatabases, withEffects } from '../support/effects.ts'
import { fresh, sharedShop } from '../support/shop.ts'
import { at } from '../support/steps.ts'
import { until } from '../support/until.ts'

/** Runs a coordinator as a process of its own; how it ended. */
async function coordinate(instructions: Instructions): Promise<{ output: string; signal: string | null }> {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, '../support/coordinator.ts'), JSON.stringify(instructions)],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  let output = ''
  child.stdout.on('data', (chunk) => {
    output += chunk
  })
  const signal = await new Promise<string | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (_code, by) => resolve(by))
  })
  return { output: output.trim(), signal }
}

const shared = sharedShop()

/** Every step of the flow, before and after, on each database that takes it; who is to see the effect afterwards. */
const points: [point: string, committed: boolean][] = [
  ['begin a start', false],
  ['begin a end', false],
  ['claim a start', false],
  ['claim a end', false],
  ['begin b start', false],
  ['begin c end', false],
  ['prepare b start', false],
  ['prepare b end', false],
  ['prepare c start', false],
  ['prepare c end', false],
  ['decide a start', false],
  ['decide a end', true],
  ['finish b start', true],
  ['finish b end', true],
  ['finish c start', true],
  ['finish c end', true],
]

for (const [point, committed] of points) {
  test.serial(
    `A coordinator killed at "${point}" leaves ${committed ? 'everything' : 'nothing'}, once recovered`,
    async (t) => {
      const { a, b, c, once } = shared()
      const id = fresh()
      const databases = { a: a.url, b: b.url, c: c.url }
      const { signal } = await coordinate({ ...databases, point, id })
      t.is(signal, 'SIGKILL', 'the crash point was reached')

      // Its home transaction may seem to run until the server reads from the dead connection.
      await until('recovery is through', async () => {
        const { unfinished, unreachable, losses } = await once.recovery.run()
        t.deepEqual([unfinished, unreachable, losses], [[], [], []])
        return (await b.prepared()) + (await c.prepared()) === 0
      })
      for (const database of [a, b, c]) t.is((await database.effects()).includes(id), committed)

      const again = await once.process('a', { producer: 'crash', sequence: id }, async (_, tx) => {
        for (const trx of [tx.a, tx.b, tx.c]) await trx.insertInto('effect').values({ id }).execute()
      })
      t.is(again.status, committed ? 'duplicate' : 'processed')
      for (const database of [a, b, c]) t.true((await database.effects()).includes(id))
      t.deepEqual(await once.recovery.audit(), [])
    },
  )
}

test.serial('A coordinator that nobody kills reports what it processed', async (t) => {
  const { a, b, c } = shared()
  t.deepEqual(await coordinate({ a: a.url, b: b.url, c: c.url, point: 'none', id: fresh() }), {
    output: 'processed',
    signal: null,
  })
})

// ---------------------------------------------------------------------------------------------------
// Servers

interface Servers {
  readonly home: Awaited<ReturnType<typeof ownServer>>
  readonly other: Awaited<ReturnType<typeof ownServer>>
  readonly once: Pgonce<Two>
  both(id: number): ReturnType<typeof write>
  /** Which of the two see the effect. */
  seen(id: number): Promise<string>
}

async function servers(t: TestContext): Promise<Servers> {
  // Their crash is to be a real one: what was not flushed is lost.
  const [home, other] = await Promise.all([ownServer(t, { fsync: 'on' }), ownServer(t, { fsync: 'on' })])
  await Promise.all([home, other].map(({ url }) => installSchema(url())))
  const sqls = [home, other].map(({ url }) => connect(t, url()))
  await Promise.all(sqls.map((sql) => sql.unsafe(createEffects)))
  await Promise.all(sqls.map((sql) => sql.end()))
  const once = client<Two>(
    t,
    { a: home.url(), b: other.url() },
    { transaction: { timeout: 20_000, retries: 0 } },
  )
  return {
    home,
    other,
    once,
    both: (id) => write(once, id, 'ab'),
    async seen(id) {
      let found = ''
      for (const [name, { url }] of [
        ['a', home],
        ['b', other],
      ] as const) {
        const sql = connect(t, url())
        if ((await withEffects({ sql }).effects()).includes(id)) found += name
        await sql.end()
      }
      return found
    },
  }
}

for (const [victim, step, when, expected] of [
  ['other', 'prepare', 'start', undefined],
  ['other', 'prepare', 'asyncEnd', 'ab'],
  ['other', 'decide', 'asyncEnd', 'ab'],
  ['home', 'prepare', 'asyncEnd', undefined],
  ['home', 'decide', 'asyncEnd', 'ab'],
  ['home', 'finish', 'start', 'ab'],
] as const) {
  test.serial(
    `Both sides agree after the ${victim === 'home' ? 'home' : 'participant'} crashed at ${step} (${when === 'start' ? 'before' : 'after'})`,
    async (t) => {
      const { once, both, seen, ...own } = await servers(t)
      const server = own[victim]
      await both(1)
      let stopping: Promise<void> | undefined
      at(t, step, when, step === 'decide' ? 'a' : 'b', () => {
        // At once: its processes get the signal before anything more is sent.
        process.kill(server.pid ?? 0, 'SIGQUIT')
        stopping = server.stop('immediate')
      })
      const running = once.recovery.start({ interval: 20 })
      const result = both(2).then(
        ({ id, finished }) => ({ id, finished, error: undefined }),
        (error: unknown) => ({ id: undefined, finished: undefined, error }),
      )
      await until('the step is reached', () => stopping !== undefined)
      await stopping
      await server.start()
      const { id, error } = await result
      await until('nothing is in doubt', async () => {
        const { unfinished, unreachable, pending } = await once.recovery.run()
        return unfinished.length + unreachable.length + pending === 0
      })
      await running.stop()
      const found = await seen(2)
      t.true(found === '' || found === 'ab', `${found} only`)
      if (error === undefined) t.is(found, 'ab', 'what was reported committed is')
      else if (error instanceof OutcomeUnknownError)
        t.is(await once.outcome(error.id ?? ''), found === 'ab' ? 'committed' : 'aborted')
      else t.is(found, '', 'what was reported aborted is')
      if (id) t.is(await once.outcome(id), 'committed')
      // Where the signal raced with PREPARE or COMMIT either will do.
      if (expected !== undefined) t.is(found, expected)
      await both(3)
      t.is(await seen(3), 'ab')
      t.deepEqual(await once.recovery.audit(), [])
    },
  )
}

test.serial('Recovery goes on through outages of either server, and finishes what is there', async (t) => {
  const { home, other, once, both, seen } = await servers(t)
  await once.recovery.start({ interval: 20 })
  await both(1)
  for (const server of [home, other]) {
    await server.stop('immediate')
    await t.throwsAsync(both(2))
    await server.start()
  }
  await until('it works again', () =>
    both(3).then(
      () => true,
      () => false,
    ),
  )
  t.is(await seen(3), 'ab')
})

// ---------------------------------------------------------------------------------------------------
// A soak

test.serial(
  'Under load, with coordinators killed at random and recoverers racing, every message takes effect once',
  async (t) => {
    const [a, b] = await twoDatabases(t)
    const [one, two] = [0, 1].map(() => client<Two>(t, { a: a.url, b: b.url }))
    if (!one || !two) return t.fail()
    const losses: unknown[] = []
    const onReport = (report: { losses: readonly unknown[] }) => void losses.push(...report.losses)
    one.recovery.start({ interval: 20, keep: 0, onReport })
    two.recovery.start({ interval: 30, keep: 0, onReport })
    const total = 400
    const worker = join(import.meta.dirname, '../support/worker.ts')
    let kills = 0
    const done = new Set<number>()
    let seed = 1
    const random = () => {
      seed = (seed * 48271) % 2147483647
      return seed / 2147483647
    }
    const work = async (share: number) => {
      while ([...Array(total).keys()].some((n) => n % 2 === share && !done.has(n))) {
        const left = [...Array(total).keys()].filter((n) => n % 2 === share && !done.has(n))
        const child = spawn(process.execPath, [worker, JSON.stringify({ a: a.url, b: b.url, ids: left })], {
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        const quota = kills < 6 ? 10 + Math.floor(random() * 60) : Number.POSITIVE_INFINITY
        let count = 0
        for await (const line of createInterface({ input: child.stdout })) {
          done.add(Number(line))
          count += 1
          if (count === quota) {
            kills += 1
            child.kill('SIGKILL')
          }
        }
      }
    }
    await Promise.all([work(0), work(1)])
    t.true(kills >= 4)
    await until('nothing is in doubt', async () => (await b.prepared()) + (await a.prepared()) === 0)
    const all = [...Array(total).keys()]
    t.deepEqual(await a.effects(), all)
    t.deepEqual(await b.effects(), all)
    t.deepEqual(losses, [])
    t.deepEqual(await one.recovery.audit(), [])
    for (const { sql } of [a, b]) t.is((await sql`select from once.loss`).length, 0)
  },
)
