/**
 * A topic in one database, and consumers that carry its messages into two others. They take partitions from each
 * other, move the position in the same commit as the results, and find in the ledger what is new. Half of them
 * distrust their position and begin further back.
 */
import { sql } from 'kysely'
import type { TakenPartition } from '../../../src/index.ts'
import type { Handles, Lane, Workload } from './workload.ts'

const partitions = 2
/** A number's partition, so that the history can be told apart by it. */
export const partitionOf = (n: number): number => n % partitions
export const partitionNumbers = Array.from({ length: partitions }, (_, index) => index)
const group = 'carriers'
const topic = 'numbers'

export const queue: Workload = {
  name: 'queue',
  lanes: 2,
  tables: `
    create table head (partition int primary key, next int not null);
    insert into head select n, 0 from generate_series(0, ${partitions - 1}) n;
    create table topic (partition int, position int, n int not null, primary key (partition, position));
    create table consumed (seq bigserial primary key, partition int not null, position int not null, n int not null,
                           epoch int not null)`,
  async step(lane) {
    if (lane.number === 0) await enqueue(lane)
    else await consume(lane, false)
  },
  async drain(lane) {
    for (let partition = 0; partition < partitions; partition += 1) {
      lane.memory.clear()
      lane.memory.set('partition', partition)
      while (await consume(lane, true));
    }
  },
  async finalReads(connect) {
    const rows = await connect('b')<{ n: number; partition: number; position: number }[]>`
      select n, partition, position from consumed order by seq`
    const log = await connect('a')<{ n: number; partition: number; position: number }[]>`
      select n, partition, position from topic order by position`
    const wrong = [...rows, ...log].find(({ n, partition }) => partition !== partitionOf(n))
    if (wrong) throw new Error(`${JSON.stringify(wrong)} is in the wrong partition`)
    const bare = ({ n, position }: { n: number; position: number }) => ({ n, position })
    return [
      { f: 'effects', value: rows.map(bare) },
      { f: 'log', value: log.map(bare) },
    ]
  },
}

/** The head's row is locked until the commit, so positions have no holes and become visible in order. */
async function enqueue(lane: Lane): Promise<void> {
  const n = lane.unique()
  const partition = partitionOf(n)
  const databases = lane.below(2) === 0 ? (['a'] as const) : (['a', 'b'] as const)
  await lane.attempt([{ f: 'enqueue', value: n }], databases, async (attempt) => {
    const { id, finished } = await lane.once.transaction(
      async (tx) => {
        const { next } = await tx.a
          .updateTable('head')
          .set({ next: sql<number>`next + 1` })
          .where('partition', '=', partition)
          .returning('next')
          .executeTakeFirstOrThrow()
        await tx.a
          .insertInto('topic')
          .values({ partition, position: next - 1, n })
          .execute()
        for (const name of databases) await tx[name].insertInto('effect').values({ attempt }).execute()
      },
      { record: true },
    )
    return { done: { id, finished }, result: undefined }
  })
  await lane.sleep(10 + lane.below(30))
}

/** A consumer has no other position than the one in the database; it takes another partition now and then. */
async function consume(lane: Lane, last: boolean): Promise<boolean> {
  let taken = lane.memory.get('taken') as TakenPartition | undefined
  if (taken === undefined || (!last && lane.below(40) === 0)) {
    const partition = (lane.memory.get('partition') as number | undefined) ?? lane.below(partitions)
    taken = await lane.attempt([{ f: 'take', value: { partition } }], [], async () => {
      const result = await lane.once.takePartition('b', { group, topic, partition }, `slot-${lane.slot}`)
      return { done: { parts: [{ value: { partition, epoch: result.epoch } }] }, result }
    })
    lane.memory.set('taken', taken)
    if (taken === undefined) return last
  }
  const held = taken
  const { partition, epoch } = held
  const position = Number(held.position ?? 0)
  // Behind the position are only duplicates. That they are is for the ledger to say.
  const from = Math.max(0, position - (lane.below(2) === 0 ? lane.below(4) : 0))
  const { result: messages } = await lane.once
    .transaction((tx) =>
      tx.a
        .selectFrom('topic')
        .select(['position', 'n'])
        .where('partition', '=', partition)
        .where('position', '>=', from)
        .orderBy('position')
        .limit(1 + lane.below(6))
        .execute(),
    )
    .catch(() => ({ result: undefined }))
  if (messages === undefined) return last
  const first = messages[0]
  const end = messages.at(-1)
  if (first === undefined || end === undefined || end.position < position) {
    if (from < position) return true
    await lane.sleep(20)
    return false
  }
  const parts = messages.map((message) => ({
    f: 'consume',
    value: { n: message.n, position: message.position, epoch },
  }))
  const databases = end.position % 3 === 0 ? (['b'] as const) : (['b', 'c'] as const)
  const moved = await lane.attempt(parts, databases, async (attempt) => {
    const producer = `${topic}-${partition}`
    const move = { ...held, expected: held.position, next: end.position + 1 }
    const insert = async (fresh: ReadonlySet<number>, tx: Handles) => {
      const rows = messages
        .filter((message) => fresh.has(message.position))
        .map((message) => ({ partition, position: message.position, n: message.n, epoch }))
      await tx.b.insertInto('consumed').values(rows).execute()
      for (const name of databases) await tx[name].insertInto('effect').values({ attempt }).execute()
    }
    let claimed: ReadonlySet<number>
    let done: { id?: string | null; finished?: boolean }
    if (messages.length === 1) {
      const answer = await lane.once.process(
        'b',
        { producer, sequence: first.position },
        (_, tx) => insert(new Set([first.position]), tx),
        { position: move },
      )
      claimed = new Set(answer.status === 'processed' ? [first.position] : [])
      done = answer.status === 'processed' ? { id: answer.id, finished: answer.finished } : {}
    } else {
      const answer = await lane.once.processBatch(
        'b',
        { producer, sequences: messages.map((message) => message.position) },
        (_, fresh, tx) => insert(new Set(fresh.map(Number)), tx),
        { position: move, finish: lane.below(2) === 0 ? 'background' : 'await' },
      )
      claimed = new Set(answer.claimed.map(Number))
      done = { id: answer.id, finished: answer.finished }
    }
    return {
      done: {
        ...done,
        effective: claimed.size > 0,
        parts: messages.map((message) =>
          claimed.has(message.position) ? {} : ({ type: 'fail', error: 'duplicate' } as const),
        ),
      },
      result: end.position + 1,
    }
  })
  // Whatever went wrong: what the database has is the truth.
  lane.memory.set('taken', moved === undefined ? undefined : { ...held, position: BigInt(moved) })
  return true
}
