/**
 * The checkers against histories with known anomalies. `histories/` holds one small file for each anomaly and
 * valid ones beside them; `<workload>.<what>[-<variant>].jsonl`.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { antiDependencyCycles, dataCycles } from '../../../proof/chaos/checker/cycles.ts'
import { type Edge, graphOf, rw, wr, ww } from '../../../proof/chaos/checker/graph.ts'
import { type CheckOptions, check, type Verdict, type Workload } from '../../../proof/chaos/checker/index.ts'
import {
  type MicroOperation,
  type Operation,
  readHistory,
  writeHistory,
} from '../../../proof/chaos/history.ts'

const folder = join(import.meta.dirname, 'histories')

const initial = { a: { x: 10, y: 10 }, b: { x: 10 }, c: { x: 10 } }
const readCommitted = { databases: ['a', 'b'], isolation: 'read committed' } as const
const repeatableRead = { ...readCommitted, isolation: 'repeatable read' } as const
const serializable = { ...readCommitted, isolation: 'serializable' } as const

interface Expected {
  readonly options: CheckOptions
  readonly anomalies?: Readonly<Record<string, number>>
  readonly expected?: Readonly<Record<string, number>>
}

/** Each file, and all that is found in it. */
const recorded: Readonly<Record<string, readonly Expected[]>> = {
  'list-append.valid': [{ options: serializable }],
  'list-append.valid-indeterminate': [{ options: serializable }],
  'list-append.valid-failed': [{ options: serializable }],
  'list-append.fractured-read': [{ options: serializable, expected: { 'fractured-read': 1 } }],
  'list-append.duplicate-elements': [{ options: readCommitted, anomalies: { 'duplicate-elements': 2 } }],
  'list-append.incompatible-order': [{ options: readCommitted, anomalies: { 'incompatible-order': 1 } }],
  'list-append.unexpected': [{ options: readCommitted, anomalies: { unexpected: 1 } }],
  'list-append.G1a': [{ options: readCommitted, anomalies: { G1a: 1 } }],
  'list-append.G1a-indeterminate': [{ options: readCommitted, anomalies: { G1a: 1 } }],
  'list-append.dirty-update': [{ options: readCommitted, anomalies: { G1a: 1, 'dirty-update': 1 } }],
  // Elle would find the read's dependencies both ways, too: it saw a part of what the writer did.
  'list-append.G1b': [
    { options: serializable, anomalies: { G1b: 1, 'G-single': 1 } },
    { options: readCommitted, anomalies: { G1b: 1 }, expected: { 'G-single': 1 } },
  ],
  'list-append.internal': [{ options: readCommitted, anomalies: { internal: 1 } }],
  'list-append.internal-unrepeatable': [
    { options: readCommitted, expected: { internal: 1, 'G-single': 1 } },
    { options: repeatableRead, anomalies: { internal: 1, 'G-single': 1 } },
  ],
  'list-append.G0': [{ options: readCommitted, anomalies: { G0: 1 } }],
  'list-append.G0-across-databases': [{ options: readCommitted, anomalies: { G0: 1 } }],
  'list-append.G1c': [{ options: readCommitted, anomalies: { G1c: 1 } }],
  'list-append.G1c-across-databases': [{ options: readCommitted, anomalies: { G1c: 1 } }],
  'list-append.G-single': [
    { options: readCommitted, expected: { 'G-single': 1 } },
    { options: repeatableRead, anomalies: { 'G-single': 1 } },
    { options: serializable, anomalies: { 'G-single': 1 } },
  ],
  'list-append.G-single-lost-update': [
    { options: readCommitted, expected: { 'G-single': 1 } },
    { options: repeatableRead, anomalies: { 'G-single': 1 } },
  ],
  'list-append.G-nonadjacent': [
    { options: readCommitted, expected: { 'G-nonadjacent': 1 } },
    { options: repeatableRead, anomalies: { 'G-nonadjacent': 1 } },
  ],
  'list-append.G2-item': [
    { options: readCommitted, expected: { 'G2-item': 1 } },
    { options: repeatableRead, expected: { 'G2-item': 1 } },
    { options: serializable, anomalies: { 'G2-item': 1 } },
  ],
  'list-append.lost-append': [{ options: readCommitted, anomalies: { 'lost-append': 1 } }],
  'list-append.lost-append-after-read': [{ options: readCommitted, anomalies: { 'lost-append': 1 } }],
  'list-append.atomicity': [{ options: readCommitted, anomalies: { atomicity: 1 } }],
  'list-append.atomicity-acknowledged': [
    { options: readCommitted, anomalies: { 'lost-append': 1, atomicity: 1 } },
  ],

  'bank.valid': [{ options: { initial } }, { options: { total: 40 } }, { options: {} }],
  'bank.valid-indeterminate': [{ options: { initial } }],
  'bank.valid-away': [{ options: { initial } }],
  'bank.fractured-read': [{ options: { initial }, expected: { 'fractured-read': 1 } }],
  'bank.wrong-total': [
    { options: { initial }, anomalies: { 'wrong-total': 1 } },
    { options: { total: 40 }, anomalies: { 'wrong-total': 1 } },
  ],
  'bank.wrong-total-inside': [
    { options: { initial }, anomalies: { 'wrong-total': 1 }, expected: { 'fractured-read': 1 } },
  ],
  'bank.negative-value': [{ options: { initial }, anomalies: { 'negative-value': 1 } }],
  'bank.unexpected-key': [{ options: { initial }, anomalies: { 'unexpected-key': 1 } }],
  'bank.nil-balance': [{ options: { total: 40 }, anomalies: { 'nil-balance': 2 } }],
  'bank.wrong-balance': [{ options: { initial }, anomalies: { 'wrong-balance': 2 } }],
  'bank.lost-write': [
    { options: { total: 40 }, anomalies: { 'lost-write': 1 } },
    { options: { initial }, anomalies: { 'lost-write': 1, 'wrong-balance': 2 } },
  ],
  'bank.atomicity': [{ options: { initial }, anomalies: { atomicity: 1 } }],
  'bank.G1a': [{ options: { initial }, anomalies: { G1a: 1 } }],
  'bank.duplicate': [{ options: { initial }, anomalies: { duplicate: 1 } }],
  'bank.unexpected': [{ options: { initial }, anomalies: { unexpected: 1 } }],

  'queue.valid': [{ options: {} }],
  'queue.valid-indeterminate': [{ options: {} }],
  'queue.lost-write': [{ options: {}, anomalies: { 'lost-write': 1 } }],
  'queue.lost-write-consumed': [{ options: {}, anomalies: { 'lost-write': 1 } }],
  'queue.duplicate': [{ options: {}, anomalies: { duplicate: 1 } }],
  'queue.duplicate-consumed': [{ options: {}, anomalies: { duplicate: 1 } }],
  'queue.nonmonotonic-send': [{ options: {}, anomalies: { 'nonmonotonic-send': 1 } }],
  'queue.nonmonotonic-poll': [{ options: {}, anomalies: { 'nonmonotonic-poll': 1 } }],
  'queue.nonmonotonic': [{ options: {}, anomalies: { nonmonotonic: 1 } }],
  'queue.poll-skip': [{ options: {}, anomalies: { 'poll-skip': 1 } }],
  'queue.inconsistent-offsets': [{ options: {}, anomalies: { 'inconsistent-offsets': 2 } }],
  'queue.G1a': [{ options: {}, anomalies: { G1a: 1 } }],
  'queue.G1a-consumed': [{ options: {}, anomalies: { G1a: 1 } }],
  'queue.unexpected': [{ options: {}, anomalies: { unexpected: 1 } }],

  'monotonic.valid': [{ options: {} }],
  'monotonic.valid-indeterminate': [{ options: {} }],
  'monotonic.lost': [{ options: {}, anomalies: { lost: 2 } }],
  'monotonic.duplicate': [{ options: {}, anomalies: { duplicate: 1 } }],
  'monotonic.nonmonotonic': [
    { options: {}, anomalies: { nonmonotonic: 1 } },
    { options: { ordered: false } },
  ],
  'monotonic.G1a': [{ options: {}, anomalies: { G1a: 1 } }],
  'monotonic.unexpected': [{ options: {}, anomalies: { unexpected: 1 } }],
}

const summary = ({ anomalies, expected, valid }: Verdict) => ({
  valid,
  anomalies: Object.fromEntries(anomalies.map(({ name, count }) => [name, count])),
  expected: Object.fromEntries(expected.map(({ name, count }) => [name, count])),
})

for (const [name, cases] of Object.entries(recorded)) {
  test(`A recorded history is judged rightly: ${name}`, async (t) => {
    const history = await readHistory(join(folder, `${name}.jsonl`))
    for (const { options, anomalies = {}, expected = {} } of cases) {
      const verdict = check(name.split('.')[0] as Workload, history, options)
      t.deepEqual(
        summary(verdict),
        { valid: Object.keys(anomalies).length === 0, anomalies, expected },
        `${JSON.stringify(options)}: ${JSON.stringify(verdict, null, 2)}`,
      )
      const { ok, fail, info } = verdict.counts
      t.is(ok + fail + info, history.filter(({ type }) => type === 'invoke').length)
    }
  })
}

test('Every recorded history is judged', async (t) => {
  const files = (await readdir(folder)).map((file) => file.replace(/\.jsonl$/, ''))
  t.deepEqual(files.sort(), Object.keys(recorded).sort())
})

test('What is no history is refused', (t) => {
  const [invoke, ok] = [
    { process: 0, type: 'invoke', f: 'read', value: null, time: 0, index: 0 },
    { process: 0, type: 'ok', f: 'read', value: {}, time: 1, index: 1 },
  ] as const
  t.throws(() => check('bank', [ok]), { instanceOf: TypeError })
  t.throws(() => check('bank', [invoke, invoke]), { instanceOf: TypeError })
  t.throws(() => check('bank', [invoke, { ...ok, f: 'transfer' }]), { instanceOf: TypeError })
  const append = { ...invoke, f: 'txn', value: [['append', 0, 1]] } as const
  t.throws(() => check('list-append', [append, { ...append, process: 1 }]), { instanceOf: TypeError })
})

// ---------------------------------------------------------------------------------------------------
// Histories of a serial execution in memory, and what is done to them

const databases = ['a', 'b', 'c']
const keys = 6

type Fate = 'ok' | 'fail' | 'happened' | 'did not happen'

/** What one client asks for, and what comes of it; the last two are indeterminate to it. */
const fate = fc.oneof(
  { weight: 6, arbitrary: fc.constant<Fate>('ok') },
  { weight: 1, arbitrary: fc.constantFrom<Fate>('fail', 'happened', 'did not happen') },
)

/** Groups that are invoked together, executed one after the other, and completed together. */
const groupsOf = <T>(operation: fc.Arbitrary<T>) =>
  fc.array(fc.array(fc.tuple(operation, fate), { minLength: 1, maxLength: 4 }), {
    minLength: 1,
    maxLength: 15,
  })

/** Plays groups: `run` executes an operation, and gives the value of its completion. */
function play<T>(
  groups: readonly (readonly (readonly [T, Fate])[])[],
  f: (operation: T) => string,
  ask: (operation: T) => unknown,
  run: (operation: T) => unknown,
): Operation[] {
  const history: Operation[] = []
  const processes = [0, 1, 2, 3]
  let next = processes.length
  const add = (process: number, type: Operation['type'], what: string, value: unknown) =>
    history.push({ process, type, f: what, value, time: history.length * 1_000, index: history.length })
  for (const group of groups) {
    const answers = group.map(([operation, outcome], slot) => {
      add(processes[slot] as number, 'invoke', f(operation), ask(operation))
      return outcome === 'ok' || outcome === 'happened' ? run(operation) : undefined
    })
    group.forEach(([operation, outcome], slot) => {
      const process = processes[slot] as number
      if (outcome === 'ok' || outcome === 'fail') {
        add(process, outcome, f(operation), outcome === 'ok' ? answers[slot] : ask(operation))
      } else {
        add(process, 'info', f(operation), ask(operation))
        processes[slot] = next
        next += 1
      }
    })
  }
  return history
}

function finish(history: readonly Operation[], f: string, value: unknown): Operation[] {
  const index = history.length
  const at = { process: -1, f, time: index * 1_000 }
  return [
    ...history,
    { ...at, type: 'invoke', value: null, index },
    { ...at, type: 'ok', value, index: index + 1 },
  ]
}

const microOperation = fc.tuple(fc.constantFrom('append', 'r'), fc.nat({ max: keys - 1 }))

const listAppend = groupsOf(fc.array(microOperation, { minLength: 1, maxLength: 4 })).map((groups) => {
  const lists = new Map<number, number[]>()
  let element = 0
  // Elements are numbered when they are asked for: what fails has some, too.
  const numbered = groups.map((group) =>
    group.map(([operations, outcome]) => {
      const asked = operations.map(([what, key]): MicroOperation => {
        if (what === 'r') return ['r', key, null]
        element += 1
        return ['append', key, element]
      })
      return [asked, outcome] as const
    }),
  )
  const history = play(
    numbered,
    () => 'txn',
    (operations) => operations,
    (operations) =>
      operations.map(([what, key, value]): MicroOperation => {
        if (what === 'r') return ['r', key, [...(lists.get(key) ?? [])]]
        lists.set(key, [...(lists.get(key) ?? []), value])
        return ['append', key, value]
      }),
  )
  const final = Object.fromEntries(Array.from({ length: keys }, (_, key) => [key, lists.get(key) ?? []]))
  return finish(history, 'final-read', final)
})

const judge = (history: readonly Operation[]) =>
  check('list-append', history, { databases, isolation: 'serializable' })

const names = ({ anomalies }: Verdict) => anomalies.map(({ name }) => name)

/** The history with another value in one place. */
const withValue = (history: readonly Operation[], at: number, value: unknown) =>
  history.map((operation, index) => (index === at ? { ...operation, value } : operation))

type Lists = Record<string, number[]>
const finalOf = (history: readonly Operation[]) => structuredClone(history.at(-1)?.value) as Lists
const withFinal = (history: readonly Operation[], lists: Lists) =>
  withValue(history, history.length - 1, lists)
const appendsOf = (operation: Operation | undefined) =>
  ((operation?.value ?? []) as MicroOperation[]).flatMap(([what, key, n]) =>
    what === 'append' ? [{ key, n }] : [],
  )

const runs = { numRuns: 300 }

test('A serial execution of list-append is valid at every level, with nothing to explain', (t) => {
  fc.assert(
    fc.property(listAppend, (history) => {
      const verdict = judge(history)
      t.deepEqual([verdict.anomalies, verdict.expected], [[], []])
    }),
    runs,
  )
  t.pass()
})

test('An acknowledged append that is lost is found', (t) => {
  fc.assert(
    fc.property(listAppend, fc.nat(), (history, choice) => {
      const done = history
        .filter(({ type, f }) => type === 'ok' && f === 'txn')
        .flatMap((operation) => appendsOf(operation))
      fc.pre(done.length > 0)
      const { key, n } = done[choice % done.length] as { key: number; n: number }
      const lists = finalOf(history)
      lists[key] = (lists[key] ?? []).filter((element) => element !== n)
      const found = names(judge(withFinal(history, lists)))
      if (!found.includes('lost-append')) throw new Error(found.join())
    }),
    runs,
  )
  t.pass()
})

test('An element that is there twice is found', (t) => {
  fc.assert(
    fc.property(listAppend, fc.nat(), fc.nat(), (history, which, where) => {
      const lists = finalOf(history)
      const full = Object.values(lists).filter(({ length }) => length > 0)
      fc.pre(full.length > 0)
      const list = full[which % full.length] as number[]
      list.splice((where % list.length) + 1, 0, list[which % list.length] as number)
      const found = names(judge(withFinal(history, lists)))
      if (!found.includes('duplicate-elements')) throw new Error(found.join())
    }),
    runs,
  )
  t.pass()
})

test('A read in another order is found', (t) => {
  fc.assert(
    fc.property(listAppend, fc.nat(), fc.nat(), (history, which, where) => {
      const reads = history.flatMap(({ type, f, value }, at) =>
        type === 'ok' && f === 'txn'
          ? (value as MicroOperation[]).flatMap(([what, , found], place) =>
              what === 'r' && (found?.length ?? 0) > 1 ? [{ at, place }] : [],
            )
          : [],
      )
      fc.pre(reads.length > 0)
      const { at, place } = reads[which % reads.length] as { at: number; place: number }
      const value = structuredClone(history[at]?.value) as [string, number, number[]][]
      const [, , list] = value[place] as [string, number, number[]]
      const one = where % (list.length - 1)
      list.splice(one, 2, list[one + 1] as number, list[one] as number)
      const found = names(judge(withValue(history, at, value)))
      if (!found.includes('incompatible-order')) throw new Error(found.join())
    }),
    runs,
  )
  t.pass()
})

test('A value of a transaction that failed is found, wherever it is read', (t) => {
  fc.assert(
    fc.property(listAppend, fc.nat(), fc.boolean(), (history, choice, atTheEnd) => {
      const failed = history
        .filter(({ type }) => type === 'fail')
        .flatMap((operation) => appendsOf(operation))
      fc.pre(failed.length > 0)
      const { key, n } = failed[choice % failed.length] as { key: number; n: number }
      const lists = finalOf(history)
      const list = lists[key] ?? []
      if (atTheEnd) list.push(n)
      else list.unshift(n)
      const found = names(judge(withFinal(history, lists)))
      if (!found.includes('G1a')) throw new Error(found.join())
    }),
    runs,
  )
  t.pass()
})

test('A transaction that happened in one database only is found, whether it was acknowledged or not', (t) => {
  fc.assert(
    fc.property(listAppend, fc.nat(), (history, choice) => {
      const lists = finalOf(history)
      const across = history
        .filter(({ type, f }) => (type === 'ok' && f === 'txn') || type === 'info')
        .map((operation) => appendsOf(operation))
        .filter((appends) => new Set(appends.map(({ key }) => key % databases.length)).size > 1)
        .filter((appends) => appends.every(({ key, n }) => lists[key]?.includes(n)))
      fc.pre(across.length > 0)
      const appends = across[choice % across.length] as { key: number; n: number }[]
      const away = (appends[0]?.key ?? 0) % databases.length
      for (const { key, n } of appends)
        if (key % databases.length === away)
          lists[key] = (lists[key] ?? []).filter((element) => element !== n)
      const found = names(judge(withFinal(history, lists)))
      if (!found.includes('atomicity')) throw new Error(found.join())
    }),
    { numRuns: 100 },
  )
  t.pass()
})

interface Move {
  readonly from: { database: string; account: string }
  readonly to: { database: string; account: string }
  readonly amount: number
  readonly id: number
}

const place = fc.constantFrom(
  ...Object.entries(initial).flatMap(([database, accounts]) =>
    Object.keys(accounts).map((account) => ({ database, account })),
  ),
)

const bank = groupsOf(
  fc.option(fc.record({ from: place, to: place, amount: fc.integer({ min: 1, max: 3 }) }), { nil: null }),
).map((groups) => {
  const balances = structuredClone(initial) as Record<string, Record<string, number>>
  const ledger: Record<string, Set<number>> = {}
  let id = 0
  const numbered = groups.map((group) =>
    group.map(([move, outcome]) => {
      if (move === null) return [null, outcome] as const
      id += 1
      // What would overdraw an account is refused.
      const left = balances[move.from.database]?.[move.from.account] ?? 0
      const done = outcome === 'ok' || outcome === 'happened'
      const enough = left >= move.amount
      if (done && enough) {
        const own = { ...move, id }
        const step = (at: Move['from'], by: number) => {
          const accounts = balances[at.database] as Record<string, number>
          accounts[at.account] = (accounts[at.account] ?? 0) + by
          ledger[at.database] = (ledger[at.database] ?? new Set()).add(id)
        }
        step(move.from, -move.amount)
        step(move.to, move.amount)
        return [own, outcome] as const
      }
      return [{ ...move, id }, outcome === 'ok' ? 'fail' : outcome] as const
    }),
  )
  const history = play(
    numbered.map((group) => group.filter(([move]) => move !== null)),
    () => 'transfer',
    (move) => move,
    (move) => move,
  )
  const ledgers = Object.fromEntries(Object.entries(ledger).map(([database, ids]) => [database, [...ids]]))
  return finish(finish(history, 'ledger', ledgers), 'final-read', balances)
})

test('A serial execution of bank is valid, and one that loses half a transfer or makes money is not', (t) => {
  fc.assert(
    fc.property(bank, (history) => {
      t.deepEqual(check('bank', history, { initial }).anomalies, [])
    }),
    runs,
  )
  fc.assert(
    fc.property(bank, place, fc.integer({ min: 1, max: 9 }), (history, { database, account }, by) => {
      const balances = structuredClone(history.at(-1)?.value) as Record<string, Record<string, number>>
      const accounts = balances[database] as Record<string, number>
      accounts[account] = (accounts[account] ?? 0) + by
      const found = names(check('bank', withValue(history, history.length - 1, balances), { initial }))
      if (!found.includes('wrong-total')) throw new Error(found.join())
    }),
    runs,
  )
  fc.assert(
    fc.property(bank, fc.nat(), (history, choice) => {
      const at = history.findLastIndex(({ f }) => f === 'ledger')
      const ledgers = structuredClone(history[at]?.value) as Lists
      const entries = Object.entries(ledgers).flatMap(([database, ids]) =>
        ids
          .filter((id) => Object.values(ledgers).filter((other) => other.includes(id)).length > 1)
          .map((id) => ({ database, id })),
      )
      fc.pre(entries.length > 0)
      const { database, id } = entries[choice % entries.length] as { database: string; id: number }
      ledgers[database] = (ledgers[database] ?? []).filter((other) => other !== id)
      const found = names(check('bank', withValue(history, at, ledgers), { initial }))
      if (!found.includes('atomicity')) throw new Error(found.join())
    }),
    { numRuns: 100 },
  )
})

const monotonic = groupsOf(fc.constantFrom(0, 1, 2, 3)).map((groups) => {
  // One number on its way for each producer: the group's members are different producers.
  const effects: Record<string, number[]> = {}
  const next = [1, 1, 1, 1]
  const numbered = groups.map((group) =>
    group.map(([, outcome], slot) => {
      const asked = { producer: `p${slot}`, sequence: next[slot] as number }
      if (outcome === 'ok') next[slot] = asked.sequence + 1
      return [asked, outcome] as const
    }),
  )
  const history = play(
    numbered,
    () => 'inc',
    (asked) => asked,
    (asked) => {
      const list = effects[asked.producer] ?? []
      effects[asked.producer] = list
      // The second time it is a duplicate.
      if (!list.includes(asked.sequence)) list.push(asked.sequence)
      return asked
    },
  )
  return finish(history, 'effects', effects)
})

test('A serial execution of monotonic is valid, and one that loses, repeats or swaps is not', (t) => {
  const mutations = {
    lost: (list: number[], at: number) => list.toSpliced(at, 1),
    duplicate: (list: number[], at: number) => [...list, list[at] as number],
    nonmonotonic: (list: number[], at: number) =>
      at + 1 < list.length ? list.toSpliced(at, 2, list[at + 1] as number, list[at] as number) : undefined,
  }
  fc.assert(
    fc.property(monotonic, (history) => {
      t.deepEqual(check('monotonic', history).anomalies, [])
    }),
    runs,
  )
  for (const [name, mutate] of Object.entries(mutations)) {
    fc.assert(
      fc.property(monotonic, fc.nat(), (history, choice) => {
        const effects = finalOf(history)
        const sent = history.filter(({ type, f }) => type === 'ok' && f === 'inc')
        fc.pre(sent.length > 0)
        const { producer, sequence } = (sent[choice % sent.length] as Operation).value as {
          producer: string
          sequence: number
        }
        const list = effects[producer] as number[]
        const mutated = mutate(list, list.indexOf(sequence))
        fc.pre(mutated !== undefined)
        const found = names(check('monotonic', withFinal(history, { ...effects, [producer]: mutated ?? [] })))
        if (!found.includes(name)) throw new Error(`${name}: ${found.join()}`)
      }),
      runs,
    )
  }
})

/** Enqueues, and consumers that take turns at one partition. */
const queue = groupsOf(fc.constantFrom('enqueue', 'consume')).map((groups) => {
  const log: { n: number; position: number }[] = []
  const effects: { n: number; position: number }[] = []
  let n = 0
  const operations = groups.map((group) =>
    group.map(([what, outcome]) => {
      n += 1
      return [{ what, n }, outcome] as const
    }),
  )
  const history = play(
    operations,
    ({ what }) => what,
    (operation) => (operation.what === 'enqueue' ? operation.n : null),
    (operation) => {
      if (operation.what === 'enqueue') {
        log.push({ n: operation.n, position: log.length * 2 })
        return operation.n
      }
      const next = log[effects.length]
      if (next) effects.push(next)
      return next ?? null
    },
  ).map((operation) =>
    // Nothing to consume is no consumption.
    operation.f === 'consume' && operation.type === 'ok' && operation.value === null
      ? { ...operation, type: 'fail' as const }
      : operation,
  )
  effects.push(...log.slice(effects.length))
  return finish(finish(history, 'log', log), 'effects', effects)
})

test('A serial execution of queue is valid, and one that loses, repeats or swaps is not', (t) => {
  type Effect = { n: number; position: number }
  const mutations = {
    'lost-write': (list: Effect[], at: number) => list.toSpliced(at, 1),
    duplicate: (list: Effect[], at: number) => list.toSpliced(at, 0, list[at] as Effect),
    nonmonotonic: (list: Effect[], at: number) =>
      at + 1 < list.length ? list.toSpliced(at, 2, list[at + 1] as Effect, list[at] as Effect) : undefined,
    'poll-skip': (list: Effect[], at: number) => (at + 1 < list.length ? list.toSpliced(at, 1) : undefined),
    'inconsistent-offsets': (list: Effect[], at: number) =>
      list.with(at, { n: list[at]?.n ?? 0, position: (list[at]?.position ?? 0) + 1 }),
  }
  fc.assert(
    fc.property(queue, (history) => {
      t.deepEqual(check('queue', history).anomalies, [])
    }),
    runs,
  )
  for (const [name, mutate] of Object.entries(mutations)) {
    fc.assert(
      fc.property(queue, fc.nat(), (history, choice) => {
        const effects = history.at(-1)?.value as Effect[]
        const acknowledged = history
          .filter(({ type, f }) => type === 'ok' && f === 'enqueue')
          .map(({ value }) => value)
        const candidates = effects.flatMap(({ n }, at) => (acknowledged.includes(n) ? [at] : []))
        fc.pre(candidates.length > 0)
        const mutated = mutate(effects, candidates[choice % candidates.length] as number)
        fc.pre(mutated !== undefined)
        const found = names(check('queue', withValue(history, history.length - 1, mutated)))
        if (!found.includes(name)) throw new Error(`${name}: ${found.join()}`)
      }),
      runs,
    )
  }
})

// ---------------------------------------------------------------------------------------------------
// Cycles, against all simple cycles of small graphs

const graphEdges = fc.array(
  fc.record({
    from: fc.nat({ max: 5 }),
    to: fc.nat({ max: 5 }),
    kind: fc.constantFrom<Edge['kind']>(ww, wr, rw),
    key: fc.constant(0),
  }),
  { maxLength: 12 },
)

function simpleCycles(edges: readonly Edge[]): Edge[][] {
  const cycles: Edge[][] = []
  const walk = (path: Edge[], origin: number) => {
    const end = path.at(-1)?.to ?? origin
    for (const edge of edges) {
      if (edge.from !== end || edge.to < origin) continue
      if (edge.to === origin) cycles.push([...path, edge])
      else if (!path.some(({ to }) => to === edge.to)) walk([...path, edge], origin)
    }
  }
  for (let origin = 0; origin < 6; origin += 1) walk([], origin)
  return cycles
}

test('The cycles found in a graph are those that there are', (t) => {
  const apart = (cycle: readonly Edge[]) =>
    cycle.every(({ kind }, at) => kind !== rw || cycle[(at + 1) % cycle.length]?.kind !== rw)
  const count = (cycle: readonly Edge[], kind: Edge['kind']) =>
    cycle.filter((edge) => edge.kind === kind).length
  fc.assert(
    fc.property(graphEdges, (some) => {
      const edges = some.filter(({ from, to }) => from !== to)
      const all = simpleCycles(edges)
      const there = {
        G0: all.some((cycle) => count(cycle, ww) === cycle.length),
        G1c: all.some((cycle) => count(cycle, rw) === 0 && count(cycle, wr) > 0),
        'G-single': all.some((cycle) => count(cycle, rw) === 1),
        'G-nonadjacent': all.some((cycle) => count(cycle, rw) > 1 && apart(cycle)),
        'G2-item': all.some((cycle) => count(cycle, rw) > 1),
      }
      const graph = graphOf(6, edges)
      const data = [...dataCycles(graph)]
      const anti = [...antiDependencyCycles(graph)]
      for (const { edges: cycle } of [...data, ...anti])
        if (!cycle.every(({ to }, at) => to === cycle[(at + 1) % cycle.length]?.from))
          throw new Error('what was found is no cycle')
      const found = [...data, ...anti].map(({ name }) => name)
      for (const name of ['G0', 'G1c', 'G-single'] as const)
        if (there[name] !== found.includes(name)) throw new Error(`${name}: ${there[name]}`)
      // Of these only the worst of each component is named.
      if (!there['G-single'] && !there.G0 && !there.G1c) {
        if (there['G-nonadjacent'] !== found.includes('G-nonadjacent')) throw new Error('G-nonadjacent')
        if (there['G2-item'] !== anti.length > 0) throw new Error('G2-item')
      }
    }),
    { numRuns: 5_000 },
  )
  t.pass()
})

// ---------------------------------------------------------------------------------------------------

test('A history of 100,000 transactions is checked, and takes no quadratic time', (t) => {
  const lists = new Map<number, number[]>()
  const history: Operation[] = []
  let random = 1
  const below = (n: number) => {
    random = (random * 48271) % 2147483647
    return random % n
  }
  // Each list takes some hundred appends, as in Jepsen; then the next follows.
  for (let n = 0; n < 100_000; n += 1) {
    const recent = Math.floor(n / 1_000) * 10
    const operations = Array.from({ length: 4 }, (_, at): MicroOperation => {
      const key = recent + below(20)
      if (at % 2 === 0) return ['r', key, (lists.get(key) ?? []).slice()]
      const list = lists.get(key) ?? []
      lists.set(key, list)
      list.push(n * 4 + at)
      return ['append', key, n * 4 + at]
    })
    const at = { process: n % 10, f: 'txn', value: operations, time: n }
    history.push({ ...at, type: 'invoke', index: 2 * n }, { ...at, type: 'ok', index: 2 * n + 1 })
  }
  // What takes quadratic time does not end here. The processor's time, for others may be using it, too.
  const began = process.cpuUsage()
  const verdict = check('list-append', finish(history, 'final-read', Object.fromEntries(lists)), {
    databases,
    isolation: 'serializable',
  })
  const used = process.cpuUsage(began)
  const took = (used.user + used.system) / 1000
  t.log(`${verdict.counts.ok} operations in ${Math.round(took)} ms of the processor`)
  t.deepEqual([verdict.anomalies, verdict.counts], [[], { ok: 100_001, fail: 0, info: 0 }])
})

test('A history comes back from a file as it was written', async (t) => {
  const { mkdtemp, rm } = await import('node:fs/promises')
  const { tmpdir } = await import('node:os')
  const directory = await mkdtemp(join(tmpdir(), 'history-'))
  t.teardown(() => rm(directory, { recursive: true }))
  const [history] = fc.sample(listAppend, 1) as [Operation[]]
  await writeHistory(join(directory, 'h.jsonl'), history)
  t.deepEqual(await readHistory(join(directory, 'h.jsonl')), history)
})
