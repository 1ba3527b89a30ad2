/**
 * Seeded bugs, in SQL and in TypeScript, each of which somebody has shipped somewhere. A checker that has never
 * caught a bug proves nothing, so each must be caught: the tree is copied, the bug put in, the migration rebuilt,
 * and a short run with the faults that it takes is repeated with other seeds until something is violated.
 */
import { execFile, spawn } from 'node:child_process'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Edit, type Mutant, type Search, withMutant } from '../rig/mutants.ts'

interface ChaosMutant extends Mutant {
  /** Arguments of the run. */
  readonly run: readonly string[]
}

const asynchronousOpen: Edit = {
  file: 'sql/ledger/ensure_durable.sql',
  find: `if current_setting('synchronous_commit') = 'off' then`,
  replace: 'if false then',
}

/** What our client says itself, on connections of its own. */
const asynchronous = (name: 'durable' | 'decisive'): Edit => ({
  file: 'src/statements.ts',
  find: `const ${name} = (level: string | undefined) =>\n`,
  replace: `const ${name} = (level: string | undefined) =>\n  level !== 'never' ? 'set local synchronous_commit = off' :\n`,
})

export const mutants: readonly ChaosMutant[] = [
  {
    name: 'row-before-status',
    what: 'once.branch_outcome reads the row first and the status second, a quarter of a second later',
    edits: [
      {
        file: 'sql/recovery/branch_outcomes.sql',
        find: `  v_over boolean[];\n`,
        replace: `  v_over boolean[];\n  v_rows uuid[];\n`,
      },
      {
        file: 'sql/recovery/branch_outcomes.sql',
        find: '  -- All at once; only what may lie',
        replace: `  v_rows := array(select g.transaction_id from once.global_transaction g
                   where g.transaction_id = any (branch_outcomes.transaction_ids));
  perform pg_sleep(0.25);
  -- All at once; only what may lie`,
      },
      {
        file: 'sql/recovery/branch_outcomes.sql',
        find: 'left join once.global_transaction g on g.transaction_id = i.id and g.home_xid = i.xid',
        replace: 'left join unnest(v_rows) g (transaction_id) on g.transaction_id = i.id',
      },
    ],
    run: ['--workload', 'bank', '--faults', 'stall', '--slots', '4'],
  },
  {
    name: 'believes-xact-status',
    what: 'once.branch_outcome takes the committed of pg_xact_status for a decision',
    edits: [
      {
        file: 'sql/recovery/branch_outcomes.sql',
        find: `case when g.transaction_id is not null then 'committed'`,
        replace: `case when g.transaction_id is not null
                or case when i.xid < v_future then pg_xact_status(i.xid) end = 'committed' then 'committed'`,
      },
    ],
    run: ['--workload', 'bank', '--faults', 'server-at-point,recoverer', '--slots', '1', '--lanes', '0.5'],
  },
  {
    name: 'recovers-by-age',
    what: 'recovery rolls back a branch whose home still runs once it is old enough',
    edits: [
      {
        file: 'sql/recovery/finish_statements.sql',
        find: `when o.outcome = 'pending'`,
        replace: `when o.outcome = ''`,
      },
      {
        file: 'sql/recovery/finish_statements.sql',
        find: 'select distinct *',
        replace: `select distinct i, x, case v when 'committed' then v else 'aborted' end`,
      },
      {
        file: 'sql/recovery/finish_statements.sql',
        find: `finish_statements.outcomes)\n`,
        replace: `finish_statements.outcomes) u (i, x, v)\n`,
      },
    ],
    run: ['--workload', 'bank', '--faults', 'stall', '--slots', '4'],
  },
  {
    name: 'asynchronous-commit',
    what: 'where the default is synchronous_commit = off, a commit in one database does not wait for its flush',
    edits: [asynchronousOpen, asynchronous('durable')],
    // Alone: two phases flush, and with them whatever was committed before.
    run: ['--workload', 'monotonic', '--faults', 'server'],
  },
  {
    name: 'asynchronous-decision',
    what: 'neither does the home of a transaction over several',
    edits: [
      asynchronousOpen,
      asynchronous('durable'),
      asynchronous('decisive'),
      {
        file: 'sql/commit/begin_global.sql',
        find: `if current_setting('synchronous_commit') not in ('on', 'remote_apply') then`,
        replace: 'if false then',
      },
    ],
    run: ['--workload', 'list-append,bank', '--faults', 'server'],
  },
  {
    name: 'claims-twice',
    what: 'the fast path of a claim takes what lies behind the watermark for new',
    edits: [
      {
        file: 'sql/ledger/claim.sql',
        find: 'and p.watermark + 1 = claim.sequence',
        replace: 'and p.watermark + 1 >= claim.sequence',
      },
      {
        file: 'sql/ledger/claim_ranges.sql',
        find: 'and p.watermark + 1 = lower(claim_ranges.ranges)',
        replace: 'and p.watermark + 1 >= lower(claim_ranges.ranges)',
      },
    ],
    run: ['--workload', 'monotonic,queue', '--faults', 'kill,point'],
  },
  {
    name: 'claims-apart',
    what: 'the claim commits in a transaction of its own, before the effects',
    edits: [
      {
        file: 'src/client.ts',
        find: '          const value = await stage.handle(',
        replace:
          `          const apart = { values: [], isScript: true, isSeveral: true, read: () => undefined }\n` +
          `          await branch.link.send({ ...apart, name: 'apart', text: 'commit; begin read write' })\n` +
          '          const value = await stage.handle(',
      },
    ],
    run: ['--workload', 'monotonic', '--faults', 'kill,point,server'],
  },
  {
    name: 'no-fence',
    what: 'a position moves without a look at the epoch',
    edits: [
      {
        file: 'sql/position/advance.sql',
        find: '     and o.epoch = advance.epoch\n',
        replace: '',
      },
    ],
    run: ['--workload', 'queue', '--faults', 'stop'],
  },
  {
    name: 'guesses',
    what: 'a lost answer to COMMIT is reported as an abort',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'return wasNeverSent(error)\n',
        replace: 'return error !== undefined\n',
      },
    ],
    run: ['--workload', 'bank,monotonic', '--faults', 'proxy', '--proxies-every', '150'],
  },
  {
    name: 'evidence-apart',
    what: 'evidence of a branch is written in a transaction of its own',
    edits: [
      {
        file: 'src/commit/commit.ts',
        find: 'async function prepare(branch: Branch, global: say.GlobalId, gid: string): Promise<void> {\n',
        replace: `async function prepare(branch: Branch, global: say.GlobalId, gid: string): Promise<void> {
  const { withReadCommitted } = await import('../connection/database.ts')
  const evidence = [global.transactionId, global.home, branch.database.name].map((value) => "'" + value + "'")
  const text = 'insert into once.evidence (transaction_id, home, participant) values (' + evidence + ')'
  const apart = { name: 'apart', text, values: [], isScript: true, isSeveral: false, read: () => undefined }
  await withReadCommitted(branch.database.connectApart(), (link) => link.send(apart))
`,
      },
      {
        file: 'src/statements.ts',
        find: '`insert into once.evidence (transaction_id, home, participant) values (',
        replace: '`select (',
      },
    ],
    run: ['--workload', 'bank', '--faults', 'kill,point'],
  },
]

/** What a run takes. */
const parts = ['src', 'sql', 'migrations', 'scripts', 'proof', 'package.json', '.gmrc']
/** Seconds of a run, and how many are tried. */
const seconds = 25
const tries = 2

/** Runs a mutant until something is violated, and then no more. */
export function search(mutant: ChaosMutant, say: (text: string) => void): Promise<Search> {
  const began = performance.now()
  const after = () => `${Math.round((performance.now() - began) / 1000)} s`
  return withMutant(mutant, parts, async (copy) => {
    if (mutant.edits.some(({ file }) => file.startsWith('sql/')))
      await promisify(execFile)(process.execPath, ['scripts/migrations.ts', 'rebuild'], { cwd: copy })
    for (let seed = 1; seed <= tries; seed += 1) {
      const { found, did } = await tryOnce(copy, [...mutant.run, '--seed', String(seed)])
      say(`${mutant.name}, seed ${seed}: ${did}${found === '' ? '' : `; found ${found}`}`)
      if (found !== '') return { by: found, after: after() }
    }
    return { by: undefined, after: after() }
  })
}

async function tryOnce(copy: string, parameters: readonly string[]): Promise<{ found: string; did: string }> {
  const child = spawn(
    process.execPath,
    [
      'proof/chaos/main.ts',
      '--json',
      '--minutes',
      String(seconds / 60),
      '--patience',
      '10',
      '--keep',
      join(copy, 'run'),
      ...parameters,
    ],
    { cwd: copy, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  let output = ''
  let errors = ''
  child.stdout.on('data', (data: Buffer) => {
    output += data
  })
  child.stderr.on('data', (data: Buffer) => {
    errors += data
  })
  await new Promise((resolve) => child.once('close', resolve))
  await rm(join(copy, 'run'), { recursive: true, force: true })
  let report: {
    anomalies: readonly { workload: string; name: string }[]
    operations: Record<string, Record<string, number>>
    faults: Record<string, number>
  }
  try {
    report = JSON.parse(output)
  } catch {
    // A run that breaks down has found nothing.
    throw new Error(`The run ended without a report:\n${errors.slice(-2000)}`)
  }
  return {
    found: [...new Set(report.anomalies.map(({ workload, name }) => `${workload} ${name}`))].join(', '),
    did: JSON.stringify({ ...report.operations, ...report.faults }),
  }
}
