import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import test from 'ava'

interface Report {
  readonly different: readonly string[]
  readonly checks: readonly {
    readonly name: string
    readonly got: string
    readonly states: number
    readonly trail: readonly string[]
  }[]
}

const program = join(import.meta.dirname, '..', '..', 'proof', 'model', 'run.ts')
const installed =
  spawnSync('spin', ['-V']).error === undefined && spawnSync('cc', ['--version']).error === undefined
if (!installed)
  console.warn('Tests of the model are skipped: spin or cc is not installed (apt-get install spin gcc)')
const testModel = installed ? test : test.skip

function model(...args: string[]): { status: number | null; report: Report } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, '--json', ...args], {
    encoding: 'utf8',
  })
  if (stdout === '') throw new Error(stderr)
  return { status, report: JSON.parse(stdout) as Report }
}

testModel('the model of the protocol holds, and what should be reachable in it is reached', (t) => {
  const { status, report } = model('--quick', '--only', 'commit', '--only', 'reach-reused-xid')
  t.is(status, 0)
  t.deepEqual(
    report.checks.map(({ name, got }) => [name, got]),
    [
      ['commit', 'holds'],
      ['reach-reused-xid', 'reached'],
    ],
  )
  t.true((report.checks[0]?.states ?? 0) > 100_000)
})

testModel('a bug in the model is refuted, with the steps that lead to it', (t) => {
  const { status, report } = model(
    '--quick',
    '--only',
    'row-first',
    '--only',
    'audit-order',
    '--only',
    'one-shot',
  )
  t.is(status, 0)
  t.deepEqual(
    report.checks.map(({ name, got }) => [name, got]),
    [
      ['row-first', 'refuted: atomicity'],
      ['one-shot', 'refuted: orphan'],
      ['audit-order', 'refuted: false_alarm'],
    ],
  )
  t.is(report.checks[0]?.trail.at(-1), 'VIOLATED atomicity')
})

test('without Spin the model says what to install', (t) => {
  const { status, stderr } = spawnSync(process.execPath, [program], {
    encoding: 'utf8',
    env: { ...process.env, PATH: '/nonexistent' },
  })
  t.is(status, 2)
  t.regex(stderr, /apt-get install spin gcc/)
})
