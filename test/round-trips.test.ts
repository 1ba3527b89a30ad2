/**
 * What each flow costs over every kind of target, on any machine: how often it waits for an answer, and how many
 * statements it sends. A flow that gets more expensive fails here; one that gets cheaper changes the table.
 */
import test from 'ava'
import { countFlows, type FlowName, type Target, targetNames } from '../bench/flows.ts'
import { tables } from '../bench/servers.ts'
import { testDatabase } from './support/database.ts'
import { shared } from './support/shared.ts'

/** Round trips / messages. */
const expected: Record<FlowName, Record<Target, string>> = {
  process_sequence: { url: '3/4', postgres_js: '3/4', kysely_on_pg: '5/5' },
  process_sequence_duplicate: { url: '1/3', postgres_js: '1/3', kysely_on_pg: '4/4' },
  process_key: { url: '3/4', postgres_js: '3/4', kysely_on_pg: '5/5' },
  process_key_duplicate: { url: '1/3', postgres_js: '1/3', kysely_on_pg: '4/4' },
  process_queries: { url: '1/3', postgres_js: '1/3', kysely_on_pg: '4/4' },
  process_queries_duplicate: { url: '1/3', postgres_js: '1/3', kysely_on_pg: '4/4' },
  process_key_keep_result: { url: '3/5', postgres_js: '3/5', kysely_on_pg: '6/6' },
  process_position: { url: '3/5', postgres_js: '3/5', kysely_on_pg: '6/6' },
  process_2: { url: '6/9', postgres_js: '6/9', kysely_on_pg: '11/12' },
  batch_sequences: { url: '3/4', postgres_js: '3/4', kysely_on_pg: '5/5' },
  batch_keys: { url: '3/4', postgres_js: '3/4', kysely_on_pg: '5/5' },
  batch_duplicates: { url: '1/3', postgres_js: '1/3', kysely_on_pg: '4/4' },
  transaction_1: { url: '2/3', postgres_js: '2/3', kysely_on_pg: '4/4' },
  transaction_1_record: { url: '3/4', postgres_js: '3/4', kysely_on_pg: '5/5' },
  transaction_2: { url: '5/8', postgres_js: '5/8', kysely_on_pg: '10/11' },
  transaction_3: { url: '6/12', postgres_js: '6/12', kysely_on_pg: '13/17' },
  transaction_2_reads_1: { url: '8/12', postgres_js: '8/12', kysely_on_pg: '14/16' },
  transaction_1_reads_1: { url: '5/8', postgres_js: '5/8', kysely_on_pg: '9/10' },
  transaction_reads_2: { url: '4/9', postgres_js: '4/9', kysely_on_pg: '8/10' },
}

const databases = shared(async (file) => {
  // Two on one server, as people have them.
  const [a, b, c] = await Promise.all(
    (['a', 'b', 'a'] as const).map((server) => testDatabase(file, { server })),
  )
  if (!a || !b || !c) throw new Error('unreachable')
  for (const { sql } of [a, b, c]) await sql.unsafe(tables)
  return { a: a.url, b: b.url, c: c.url }
})

for (const target of targetNames) {
  test(`No flow takes more round trips and messages than it did: ${target}`, async (t) => {
    const counts = await countFlows(databases(), target)
    const found = Object.entries(counts).map(([flow, { trips, messages }]) => [flow, `${trips}/${messages}`])
    t.deepEqual(
      Object.fromEntries(found),
      Object.fromEntries(Object.entries(expected).map(([flow, of]) => [flow, of[target]])),
    )
  })
}
