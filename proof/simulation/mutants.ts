// biome-ignore-all lint/suspicious/noTemplateCurlyInString: pieces of code, to be found and replaced
/**
 * Versions of the code with one bug each. A simulation that does not catch them proves little about the code
 * without. Each is a copy of the sources with one place replaced, run until an invariant is violated.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Mutant, type Search, withMutant } from '../rig/mutants.ts'

/*
 * Not here, since they change nothing that anybody could see:
 * - Prepared branches rolled back although the home did not confirm that its transaction is over. Where nothing was
 *   decided COMMIT was never sent, so nothing will be; the model says so, too (`redundant-confirmation` in proof/model/).
 * - A decision row that was refused, and not looked at when COMMIT was answered: the tag of that COMMIT is ROLLBACK.
 * - The tag of COMMIT not looked at: a transaction in which something failed is looked at before COMMIT, which then is
 *   refused. Tag and decision row together are the mutant `decision row ignored`.
 */
export const mutants: readonly Mutant[] = [
  {
    name: 'gone is done',
    what: '42704 at COMMIT PREPARED is taken for success, and the branch for finished',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: "if (statement.startsWith('rollback')) return true",
        replace: 'if (statement.length > 0) return true',
      },
    ],
  },
  {
    name: 'no look for what was prepared',
    what: 'without a tag PREPARE is believed, whatever became of it',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'if (rows.length === 1) return\n    }\n    throw swallowed(branch)',
        replace: 'if (rows.length <= 1) return\n    }\n    throw swallowed(branch)',
      },
    ],
  },
  {
    name: 'lost answer is an abort',
    what: 'a COMMIT without an answer is taken for aborted, and the branches are rolled back',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: "      return isErrorAnswer(commit.reason)\n        ? { outcome: 'aborted'",
        replace: "      return commit.reason !== undefined\n        ? { outcome: 'aborted'",
      },
    ],
  },
  {
    name: 'FATAL is an abort',
    what: 'any word of the server but yes is taken for a rollback, FATAL at shutdown included',
    edits: [
      {
        file: 'src/errors.ts',
        find: 'return isServerError(error) && saysError(error as { severity: string })',
        replace: 'return isServerError(error)',
      },
    ],
  },
  {
    name: 'pending is aborted',
    what: 'recovery rolls back while the home transaction still runs',
    edits: [
      {
        file: 'src/recovery/finishing.ts',
        find: "if (outcome !== 'committed' && outcome !== 'aborted') continue",
        replace: 'if (outcome === undefined) continue',
      },
    ],
  },
  {
    name: 'decision by UUID alone',
    what: 'the answer about one xid is taken for the answer about another',
    edits: [
      {
        file: 'src/recovery/finishing.ts',
        find: 'return `${home} ${transactionId} ${homeXid}`',
        replace: 'return `${home} ${transactionId} ${homeXid.length}`',
      },
    ],
  },
  {
    name: 'unclear means refused',
    what: 'a PREPARE without an answer is taken for refused: its branch is rolled back plainly, and the others as prepared',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'return isErrorAnswer(error) || (error instanceof PgonceError && !(error instanceof AbortedError))',
        replace: 'return isErrorAnswer(error) || error instanceof PgonceError',
      },
    ],
  },
  {
    name: 'commit before the decision',
    what: 'prepared branches are committed before the home has',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '  let decision = await decide(work, home, commitOf(home))\n',
        replace:
          '  await Promise.all(writers.map((writer) => finish(writer, `commit prepared ${gidOf(writer)}`)))\n  let decision = await decide(work, home, commitOf(home))\n',
      },
    ],
  },
  {
    name: 'vote and tag unread',
    what: 'neither a vote that failed nor the tag ROLLBACK of its PREPARE is looked at',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: "  if (vote.status === 'rejected') throw vote.reason\n  if (prepared.status === 'rejected') throw prepared.reason\n  return vote.value",
        replace: '  return vote.status === prepared.status',
      },
    ],
  },
  {
    name: 'decision row ignored',
    what: 'neither a decision row that was refused nor the tag of the COMMIT behind it is looked at',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: "if (before.status === 'rejected' && isRefusal(before.reason)) {",
        replace:
          "if (before.status === 'rejected' && commit.status === 'rejected' && isRefusal(before.reason)) {",
      },
      {
        file: 'src/commit/commit.ts',
        find: "if (command !== undefined && command !== 'COMMIT') return { outcome",
        replace: "if (command !== undefined && command === '') return { outcome",
      },
    ],
  },
  {
    name: 'again after unknown',
    what: 'the handler is run again after a commit whose outcome is not known',
    edits: [
      {
        file: 'src/commit/coordinator.ts',
        find: '!causes(error).some(isRetryable)',
        replace:
          "!causes(error).some((cause) => isRetryable(cause) || (cause as { code?: string }).code === 'OUTCOME_UNKNOWN')",
      },
    ],
  },
  {
    name: 'evidence before prepared',
    what: 'a branch that commits between the two readings is taken for lost',
    edits: [
      {
        file: 'src/recovery/purging.ts',
        find: `      const prepared = await session.query<{ id: string }>(
        'select d.transaction_id::text as id from once.branch d where d.transaction_id is not null',
      )
      const evident = await session.query<{ id: string }>(
        'select e::text as id from once.find_evidence($1::text::uuid[]) e',
        [arrayOf(ids)],
      )`,
        replace: `      const evident = await session.query<{ id: string }>(
        'select e::text as id from once.find_evidence($1::text::uuid[]) e',
        [arrayOf(ids)],
      )
      const prepared = await session.query<{ id: string }>(
        'select d.transaction_id::text as id from once.branch d where d.transaction_id is not null',
      )`,
      },
    ],
  },
  {
    name: 'proven unseen',
    what: 'decisions are marked proven whose evidence is not there yet',
    edits: [
      {
        file: 'src/recovery/purging.ts',
        find: 'const evident = decisions.map(({ id }) => id).filter((id) => !open.has(id))',
        replace: 'const evident = decisions.map(({ id }) => id).filter((id) => !missing.has(id))',
      },
    ],
  },
  {
    name: 'confirmed unseen',
    what: 'the second look marks what is proven, whether its evidence still stands or not',
    edits: [
      {
        file: 'src/recovery/purging.ts',
        find: 'const evident = decisions.map(({ id }) => id).filter((id) => !open.has(id))',
        replace:
          'const evident = decisions.map(({ id }) => id).filter((id) => mark === second.mark || !open.has(id))',
      },
    ],
  },
  {
    name: 'purged too early',
    what: 'the decision goes although the evidence of some participant could not be deleted',
    edits: [
      {
        file: 'src/recovery/purging.ts',
        find: 'if (deleted === undefined) for (const id of ids) kept.add(id)',
        replace: 'if (deleted === undefined) for (const id of ids) kept.delete(id)',
      },
    ],
  },
  {
    name: 'gives up at the first error',
    what: 'recovery leaves what comes after a branch that it cannot finish',
    edits: [
      {
        file: 'src/recovery/finishing.ts',
        find: "if (outcome === 'pending') report.pending += 1",
        replace:
          "if (outcome === 'pending') report.pending += 1\n    if (report.unfinished.length > 0 || report.pending > 0 || outcome === 'aborted') return",
      },
    ],
  },
  {
    name: 'status after the row',
    what: 'the simulated once.branch_outcome reads the row before the status, as the SQL must not',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: `  let over = true
  try {`,
        replace: `  const early = read(transaction, 'global', id)
  yield pause(transaction)
  if (early === undefined && !server.running.has(Number(xid))) return 'aborted'
  let over = true
  try {`,
      },
    ],
  },
  {
    name: 'status believed',
    what: 'the simulated once.branch_outcome takes pg_xact_status for the decision, a stranger’s included',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: `  yield pause(transaction)
  const row = read(transaction, 'global', id)
  return row`,
        replace: `  yield pause(transaction)
  if (server.committed.has(Number(xid))) return 'committed'
  const row = read(transaction, 'global', id)
  return row`,
      },
    ],
  },
  {
    name: 'commit not durable',
    what: 'the simulated once.open leaves synchronous_commit off: of one phase, there is nobody else to see to it',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: "  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'\n",
        replace: '',
      },
    ],
  },
  {
    name: 'decision not durable',
    what: 'the simulated once.open and once.begin_global both leave synchronous_commit off',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: "  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'\n",
        replace: '',
      },
      {
        file: 'proof/simulation/postgres/once.ts',
        find: '  if (transaction.xid === 0) return null\n  makeDurable(transaction)\n',
        replace: '  if (transaction.xid === 0) return null\n',
      },
    ],
  },
]

/** Makes a copy of the sources with a mutant in it, for as long as a task runs. */
export function withSimulation<T>(mutant: Mutant, task: (simulation: string) => Promise<T>): Promise<T> {
  const parts = ['src', 'proof/simulation', 'proof/rig', 'scripts', 'package.json']
  return withMutant(mutant, parts, (copy) => task(join(copy, 'proof/simulation')))
}

/** Runs schedules until one is violated or the seeds are used up, and then the code without the bug where it was. */
export async function search(mutant: Mutant, seeds: number): Promise<Search> {
  const { after, invariant, seed } = await withSimulation(mutant, (simulation) => hunt(simulation, seeds, 1))
  if (seed === undefined) return { by: undefined, after: `${seeds} schedules` }
  const without = await hunt(import.meta.dirname, 1, seed)
  return {
    by: invariant,
    after: `${after} schedules`,
    falseAlarm: without.after === undefined ? undefined : `seed ${seed} is violated without it, too`,
  }
}

interface Hunted {
  readonly after?: number
  readonly invariant?: string
  readonly seed?: number
}

async function hunt(simulation: string, seeds: number, from: number): Promise<Hunted> {
  const arguments_ = ['--max-semi-space-size=32', join(simulation, 'hunt.ts'), String(seeds), String(from)]
  const { stdout } = await promisify(execFile)(process.execPath, arguments_)
  return JSON.parse(stdout) as Hunted
}
