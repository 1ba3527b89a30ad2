// biome-ignore-all lint/suspicious/noTemplateCurlyInString: pieces of code, to be found and replaced
/**
 * Versions of the code with one bug each. A simulation that does not catch them proves little about the code
 * without. Each is a copy of the sources with one place replaced, run until an invariant is violated.
 */
import { execFile } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Edit, withEdited } from '../../test/support/mutated.ts'

interface Mutant {
  readonly name: string
  /** What goes wrong with it. */
  readonly what: string
  readonly edits: readonly Edit[]
}

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
        file: 'proof/simulation/postgres/recovery.ts',
        find: "if (outcome === 'pending')",
        replace: "if (outcome === '')",
      },
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: 'id,\n          outcome,\n',
        replace: "id,\n          outcome: outcome === 'committed' ? outcome : 'aborted',\n",
      },
    ],
  },
  {
    name: 'decision by UUID alone',
    what: 'the answer about one xid is taken for the answer about another',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: 'new Map(ids.map((id, index) => [`${id} ${xids[index]}`, outcomes[index]]))',
        replace: 'new Map(ids.map((id, index) => [`${id} ${xids[index]?.length}`, outcomes[index]]))',
      },
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: 'said.get(`${id} ${xid}`)',
        replace: 'said.get(`${id} ${xid.length}`)',
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
        file: 'proof/simulation/postgres/recovery.ts',
        find: `    const prepared = new Set(branchesOf(database).map(({ id }) => id))
    yield pause(transaction)
    const evident = evidentOf(transaction, ids)
`,
        replace: `    const evident = evidentOf(transaction, ids)
    yield pause(transaction)
    const prepared = new Set(branchesOf(database).map(({ id }) => id))
`,
      },
    ],
  },
  {
    name: 'proven unseen',
    what: 'decisions are marked whose evidence is not there yet: whatever is not missing counts as evident',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: "answers.flatMap(({ asked, ids, evident = [] }) =>\n      (step === 'purge' ? ids : evident).map(",
        replace:
          'answers.flatMap(({ asked, ids, missing = [] }) =>\n      ids.filter((id) => !missing.includes(id)).map(',
      },
    ],
  },
  {
    name: 'silence is evidence',
    what: 'decisions are marked although a participant has not answered',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: '(one) => given.has(`${one} ${id}`)',
        replace: '(one) => given.has(`${one} ${id}`) || !answers.some(({ asked }) => asked === one)',
      },
    ],
  },
  {
    name: 'confirmed unseen',
    what: 'the second look marks what is proven, whether its evidence still stands or not',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: "(step === 'purge' ? ids : evident).map(",
        replace: "(step === 'purge' || step === 'confirm' ? ids : evident).map(",
      },
    ],
  },
  {
    name: 'purged too early',
    what: 'the decision goes although the evidence of some participant could not be deleted',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: 'databaseIds.every((one) => given.has(`${one} ${id}`))',
        replace: "databaseIds[step === 'purge' ? 'some' : 'every']((one) => given.has(`${one} ${id}`))",
      },
    ],
  },
  {
    name: 'loss without a second look',
    what: 'what was missing is recorded as lost, whatever the decision says by then',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: "if (row === undefined || (step === 'prove' ? !isUnproven(row) : row.confirmedAt !== undefined)) continue",
        replace: 'if (row === undefined) continue',
      },
    ],
  },
  {
    name: 'deletion asked for at once',
    what: 'evidence is deleted of what is proven, before it was looked for once more',
    edits: [
      {
        file: 'proof/simulation/postgres/recovery.ts',
        find: '.filter(({ confirmedAt }) => confirmedAt !== undefined && confirmedAt <= before)',
        replace: '.filter(({ provenAt }) => provenAt !== undefined && provenAt <= before)',
      },
    ],
  },
  {
    name: 'answers kept',
    what: 'a courier takes an answer for one to every question that is put later',
    edits: [
      {
        file: 'src/recovery/courier.ts',
        find: '    if (answer !== undefined) return answer\n',
        replace: '    if (answer !== undefined) return (kept ??= answer)\n',
      },
      {
        file: 'src/recovery/courier.ts',
        find: '  const silent = new Set<Database>()\n',
        replace: '  const silent = new Set<Database>()\n  let kept: string | undefined\n',
      },
    ],
  },
  {
    name: 'inside, all in one transaction',
    what: 'once.recover() commits no mark before what comes of it has been done elsewhere',
    edits: [
      {
        file: 'proof/simulation/inside.ts',
        find: "    await inTime(here, process, send(here, wire, 'commit', []))\n",
        replace: "    if (name === 'answer') await inTime(here, process, send(here, wire, 'commit', []))\n",
      },
    ],
  },
  {
    name: 'leaves what is aborted',
    what: 'a courier runs only what commits',
    edits: [
      {
        file: 'src/recovery/courier.ts',
        find: 'if (statement !== undefined) statements.push(statement)',
        replace: "if (statement?.outcome === 'committed') statements.push(statement)",
      },
    ],
  },
  {
    name: 'the first page only',
    what: 'recovery does not ask for the rest of a long list',
    edits: [
      {
        file: 'src/recovery/courier.ts',
        find: 'next: isFirst ? rows.flatMap(',
        replace: 'next: isFirst && rows.length < 0 ? rows.flatMap(',
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

interface Caught {
  /** Undefined: it survived. */
  readonly after: number | undefined
  readonly invariant: string | undefined
  readonly seed: number | undefined
  /** Whether the code without it passes the schedule that caught it: else it was a false alarm. */
  readonly isSound: boolean
}

/** Makes a copy of the sources with a mutant in it, for as long as a task runs. */
export function withMutant<T>({ edits }: Mutant, task: (simulation: string) => Promise<T>): Promise<T> {
  return withEdited(edits, ['src', 'proof', 'scripts', 'test/support', 'package.json'], (copy) =>
    task(join(copy, 'proof', 'simulation')),
  )
}

/** Runs one mutant until it is caught or the seeds are used up, and then the code without it where it was caught. */
export async function runMutant(mutant: Mutant, seeds: number): Promise<Caught> {
  const caught = await withMutant(mutant, (simulation) => hunt(simulation, seeds, 1))
  if (caught.seed === undefined) return { ...caught, isSound: true }
  const { after } = await hunt(import.meta.dirname, 1, caught.seed)
  return { ...caught, isSound: after === undefined }
}

async function hunt(simulation: string, seeds: number, from: number): Promise<Omit<Caught, 'isSound'>> {
  const arguments_ = ['--max-semi-space-size=32', join(simulation, 'hunt.ts'), String(seeds), String(from)]
  const { stdout } = await promisify(execFile)(process.execPath, arguments_)
  const { after, invariant, seed } = JSON.parse(stdout) as Partial<Caught>
  return { after, invariant, seed }
}

/** Runs mutants, one a core; whether all were caught. */
export async function runMutants(chosen: readonly Mutant[], seeds: number, json: boolean): Promise<boolean> {
  const results = new Map<Mutant, Caught>()
  const waiting = chosen.values()
  await Promise.all(
    Array.from({ length: availableParallelism() }, async () => {
      for (const mutant of waiting) {
        const caught = await runMutant(mutant, seeds)
        results.set(mutant, caught)
        process.stderr.write(`${mutant.name}: ${tell(caught, seeds)}\n`)
      }
    }),
  )
  const rows = chosen.map((mutant) => ({
    mutant: mutant.name,
    what: mutant.what,
    ...(results.get(mutant) as Caught),
  }))
  if (json) process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`)
  else {
    console.log('| mutant | what it does | caught after | by |\n|---|---|---|---|')
    for (const { mutant, what, after, invariant } of rows)
      console.log(`| ${mutant} | ${what} | ${after ?? 'never'} | ${invariant ?? ''} |`)
  }
  return rows.every(({ after, isSound }) => after !== undefined && isSound)
}

function tell({ after, invariant, seed, isSound }: Caught, seeds: number): string {
  if (after === undefined) return `SURVIVED ${seeds} schedules`
  const caught = `caught after ${after}, “${invariant}”`
  return isSound ? caught : `${caught}; but seed ${seed} breaks without it: A FALSE ALARM`
}
