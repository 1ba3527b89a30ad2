import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { readHistory } from '../../../proof/chaos/history.ts'
import { mutants } from '../../../proof/chaos/mutants.ts'
import { type Fault, faults } from '../../../proof/chaos/nemesis.ts'
import { run } from '../../../proof/chaos/run.ts'
import { workloads } from '../../../proof/chaos/workloads/index.ts'
import { edited } from '../../../proof/rig/mutants.ts'

test('Every seeded bug still fits its place in the code', async (t) => {
  for (const { name, edits } of mutants) await t.notThrowsAsync(edited(edits), name)
})

test('Under kills, crashes and lost messages nothing takes effect twice, in part, or against its answer', async (t) => {
  t.timeout(180_000)
  const keep = await mkdtemp(join(tmpdir(), 'pgonce-chaos-test-'))
  // A small disk takes a privilege to mount; the long runs have it, and say if not.
  const wanted = new Set<Fault>(faults.filter((fault) => fault !== 'disk'))
  const report = await run({
    seconds: 20,
    seed: 4711,
    workloads: workloads.map(({ name }) => name),
    faults: wanted,
    slots: 3,
    lanes: 1,
    life: 1_500,
    serverEvery: 2_000,
    proxyEvery: 400,
    patience: 60,
    keep,
    say: () => {},
  })
  t.deepEqual(report.anomalies, [], `histories and logs: ${keep}`)
  t.is(report.orphans, 0)
  t.deepEqual(report.losses, [])

  // It did what it claims.
  t.true(report.coordinatorKills >= 3, 'coordinators were killed')
  t.true(report.serverKills >= 2, 'servers crashed')
  t.true(report.proxyFaults >= 1, 'messages were lost')
  for (const { name } of workloads) {
    const counts = report.operations[name]
    t.true((counts?.ok ?? 0) > 0, `${name} got something done`)
    const history = await readHistory(join(keep, `${name}.jsonl`))
    t.true(
      history.length > 2 * (counts?.ok ?? 0),
      `the history of ${name} has every invocation and completion`,
    )
    t.true(
      history.some(({ type, f }) => type === 'ok' && (f === 'effects' || f === 'final-read')),
      `${name} was read in the end`,
    )
  }
  await rm(keep, { recursive: true, force: true })
})
