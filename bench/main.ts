/**
 * `npm run bench`: the figures that we hold ourselves to, as ratios to the same work done without pgonce.
 *
 *     npm run bench -- --quick           fewer rounds
 *     npm run bench -- --only two_phase  figures whose case or key begins like this
 *     npm run bench -- --json            one JSON object, for programs
 */
import { availableParallelism } from 'node:os'
import { refuse, several, tool } from '../scripts/command.ts'
import { batches } from './batches.ts'
import { clientCpu } from './client-cpu.ts'
import type { Case, Figure } from './harness.ts'
import { inDoubt } from './in-doubt.ts'
import { ledgerSizes } from './ledger-size.ts'
import { distantMessageCases, messageCases } from './messages.ts'
import { recovery } from './recovery.ts'
import { printTable, toJson } from './report.ts'
import { roundTripCases, tripsAndFlushes } from './round-trips.ts'
import { startServers } from './servers.ts'
import { distantTransactions, latency, throughput } from './two-phase.ts'

const cases: readonly Case[] = [
  {
    keys: [
      'process_round_trips',
      'process_flushes',
      'transaction_flushes_to_decision',
      'transaction_flushes',
    ],
    measure: tripsAndFlushes,
  },
  ...roundTripCases,
  ...messageCases,
  { keys: ['process_batch_500', 'process_batch_50', 'process_batch_1'], measure: batches },
  { keys: ['two_phase_vs_textbook', 'two_phase_vs_unsafe'], measure: throughput },
  { keys: ['decision_latency_vs_textbook_1ms'], measure: latency },
  { keys: ['transaction_client_cpu_vs_textbook'], measure: clientCpu },
  ...distantMessageCases,
  distantTransactions,
  { keys: ['recovery_vs_bare_loop'], measure: recovery },
  { keys: ['sequence_ledger_bytes', 'key_ledger_bytes_per_key'], measure: ledgerSizes },
  {
    keys: ['in_doubt_vs_bare_join', 'in_doubt_vs_documented_join', 'in_doubt_vs_narrow_join'],
    measure: inDoubt,
  },
]

const options = tool('bench', 'What pgonce costs, as ratios to the same work without it.')
  .option('--only <key>', 'figures whose key begins like this; may be given several times', several)
  .option('--quick', 'fewer repetitions', false)
  .option('--json', 'one JSON object, for programs', false)
  .parse()
  .opts<{ only?: readonly string[]; quick: boolean; json: boolean }>()
const { only = [''] } = options
const wanted = cases.filter(({ keys }) => keys.some((key) => only.some((start) => key.startsWith(start))))
if (wanted.length === 0)
  refuse(`Nothing to measure. The keys are:\n  ${cases.flatMap(({ keys }) => keys).join('\n  ')}`)

await using servers = await startServers()
const figures: Figure[] = []
for (const { keys, measure } of wanted) {
  if (process.stderr.isTTY) process.stderr.write(`measuring ${keys.join(', ')} …\n`)
  figures.push(...(await measure(servers, options.quick)))
}
const environment = {
  processors: availableParallelism(),
  node: process.versions.node,
  postgres: servers.version,
  quick: options.quick,
}
if (options.json) console.log(JSON.stringify(toJson(figures, environment)))
else printTable(figures, environment)
