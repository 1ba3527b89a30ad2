/**
 * A transaction over two servers against what people write by hand: throughput with many at once, and the
 * time until one alone is decided.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { CompiledQuery, type Transaction } from 'kysely'
import { pgonce } from '../src/index.ts'
import { compare, concurrently, type Figure, median } from './harness.ts'
import { delivery, insert, type Tables } from './rows.ts'
import { connect, type Servers } from './servers.ts'
import { textbook, unsafe } from './textbook.ts'

interface Databases {
  a: Tables
  b: Tables
}

/** All at once as many as the pools have connections; every branch is finished. */
export async function throughput(servers: Servers, quick: boolean): Promise<Figure[]> {
  const width = 16
  const pair = { a: connect(servers.a, width), b: connect(servers.b, width) }
  const once = pgonce<Databases>({ databases: pair })
  const ours = (times: number) => concurrently(width, times, () => transfer(once, 'await'))
  const options = { operations: 160, rounds: quick ? 10 : 40 }
  try {
    const safe = await compare(ours, (times) => concurrently(width, times, () => textbook(pair)), options)
    const reckless = await compare(ours, (times) => concurrently(width, times, () => unsafe(pair)), options)
    const perSecond = (milliseconds: number) => Math.round(1000 / milliseconds)
    return [
      {
        key: 'two_phase_vs_textbook',
        value: safe.ratio,
        spread: safe.spread,
        target: { atLeast: 1.25 },
        note: `${perSecond(safe.ours)} a second, textbook ${perSecond(safe.theirs)}`,
      },
      {
        key: 'two_phase_vs_unsafe',
        value: reckless.ratio,
        spread: reckless.spread,
        target: { atLeast: 0.75 },
        note: `${perSecond(reckless.ours)} a second, unsafe commits ${perSecond(reckless.theirs)}`,
      },
    ]
  } finally {
    await once.close()
    await Promise.all([pair.a.end(), pair.b.end()])
  }
}

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
    const { ratio, spread, ...times } = await compare(ours, theirs, {
      operations: 10,
      rounds: quick ? 20 : 80,
      // One at a time takes its time to become hot.
      warmup: 40,
    })
    return [
      {
        key: 'decision_latency_vs_textbook_1ms',
        value: 1 / ratio,
        spread: [1 / spread[1], 1 / spread[0]],
        target: { atMost: 0.7 },
        note: `${times.ours.toFixed(2)} ms to the decision, textbook ${times.theirs.toFixed(2)} ms`,
      },
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
  await trx.executeQuery(CompiledQuery.raw(insert, Object.values(delivery())))
}
