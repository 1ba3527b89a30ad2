/**
 * A transaction over two servers against what people write by hand: throughput with many at once, and the
 * time until one alone is decided.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { CompiledQuery, type Transaction } from 'kysely'
import { pgonce } from '../src/index.ts'
import { compare, concurrently, type Figure, figureOf, median } from './harness.ts'
import { withNetwork } from './network.ts'
import { delivery, insert, type Tables, valuesOf } from './rows.ts'
import { connect, type Servers } from './servers.ts'
import { textbook, unsafe } from './textbook.ts'

interface Databases {
  a: Tables
  b: Tables
}

/** Both ways of writing to two servers, and the one that is not safe; every branch is finished. */
export function openBoth({ a, b }: Pick<Servers, 'a' | 'b'>, width: number) {
  const pair = { a: connect(a, width), b: connect(b, width) }
  const once = pgonce<Databases>({ databases: pair })
  const many = (task: () => Promise<unknown>) => (times: number) => concurrently(width, times, task)
  return {
    ours: many(() => transfer(once, 'await')),
    textbook: many(() => textbook(pair)),
    unsafe: many(() => unsafe(pair)),
    async [Symbol.asyncDispose]() {
      await once.close()
      await Promise.all([pair.a.end(), pair.b.end()])
    },
  }
}

/** 16 at once, as many as the pools have connections. */
export async function throughput(servers: Servers, quick: boolean): Promise<Figure[]> {
  await using both = openBoth(servers, 16)
  const options = { operations: 160, rounds: quick ? 10 : 40 }
  const safe = await compare(both.ours, both.textbook, options)
  const reckless = await compare(both.ours, both.unsafe, options)
  const perSecond = (milliseconds: number) => Math.round(1000 / milliseconds)
  return [
    figureOf(
      'two_phase_vs_textbook',
      safe,
      { atLeast: 1 },
      `${perSecond(safe.ours)} a second, textbook ${perSecond(safe.theirs)}`,
    ),
    figureOf(
      'two_phase_vs_unsafe',
      reckless,
      { atLeast: 0.52 },
      `${perSecond(reckless.ours)} a second, unsafe commits ${perSecond(reckless.theirs)}`,
    ),
  ]
}

/** One at a time, over a network. */
async function overNetwork(servers: Servers, quick: boolean): Promise<Figure[]> {
  await using both = openBoth(servers, 1)
  const found = await compare(both.ours, both.textbook, { operations: 10, rounds: quick ? 10 : 40 })
  const note = `${found.ours.toFixed(2)} ms, textbook ${found.theirs.toFixed(2)} ms`
  return [figureOf('net_transaction_vs_textbook', found, { atLeast: 1 }, note)]
}

export const distantTransactions = withNetwork({
  keys: ['net_transaction_vs_textbook'],
  measure: overNetwork,
})

/**
 * One at a time, on a disk that takes a millisecond to flush: until the caller can go on. Ours may go on at the
 * decision; the next begins when the one before is finished as well.
 */
export async function latency(servers: Servers, quick: boolean): Promise<Figure[]> {
  // The usual way to make a fast disk slow: every flush waits so many microseconds for company.
  const slow = { commit_delay: '1000', commit_siblings: '0' }
  const pair = { a: connect(servers.a, 1, slow), b: connect(servers.b, 1, slow) }
  const once = pgonce<Databases>({ databases: pair })
  const logged: number[] = []
  const ours = async (times: number) => {
    let total = 0
    for (; times > 0; times -= 1) {
      const finished = nextEvent('tracing:pgonce:finish:asyncEnd')
      const start = performance.now()
      await transfer(once, 'background')
      total += performance.now() - start
      await finished
    }
    return total
  }
  const theirs = async (times: number) => {
    for (; times > 0; times -= 1) logged.push(await textbook(pair))
  }
  try {
    const found = await compare(ours, theirs, {
      operations: 10,
      rounds: quick ? 20 : 80,
      // One at a time takes its time to become hot.
      warmup: 40,
    })
    return [
      figureOf(
        'decision_latency_vs_textbook_1ms',
        found,
        { atMost: 0.72 },
        `${found.ours.toFixed(2)} ms to the decision, textbook ${found.theirs.toFixed(2)} ms`,
      ),
      {
        key: 'textbook_logged_decision_ms',
        value: median(logged),
        note: 'until the textbook has its decision in its log; it then still has to commit',
      },
    ]
  } finally {
    await once.close()
    await Promise.all([pair.a.end(), pair.b.end()])
  }
}

function nextEvent(channel: string): Promise<void> {
  return new Promise((resolve) => {
    const heard = () => {
      unsubscribe(channel, heard)
      resolve()
    }
    subscribe(channel, heard)
  })
}

async function transfer(
  once: ReturnType<typeof pgonce<Databases>>,
  finish: 'await' | 'background',
): Promise<void> {
  await once.transaction(
    async ({ a, b }) => {
      await work(a)
      await work(b)
    },
    { finish },
  )
}

/** The same text as in the others: what a query builder costs is not the question. */
async function work(trx: Transaction<Tables>): Promise<void> {
  await trx.executeQuery(CompiledQuery.raw(insert, valuesOf(delivery())))
}
