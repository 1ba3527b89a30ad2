// biome-ignore-all lint/suspicious/noTemplateCurlyInString: pieces of code, to be found and replaced
/**
 * Versions of the code with one bug each. A simulation that does not catch them proves little about the code
 * without. Each is a copy of the sources with one place replaced, run until an invariant is violated.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Mutant, type Search, withMutant } from '../rig/mutants.ts'

interface SimulationMutant extends Mutant {
  /** Commands that are left out of a statement: its name, and how the command begins. */
  readonly without: readonly Omission[]
}

type Omission = readonly [statement: string, command: string]

/*
 * Not here, since they change nothing that anybody could see:
 * - Prepared branches rolled back although the home did not confirm that its transaction is over. Where nothing was
 *   decided COMMIT was never sent, so nothing will be; the model says so, too (`redundant-confirmation` in proof/model/).
 * - The tag of PREPARE or COMMIT not looked at: what stands before either in the same text is refused wherever that
 *   would answer ROLLBACK. What stands there is left out instead.
 * - A PREPARE without an answer taken for refused. Its branch is then rolled back plainly, which does nothing to it, and
 *   recovery finishes it, as it would have: the home has rolled back by then. What matters is the connection, whose
 *   mutant is `unclear is clean`.
 * - `reset session authorization` left out of `commit_shared`: once.seal refuses another role.
 * - `savepoint once` left out of `decide_direct`: the decision row before it is refused wherever that would be.
 */
const seeded: readonly (Pick<Mutant, 'name' | 'what'> & Partial<SimulationMutant>)[] = [
  // Deciding
  {
    name: 'lost answer is an abort',
    what: 'a COMMIT without an answer is taken for aborted, and the branches are rolled back',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'if (isErrorAnswer(error)) {\n        // What was sent ahead',
        replace: 'if (error !== undefined) {\n        // What was sent ahead',
      },
    ],
  },
  {
    name: 'late answer is an abort',
    what: 'a COMMIT whose answer is not waited for any more is taken for aborted',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'return wasNeverSent(error)\n',
        replace: "return wasNeverSent(error) || (error as { code?: string }).code === 'TIMEOUT'\n",
      },
    ],
  },
  {
    name: 'sent counts as never sent',
    what: 'of a statement that was sent and lost with its connection it is said that it was never sent',
    edits: [
      {
        file: 'src/connection/own-link.ts',
        find: 'for (const { reject } of this.#pending) reject(error)',
        replace: 'for (const { reject } of this.#pending) reject(neverSent(error as object))',
      },
    ],
  },
  {
    name: 'FATAL is an abort',
    what: 'any word of the server but yes is taken for a rollback, FATAL at shutdown included',
    edits: [
      {
        file: 'src/errors.ts',
        find: "if (severity === 'ERROR') return true",
        replace: 'if (severity !== undefined) return true',
      },
    ],
  },
  {
    name: 'again after unknown',
    what: 'the handler is run again after a commit whose outcome is not known',
    edits: [
      {
        file: 'src/commit/coordinator.ts',
        find: 'causes(error).some(isRetryable)',
        replace:
          "causes(error).some((cause) => isRetryable(cause) || (cause as { code?: string }).code === 'OUTCOME_UNKNOWN')",
      },
    ],
  },
  {
    name: 'commit before the decision',
    what: 'prepared branches are committed before the home has',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '  let decision = await decide(',
        replace:
          "  await Promise.all(writers.map((writer) => finish(writer, 'commit', gidOf(writer))))\n  let decision = await decide(",
      },
    ],
  },
  {
    name: 'unclear is clean',
    what: 'a connection whose PREPARE was not answered goes back to the pool',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '      else writer.link.abandon()\n',
        replace: '',
      },
    ],
  },
  {
    name: 'refused is prepared',
    what: 'a PREPARE that was refused, or the evidence before it, is not looked at',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '    throw refusalOf(branch, prepared.reason)\n',
        replace: '',
      },
    ],
  },
  {
    name: 'gone is done',
    what: '42704 at COMMIT PREPARED is taken for success, and the branch for finished',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '    return await link.send(say.findEvidence(transactionId))',
        replace: '    return transactionId.length > 0',
      },
    ],
  },
  {
    name: 'only what a driver tells',
    what: 'who has written is known from the counts of changed rows alone, and a function tells none',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: 'this.wrote = xid !== null',
        replace: 'this.wrote ||= xid === undefined',
      },
    ],
  },
  {
    name: 'readers last',
    what: 'who only read is committed behind the decision, and may still be refused',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '  await deadline.race(Promise.all(readers.map((reader) => commitReader(reader))))\n',
        replace: '',
      },
      {
        file: 'src/commit/commit.ts',
        find: 'if (writers.length === 1 && !record) return await commitAlone(work, home)',
        replace:
          'if (writers.length === 1 && !record) {\n    const done = await commitAlone(work, home)\n    await Promise.all(readers.map((reader) => commitReader(reader)))\n    return done\n  }',
      },
    ],
  },
  {
    name: 'decision without its row',
    what: 'the home commits without the row that says so',
    without: [['decide_direct', 'insert into once.global_transaction']],
  },
  {
    name: 'decision not durable',
    what: 'the home commits as its role has it, synchronous_commit off included',
    without: [['decide_direct', 'set local synchronous_commit']],
  },
  {
    name: 'decision before deferred triggers',
    what: 'a deferred trigger of the home makes its COMMIT asynchronous behind all checks',
    without: [['decide_direct', 'set constraints']],
  },
  {
    name: 'decision with another xid',
    what: 'the home does not ask whether its transaction is the one in the gids',
    edits: [
      {
        file: 'proof/simulation/postgres/statements.ts',
        find: 'refuseElsewhere(String(assignXid(transaction)) === xid)',
        replace: 'assignXid(transaction)',
      },
    ],
  },
  {
    name: 'decision at any home',
    what: 'the home does not ask whether it is the database in the gids',
    edits: [
      {
        file: 'proof/simulation/postgres/statements.ts',
        find: 'refuseElsewhere(isHome)\n',
        replace: '',
      },
    ],
  },
  {
    name: 'commit not durable',
    what: 'a commit in one phase is as its role has it, synchronous_commit off included',
    without: [['commit_direct', 'set local synchronous_commit']],
  },
  {
    name: 'commit before deferred triggers',
    what: 'a deferred trigger makes a commit in one phase asynchronous behind all checks',
    without: [['commit_direct', 'set constraints']],
  },
  {
    name: 'commit not durable, with drivers of callers',
    what: 'the simulated once.open and once.seal both leave synchronous_commit off',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: "  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'\n",
        replace: '',
      },
      {
        file: 'proof/simulation/postgres/once.ts',
        find: '  assertBranch(transaction, session, id)\n  makeDurable(transaction)\n',
        replace: '  assertBranch(transaction, session, id)\n',
      },
    ],
  },
  {
    name: 'decision not durable, with drivers of callers',
    what: 'the simulated once.open and once.begin_global both leave synchronous_commit off',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: "  if (transaction.synchronousCommit === 'off') transaction.synchronousCommit = 'on'\n",
        replace: '',
      },
      {
        file: 'proof/simulation/postgres/once.ts',
        find: '  if (transaction.xid === 0) return\n  makeDurable(transaction)\n  checkDatabaseId(transaction, home)',
        replace: '  if (transaction.xid === 0) return\n  checkDatabaseId(transaction, home)',
      },
    ],
  },
  {
    name: 'prepared without evidence',
    what: 'a branch leaves no evidence behind',
    without: [['prepare_direct', 'insert into once.evidence']],
  },
  {
    name: 'prepared in any database',
    what: 'a participant does not ask whether it is the database in the decision',
    edits: [
      {
        file: 'proof/simulation/postgres/statements.ts',
        find: '        refuseElsewhere(session.database.databaseId === databaseId)\n',
        replace: '',
      },
    ],
  },

  // Connections
  {
    name: 'no probe of drivers',
    what: 'a driver is believed that runs only the first of several statements',
    edits: [
      {
        file: 'src/connection/database.ts',
        find: 'if (!link.isOwn) await probeDriver(link)',
        replace: 'if (link.isOwn && probeDriver === undefined) return asked',
      },
    ],
  },
  {
    name: 'no look at the transaction',
    what: 'the simulated once.vote does not ask whether it is inside of its transaction, with a driver that tells no tags',
    edits: [
      {
        file: 'proof/simulation/postgres/once.ts',
        find: '  assertBranch(transaction, session, id)\n  if (transaction.xid === 0) return\n  checkDatabaseId(transaction, databaseId)',
        replace: '  if (transaction.xid === 0) return\n  checkDatabaseId(transaction, databaseId)',
      },
    ],
  },
  {
    name: 'seal not asked',
    what: 'COMMIT through a driver of the caller does not ask whether it is inside of its transaction',
    without: [['commit', 'select once.seal(']],
  },
  {
    name: 'claim not guarded',
    what: 'a claim through a driver that opens connections again does not ask whether it is inside of its transaction',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: 'return this.ask(this.link.isDirect ? statement : say.guarded(statement, this.transactionId))',
        replace: 'return this.ask(statement)',
      },
    ],
  },
  {
    name: 'two statements at a time',
    what: 'a driver that does not queue is sent statements without waiting',
    edits: [
      {
        file: 'src/connection/kysely-link.ts',
        find: 'const result = last.then(() => {',
        replace: 'const result = Promise.resolve().then(() => {',
      },
    ],
  },
  {
    name: 'net believed',
    what: 'statements are sent ahead of BEGIN’s answer where nobody has seen the second net, behind a pooler',
    edits: [
      {
        file: 'src/connection/own-link.ts',
        find: 'if (wantsNet && this.#isUnpooled && !greeting.isFenced) {',
        replace: 'if (wantsNet) {',
      },
    ],
  },
  {
    name: 'net not put up',
    what: 'statements are sent ahead of BEGIN’s answer without the second net',
    edits: [
      {
        file: 'src/connection/own-link.ts',
        find: '      await this.send(secondNet())\n',
        replace: '',
      },
    ],
  },
  {
    name: 'no savepoint before COMMIT',
    what: 'COMMIT is believed where BEGIN had failed',
    without: [['commit_direct', 'savepoint once']],
  },
  {
    name: 'fence not asked',
    what: 'nobody asks whether an operator has made the database read-only, whom the second net hides',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: 'if (database.isFenceDue()) branch.askFence()',
        replace: '',
      },
    ],
  },
  {
    name: 'fence not obeyed',
    what: 'sessions that were opened before an operator made the database read-only are used again',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: '    this.link.outdate()\n    throw madeReadOnly(this.database)',
        replace: '    if (answer === undefined) throw madeReadOnly(this.database)',
      },
    ],
  },
  {
    name: 'unanswered rollback is clean',
    what: 'a connection that has not answered to ROLLBACK goes back to the pool',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: '    return true\n  } catch {\n    link.abandon()\n',
        replace: '    return true\n  } catch {\n',
      },
    ],
  },

  // Handlers
  {
    name: 'violation ignored',
    what: 'a handler that tried to end its transaction, and caught the error, is committed',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: 'if (progress.violation !== undefined) throw progress.violation',
        replace: '',
      },
    ],
  },
  {
    name: 'endings are sent',
    what: 'what ends a transaction is sent',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: '        refuseControl(query.sql)\n',
        replace: "        if (query.sql === '') refuseControl(query.sql)\n",
      },
    ],
  },
  {
    name: 'unawaited is committed',
    what: 'a handler that returned before a query was answered is committed',
    edits: [
      {
        file: 'src/commit/branch.ts',
        find: '  if (first === undefined) return\n',
        replace: '  if (first === undefined || progress.committing === false) return\n',
      },
    ],
  },
  ...(
    [
      ['settings', 'reset all', 'set default_transaction_read_only'],
      ['role', 'reset session authorization'],
      ['net', 'set default_transaction_read_only'],
      ['locks', 'execute once_unlock'],
    ] as const
  ).flatMap(([what, ...commands]) =>
    (['commit_direct', 'prepare_direct'] as const).map((statement) => ({
      name: `${what} survive ${statement}`,
      what: `what a handler leaves in its session meets the next message: ${commands[0]} is left out`,
      without: commands.map((command) => [statement, command] as const),
    })),
  ),
  ...(
    [
      ['commit_shared', 'reset all'],
      ['prepare_shared', 'select pg_catalog.pg_advisory_unlock_all()'],
      ['decide_shared', 'set local synchronous_commit'],
    ] as const
  ).map(([statement, command]) => ({
    name: `${statement} without ${command.replace('select pg_catalog.', '')}`,
    what: 'behind a pooler, what a handler leaves in a session meets whoever gets it next, or the commit',
    without: [[statement, command] as const],
  })),
  {
    name: 'locks survive a rollback behind a pooler',
    what: 'advisory locks of a session meet whoever gets it next',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'link.isOwn ? say.rollbackDirect()',
        replace: 'link.isDirect ? say.rollbackDirect()',
      },
    ],
  },
  {
    name: 'lost and never given back',
    what: 'a connection of the caller’s that is lost under another role is kept from its pool',
    edits: [
      {
        file: 'src/connection/kysely-link.ts',
        find: '      if (isErrorAnswer(error)) throw error\n',
        replace: '      throw error\n',
      },
    ],
  },
  {
    name: 'temporary tables survive',
    what: 'a temporary table of a handler meets the next message',
    without: [['commit_direct', 'discard temp']],
  },
  {
    name: 'locks survive rollback_direct',
    what: 'advisory locks of a session, which ROLLBACK does not take away, meet the next message',
    without: [['rollback_direct', 'select pg_catalog.pg_advisory_unlock_all()']],
  },

  // Recovery
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
        replace: '    if (answer !== undefined) return ((asker as { kept?: string }).kept ??= answer)\n',
      },
    ],
  },
  {
    name: 'inside, all in one transaction',
    what: 'once.recover() commits no mark before what comes of it has been done elsewhere',
    edits: [
      {
        file: 'proof/simulation/inside.ts',
        find: '    await inTime(here, process, send(here, wire, statementOf(say.end())))\n',
        replace:
          "    if (name === 'answer') await inTime(here, process, send(here, wire, statementOf(say.end())))\n",
      },
    ],
  },
  {
    name: 'leaves what is aborted',
    what: 'a courier runs only what commits',
    edits: [
      {
        file: 'src/recovery/courier.ts',
        find: "if (row.kind === 'run') statements.push(row)",
        replace: "if (row.kind === 'run') row.outcome === 'committed' && statements.push(row)",
      },
    ],
  },
  {
    name: 'the first page only',
    what: 'recovery does not ask for the rest of a long list',
    edits: [
      {
        file: 'src/recovery/courier.ts',
        find: "if (row.kind === 'next') next.push(JSON.stringify(row.next))",
        replace: "if (row.kind === 'next') continue",
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
]

export const mutants: readonly SimulationMutant[] = seeded.map((mutant) => ({
  edits: [],
  without: [],
  ...mutant,
}))

/** Runs a task with a simulation, and an environment for its processes, in which a mutant lives. */
export async function withSimulation<T>(
  { edits, without }: SimulationMutant,
  task: (simulation: string, env: NodeJS.ProcessEnv) => Promise<T>,
): Promise<T> {
  const left = without.map(([statement, command]) => `${statement}: ${command}`).join('; ')
  const env = { ...process.env, PGONCE_SIMULATION_WITHOUT: left }
  if (edits.length === 0) return await task(import.meta.dirname, env)
  const parts = ['src', 'proof/simulation', 'proof/rig', 'scripts', 'package.json']
  return await withMutant({ edits }, parts, (copy) => task(join(copy, 'proof/simulation'), env))
}

/** Runs schedules until one is violated or the seeds are used up, and then the code without the bug where it was. */
export async function search(mutant: SimulationMutant, seeds: number): Promise<Search> {
  const { after, invariant, seed } = await withSimulation(mutant, (simulation, env) =>
    hunt(simulation, seeds, 1, env),
  )
  if (seed === undefined) return { by: undefined, after: `${seeds} schedules` }
  const without = await hunt(import.meta.dirname, 1, seed, process.env)
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

async function hunt(
  simulation: string,
  seeds: number,
  from: number,
  env: NodeJS.ProcessEnv,
): Promise<Hunted> {
  const arguments_ = ['--max-semi-space-size=32', join(simulation, 'hunt.ts'), String(seeds), String(from)]
  const { stdout } = await promisify(execFile)(process.execPath, arguments_, { env })
  return JSON.parse(stdout) as Hunted
}
