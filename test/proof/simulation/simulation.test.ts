import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { edited } from '../../../proof/rig/mutants.ts'
import { mutants, search, withSimulation } from '../../../proof/simulation/mutants.ts'
import { type Plan, planOf } from '../../../proof/simulation/plan.ts'
import { type Kind, kinds } from '../../../proof/simulation/points.ts'
import { commandsOf } from '../../../proof/simulation/postgres/statements.ts'
import { runSeeds, simulate } from '../../../proof/simulation/run.ts'

const schedules = Number(process.env.PGONCE_SIMULATION_SCHEDULES ?? 1500)

// Each simulation has the process to itself while it runs: one after the other.
test.serial('No schedule violates an invariant', async (t) => {
  const totals = await runSeeds(1, schedules)
  t.is(totals.schedules, schedules)
  t.deepEqual(totals.failures, [])
  t.true((totals.faults.kill ?? 0) > 0 && (totals.faults.crash ?? 0) > 0 && (totals.faults.cut ?? 0) > 0)
})

test.serial('The same seed gives the same schedule, event by event', async (t) => {
  for (const seed of [1, 2, 3, 7, 11, 4711]) {
    const lines: string[][] = [[], []]
    const first = await simulate(planOf(seed), undefined, (line) => lines[0]?.push(line))
    const second = await simulate(planOf(seed), undefined, (line) => lines[1]?.push(line))
    t.is(first.hash, second.hash)
    t.deepEqual(lines[0], lines[1])
    t.true((lines[0]?.length ?? 0) > 10)
  }
})

test.serial('Different seeds give different schedules', async (t) => {
  const hashes = new Set<number>()
  for (let seed = 1; seed <= 50; seed += 1) hashes.add((await simulate(planOf(seed))).hash)
  t.true(hashes.size > 45, `${hashes.size}`)
})

test.serial('A schedule that fails is shrunk to a small one that fails in the same way', async (t) => {
  const mutant = mutants.find(({ name }) => name === 'lost answer is an abort')
  if (mutant === undefined) return t.fail()
  const told = await withSimulation(mutant, async (simulation) => {
    const arguments_ = [`${simulation}/main.ts`, '--seeds', '200', '--threads', '1', '--first']
    const failed = await promisify(execFile)(process.execPath, arguments_).catch((error) => error)
    t.is(failed.code, 1)
    return String(failed.stderr)
  })
  const [, text = '{}'] = /Shrunk in \d+ tries to:\n(.*)\n/.exec(told) ?? []
  const plan = JSON.parse(text) as Plan
  t.is(plan.transactions.length, 1, text)
  t.true(plan.faults.length <= 2, text)
  t.regex(told, /Again: npm run simulate -- --seed \d+/)
})

test('Every mutant still fits its place in the code', async (t) => {
  t.true(mutants.length >= 15)
  for (const { name, edits = [], without = [] } of mutants) {
    await t.notThrowsAsync(edited(edits), name)
    for (const [statement, command] of without)
      t.true(
        commandsOf(statement).some((text) => text.startsWith(command)),
        name,
      )
    t.true(edits.length + without.length > 0, name)
  }
})

for (const name of ['lost answer is an abort', 'pending is aborted', 'commit before the decision']) {
  test.serial(`The simulation catches a bug: ${name}`, async (t) => {
    const mutant = mutants.find((one) => one.name === name)
    if (mutant === undefined) return t.fail()
    const { by, after, falseAlarm } = await search(mutant, 3_000)
    t.truthy(by)
    t.is(falseAlarm, undefined)
    t.log(`after ${after}: ${by}`)
  })
}

test('The command says what it did, as JSON', async (t) => {
  const main = fileURLToPath(new URL('../../../proof/simulation/main.ts', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [
    main,
    '--seeds',
    '60',
    '--threads',
    '1',
    '--json',
  ])
  const report = JSON.parse(stdout)
  t.is(report.schedules, 60)
  t.is(report.violations, 0)
  const named = new Set(Object.keys(report.coverage.atPoints).map((point) => point.split(': ')[0]))
  for (const kind of kinds satisfies readonly Kind[]) t.true(named.has(kind), kind)
})
