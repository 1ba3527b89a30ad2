import { spawn } from 'node:child_process'
import { once as nextEvent } from 'node:events'
import { chmod, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import test from 'ava'
import { type Message, makePlan } from '../demo/plan.ts'
import { count } from '../demo/tally.ts'
import { compare, type Truth } from '../demo/verification.ts'
import { chosenVersion, packageOf } from '../proof/rig/postgres-version.ts'
import { runScript } from './support/cli.ts'
import type { TestContext } from './support/database.ts'

const program = join(import.meta.dirname, '../demo/main.ts')
const binaries = ['--package', packageOf(chosenVersion())]

/** `npm run demo --` with these arguments. */
const demo = (...args: string[]) => runScript(program, [...binaries, ...args])

test('every flight takes effect once while workers and servers are killed', async (t) => {
  const args = ['--messages', '400', '--seed', '7', '--kills', '5', '--server-kills', '1', '--json']
  const { exitCode, stdout, stderr } = await demo(...args)
  t.is(exitCode, 0, stderr)
  const { recovered, seconds, ...report } = JSON.parse(stdout.trim().split('\n').at(-1) ?? '')
  t.deepEqual(report, {
    seed: 7,
    messages: 400,
    // From the seed, so always the same.
    deliveries: 451,
    processed: 400,
    duplicates: 51,
    lost: 0,
    doubled: 0,
    workerKills: 5,
    serverKills: 1,
    inDoubt: 0,
    distributed: 322,
    verdict: 'exactly-once',
  })
  t.true(recovered >= 0 && seconds > 0)
  t.is(stderr.match(/worker \d killed/g)?.length, 5)
  t.is(stderr.match(/server \d killed/g)?.length, 1)
})

test("the user's own messages, with any strings and numbers as keys, are split over the databases", async (t) => {
  const keys = ['', ' ', "o'hara", 'ünï 🛫', '"', '\\', 'a'.repeat(200), 17, -1.5]
  const lines = keys.slice(1).map((key) => JSON.stringify({ payer: key, payee: keys[2], amount: 3 }))
  const file = await input(t, `\uFEFF${lines.join('\r\n')}\r\n\r\n`)
  const args = ['--input', file, '--from', 'payer', '--to', 'payee', '--kills', '1', '--server-kills', '0']
  const { exitCode, stdout, stderr } = await demo(...args)
  t.is(exitCode, 0, stderr)
  t.regex(stdout, /^8 messages/m)
  t.regex(stdout, /took effect +8$/m)
  t.regex(stdout, /^exactly-once, in .* s\. The same again: --seed \d+/m)
})

test('a bad line is refused with its number and what was expected, before anything is started', async (t) => {
  const good = '{"origin":"SFO","destination":"JFK"}'
  for (const [text, said] of [
    [`${good}\n{"origin":`, /line 2: expected one JSON object, got "\{/],
    [`${good}\n\n[1]\n`, /line 3: expected a JSON object, got "\[1\]"/],
    [`${good}\n{"origin":"SFO"}`, /line 2: expected field "destination" to be a string.*got only "origin"/],
    ['{"origin":"SFO","destination":""}', /line 1: expected field "destination"/],
    ['{"origin":null,"destination":"JFK"}', /line 1: expected field "origin".*null/],
    ['{"origin":"\\u0000","destination":"JFK"}', /line 1: expected field "origin"/],
    ['{"origin":"\\ud800","destination":"JFK"}', /line 1: expected field "origin"/],
    [`{"origin":"${'a'.repeat(201)}","destination":"JFK"}`, /line 1: expected field "origin".*1 to 200/],
    ['\n', /at least one line/],
  ] as const) {
    const { exitCode, stdout, stderr } = await demo('--input', await input(t, text))
    t.is(exitCode, 2, stderr)
    t.regex(stderr, said)
    t.is(stdout, '')
  }
})

test('bad options are refused with what was expected', async (t) => {
  for (const [args, said] of [
    [['--messages', '20001'], /1 to 20000, got 20001/],
    [['--messages', '0'], /Expected a whole number from 1/],
    [['--seed', 'x'], /Expected a whole number from 0 to 4294967295/],
    [['--kills', '-1'], /Expected a whole number from 0/],
    [['--input', join(tmpdir(), 'pgonce-no-such-file')], /Cannot read .*ENOENT/],
    [['--input', tmpdir()], /Cannot read .*EISDIR/],
  ] as const) {
    const { exitCode, stderr } = await demo(...args)
    t.is(exitCode, 2, stderr)
    t.regex(stderr, said)
  }
})

test('Ctrl-C stops the demo and leaves nothing behind', async (t) => {
  const folder = await temporaryFolder(t)
  const child = spawn(process.execPath, [program, ...binaries], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, TMPDIR: folder },
  })
  t.teardown(() => child.kill('SIGKILL'))
  const closed = nextEvent(child, 'close')
  for await (const line of createInterface({ input: child.stderr })) {
    if (line.includes('workers start')) child.kill('SIGINT')
  }
  t.deepEqual(await closed, [130, null])
  t.deepEqual(
    (await readdir(folder)).filter((name) => name.startsWith('pgonce-server-')),
    [],
  )
})

const messages: Message[] = Array.from({ length: 1000 }, (_, index) => ({
  number: index + 1,
  departure: { database: 'west', key: `W${index % 7}` },
  arrival: { database: 'east', key: `E${index % 5}` },
}))

test('a seed says what is delivered twice and what is killed where', (t) => {
  const plan = makePlan(messages, { seed: 3, workerKills: 8, serverKills: 2 })
  t.deepEqual(makePlan(messages, { seed: 3, workerKills: 8, serverKills: 2 }), plan)
  t.notDeepEqual(makePlan(messages, { seed: 4, workerKills: 8, serverKills: 2 }), plan)
  t.is(plan.strikes.filter(({ target }) => target === 'worker').length, 8)
  t.is(plan.strikes.filter(({ target }) => target === 'server').length, 2)
  const again = plan.deliveries - messages.length
  t.true(again > 50 && again < 150, `${again}`)
  const numbers = plan.partitions.flatMap((deliveries) => deliveries.map(({ message }) => message.number))
  t.is(new Set(numbers).size, messages.length)
})

test('the verification finds what is lost, doubled, exchanged, in doubt or left over', (t) => {
  const plan = makePlan(messages, { seed: 3, workerKills: 0, serverKills: 0 })
  const right: Truth = {
    tallies: count(messages),
    claimed: [
      { count: 500, gaps: false },
      { count: 500, gaps: false },
    ],
    positions: plan.partitions.map(({ length }) => length),
    inDoubt: 0,
    losses: 0,
  }
  const check = (truth: Partial<Truth>) => compare(messages, plan, { ...right, ...truth })
  t.deepEqual(check({}), {
    processed: 1000,
    duplicates: plan.deliveries - 1000,
    lost: 0,
    doubled: 0,
    problems: [],
  })
  const [first, second] = messages as [Message, Message]
  const like = messages[35] as Message
  t.is(like.departure.key, first.departure.key)
  for (const [counted, lost, doubled, problem] of [
    [messages.slice(1), 2, 0, '2 lost'],
    [[...messages, first], 0, 2, '2 doubled'],
    [[...messages.slice(1), second], 2, 2, '2 lost'],
    [[...messages.slice(1), like], 0, 0, '2 counts are right by accident only: one lost, another doubled'],
    [[...messages, { ...first, departure: { database: 'central', key: 'X' } } as Message], 0, 2, '2 doubled'],
  ] as const) {
    const found = check({ tallies: count(counted) })
    t.deepEqual([found.lost, found.doubled, found.problems[0]], [lost, doubled, problem])
  }
  t.regex(check({ inDoubt: 1 }).problems.join(), /1 in doubt/)
  t.regex(check({ losses: 1 }).problems.join(), /1 losses on record/)
  t.regex(check({ positions: [0, 0] }).problems.join(), /stands at 0 of/)
  t.regex(check({ claimed: [{ count: 500, gaps: true }] }).problems.join(), /ledger has 0 of 500/)
})

async function input(t: TestContext, text: string): Promise<string> {
  const file = join(await temporaryFolder(t), 'input.ndjson')
  await writeFile(file, text)
  return file
}

async function temporaryFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pgonce-demo-test-'))
  // The user that Postgres runs as must get in.
  await chmod(folder, 0o755)
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}
