/**
 * List append: transactions append numbers to lists and read lists. Every number is appended to a list once, so
 * what a read found tells the order of the writes before it, and whose they were.
 *
 *     duplicate-elements   a list has an element twice
 *     incompatible-order   of two reads of a list, neither is a beginning of the other
 *     unexpected           an element that nobody appended
 *     G1a                  (aborted read) an element of a transaction that did not happen
 *     dirty-update         an element of a transaction that happened after one of a transaction that did not
 *     G1b                  (intermediate read) a list as it was in the middle of another transaction
 *     internal             a transaction that does not see what it read or appended before
 *     G0, G1c, G-single, G-nonadjacent, G2-item: see cycles.ts
 *     lost-append          an acknowledged append is not there in the end
 *     atomicity            a transaction of which something is there in the end, and something is not
 *
 * The key says in which database a list lies. Within each the isolation level says what is allowed, and what is
 * allowed is reported as expected. Across databases there is no common snapshot: a transaction may see another's
 * effects here and not yet there (`fractured-read`, expected). But locks are held until the decision, and effects
 * are seen only after it, so transactions that depend on each other (ww, wr) do so in the order of their
 * decisions, in whatever databases: G0 and G1c are looked for in all of them together.
 *
 * @see Kingsbury, Alvaro: Elle: Inferring Isolation Anomalies from Experimental Observations, 2020
 * @see https://jepsen.io/consistency/phenomena
 */
import type { MicroOperation, Operation } from '../history.ts'
import { pair } from './actions.ts'
import { antiDependencyCycles, type CycleName, dataCycles } from './cycles.ts'
import { type Edge, graphOf, rw, wr, ww } from './graph.ts'
import { type Findings, findings, type Verdict } from './verdict.ts'

export type Isolation = 'read committed' | 'repeatable read' | 'serializable'

export interface ListAppendOptions {
  /** A key lies in `databases[key % databases.length]`. @defaultValue one */
  readonly databases?: readonly string[]
  /** What the transactions asked for. Postgres's repeatable read is snapshot isolation. @defaultValue 'read committed' */
  readonly isolation?: Isolation
}

/** What each level lets happen. @see Adya; Cerone, Gotsman: Analysing Snapshot Isolation, 2016 */
const allowed: Readonly<Record<Isolation, ReadonlySet<CycleName>>> = {
  'read committed': new Set<CycleName>(['G-single', 'G-nonadjacent', 'G2-item', 'unsearched']),
  'repeatable read': new Set<CycleName>(['G2-item']),
  serializable: new Set<CycleName>(),
}

interface Txn {
  readonly index: number
  readonly type: 'ok' | 'info' | 'fail'
  readonly operations: readonly MicroOperation[]
  /** The last element that it appended to each list. */
  readonly last: ReadonlyMap<number, number>
  readonly appends: readonly { readonly key: number; readonly element: number }[]
}

/** One list, as far as it can be known. */
interface List {
  /** Who appended each element. */
  readonly writers: Map<number, Txn>
  /** The longest read. */
  order: readonly number[]
  /** Where each element of it stands. */
  readonly places: Map<number, number>
  /** As it was in the end; undefined if nobody looked. */
  final: ReadonlySet<number> | undefined
}

interface Read {
  readonly txn: Txn | undefined
  readonly key: number
  readonly found: readonly number[]
  readonly index: number
}

export function checkListAppend(
  history: readonly Operation[],
  { databases = ['all'], isolation = 'read committed' }: ListAppendOptions,
): Verdict {
  const actions = pair(history)
  const found = findings()
  const databaseOf = (key: number) => databases[key % databases.length] as string
  const txns: Txn[] = []
  const lists = new Map<number, List>()
  const reads: Read[] = []
  const listOf = (key: number) => {
    const list = lists.get(key) ?? { writers: new Map(), order: [], places: new Map(), final: undefined }
    lists.set(key, list)
    return list
  }

  for (const { f, type, asked, answered, index } of actions) {
    if (f === 'txn') {
      const operations = (type === 'ok' ? answered : asked) as readonly MicroOperation[]
      const appends = operations.flatMap(([what, key, element]) =>
        what === 'append' ? [{ key, element }] : [],
      )
      const last = new Map(appends.map(({ key, element }) => [key, element]))
      const txn: Txn = { index, type, operations, last, appends }
      txns.push(txn)
      for (const { key, element } of appends) {
        const { writers } = listOf(key)
        if (writers.has(element))
          throw new TypeError(`Operation ${index}: ${element} was appended to ${key} before`)
        writers.set(element, txn)
      }
      if (type !== 'ok') continue
      for (const [what, key, read] of operations)
        if (what === 'r') reads.push({ txn, key, found: read ?? [], index })
    } else if (f === 'final-read' && type === 'ok') {
      for (const [name, read] of Object.entries(answered as Record<string, readonly number[] | null>)) {
        const key = Number(name)
        reads.push({ txn: undefined, key, found: read ?? [], index })
        listOf(key).final = new Set(read)
      }
    }
  }

  inferOrders(found, lists, listOf, reads)
  const happened = (txn: Txn) => {
    if (txn.type !== 'info') return txn.type === 'ok'
    // Indeterminate, and in the end nothing of it is there: it did not.
    return txn.appends.some(({ key, element }) => lists.get(key)?.final?.has(element) !== false)
  }
  checkFinals(found, txns, lists)
  checkElements(found, lists, reads, happened)
  for (const txn of txns) if (txn.type === 'ok') checkInternal(found, txn, isolation)
  checkCycles(found, txns, lists, reads, databaseOf, isolation)
  checkFractured(found, lists, reads, databaseOf)
  return found.verdict(actions)
}

/** Lists only grow at their end, so every read is a beginning of the longest. */
function inferOrders(
  found: Findings,
  lists: ReadonlyMap<number, List>,
  listOf: (key: number) => List,
  reads: readonly Read[],
): void {
  for (const { key, found: elements } of reads) {
    const list = listOf(key)
    if (elements.length > list.order.length) list.order = elements
  }
  for (const { places, order } of lists.values())
    order.forEach((element, place) => {
      if (!places.has(element)) places.set(element, place)
    })
  for (const { key, found: elements, index } of reads) {
    const { order, places } = listOf(key)
    const differs = elements.findIndex((element, place) => element !== order[place])
    // Where it does not differ, it has duplicates only if the longest has.
    if (differs >= 0 || elements === order || places.size < order.length) {
      const seen = new Set<number>()
      for (const element of elements) {
        if (seen.has(element)) found.anomaly('duplicate-elements', { index, key, element })
        seen.add(element)
      }
    }
    if (differs >= 0)
      found.anomaly('incompatible-order', {
        index,
        key,
        read: elements.slice(0, differs + 1).slice(-3),
        longest: order.slice(0, differs + 1).slice(-3),
      })
  }
}

function checkFinals(found: Findings, txns: readonly Txn[], lists: ReadonlyMap<number, List>): void {
  for (const { type, appends, index } of txns) {
    if (type === 'fail') continue
    const looked = appends.filter(({ key }) => lists.get(key)?.final !== undefined)
    const missing = looked.filter(({ key, element }) => !lists.get(key)?.final?.has(element))
    if (type === 'ok')
      for (const { key, element } of missing) found.anomaly('lost-append', { index, key, element })
    if (missing.length > 0 && missing.length < looked.length) found.anomaly('atomicity', { index, missing })
  }
}

/** What stands in the lists: only what was appended, by transactions that happened, as a whole. */
function checkElements(
  found: Findings,
  lists: ReadonlyMap<number, List>,
  reads: readonly Read[],
  happened: (txn: Txn) => boolean,
): void {
  for (const [key, { order, writers }] of lists) {
    let aborted: number | undefined
    for (const element of order) {
      const writer = writers.get(element)
      if (writer === undefined) found.anomaly('unexpected', { key, element })
      else if (!happened(writer)) {
        found.anomaly('G1a', { index: writer.index, key, element })
        aborted = element
      } else if (aborted !== undefined) {
        found.anomaly('dirty-update', { index: writer.index, key, element, after: aborted })
        aborted = undefined
      }
    }
  }
  for (const { txn, key, found: elements, index } of reads) {
    const list = lists.get(key)
    const last = elements.at(-1)
    if (list === undefined || last === undefined) continue
    const writer = list.writers.get(last)
    if (writer !== undefined && writer !== txn && writer.last.get(key) !== last)
      found.anomaly('G1b', { index, key, element: last, writer: writer.index })
    // Elements of the longest read were looked at above.
    if (list.places.get(last) === elements.length - 1) continue
    for (const element of elements) {
      if (list.places.has(element)) continue
      const from = list.writers.get(element)
      if (from === undefined) found.anomaly('unexpected', { index, key, element })
      else if (!happened(from)) found.anomaly('G1a', { index: from.index, key, element })
    }
  }
}

/** A transaction sees what it did itself. Under read committed it may see others' appends appear in between. */
function checkInternal(found: Findings, { operations, index }: Txn, isolation: Isolation): void {
  if (operations.length < 2) return
  const known = new Map<number, { read: readonly number[] | undefined; own: number[] }>()
  for (const [what, key, value] of operations) {
    const state = known.get(key)
    if (what === 'append') {
      if (state) state.own.push(value)
      else known.set(key, { read: undefined, own: [value] })
      continue
    }
    const now = value ?? []
    known.set(key, { read: now, own: [] })
    if (state === undefined) continue
    const { read = [], own } = state
    const tail = now.slice(now.length - own.length)
    const begins = read.every((element, place) => now[place] === element)
    const ends = now.length >= own.length && own.every((element, place) => tail[place] === element)
    if (!begins || !ends || now.length < read.length + own.length)
      found.anomaly('internal', { index, key, read: now })
    else if (state.read !== undefined && now.length > read.length + own.length) {
      const example = { index, key, before: read.length, now: now.length, own: own.length }
      if (isolation === 'read committed') found.expected('internal', example)
      else found.anomaly('internal', example)
    }
  }
}

function checkCycles(
  found: Findings,
  txns: readonly Txn[],
  lists: ReadonlyMap<number, List>,
  reads: readonly Read[],
  databaseOf: (key: number) => string,
  isolation: Isolation,
): void {
  const numbers = new Map(txns.map((txn, number) => [txn, number]))
  const byDatabase = new Map<string, Edge[]>()
  const all: Edge[] = []
  const add = (from: Txn | undefined, to: Txn | undefined, kind: Edge['kind'], key: number) => {
    if (from === undefined || to === undefined || from === to) return
    const edge = { from: numbers.get(from) as number, to: numbers.get(to) as number, kind, key }
    const database = databaseOf(key)
    const edges = byDatabase.get(database) ?? []
    byDatabase.set(database, edges)
    edges.push(edge)
    all.push(edge)
  }
  for (const [key, { places, writers }] of lists) {
    let before: Txn | undefined
    // In the order of their first appearance.
    for (const element of places.keys()) {
      const writer = writers.get(element)
      add(before, writer, ww, key)
      before = writer
    }
  }
  for (const { txn, key, found: elements } of reads) {
    const list = lists.get(key)
    if (txn === undefined || list === undefined) continue
    const last = elements.at(-1)
    // A read that fits no order says nothing more.
    const place = last === undefined ? -1 : (list.places.get(last) ?? Number.NaN)
    if (place !== elements.length - 1) continue
    if (last !== undefined) add(list.writers.get(last), txn, wr, key)
    // The first that follows and is not its own: its own append makes no dependency of others.
    const next = list.order[place + 1]
    if (next !== undefined) add(txn, list.writers.get(next), rw, key)
  }

  const show = (edges: readonly Edge[]) =>
    edges.map(({ from, to, kind, key }) => ({
      from: txns[from]?.index,
      [kind === ww ? 'ww' : kind === wr ? 'wr' : 'rw']: key,
      database: databaseOf(key),
      to: txns[to]?.index,
    }))
  for (const { name, edges } of dataCycles(graphOf(txns.length, all))) found.anomaly(name, show(edges))
  for (const edges of byDatabase.values()) {
    for (const cycle of antiDependencyCycles(graphOf(txns.length, edges))) {
      if (allowed[isolation].has(cycle.name)) found.expected(cycle.name, show(cycle.edges))
      else found.anomaly(cycle.name, show(cycle.edges))
    }
  }
}

/** Who sees the last append of a transaction to one list, and not its append to a list of another database. */
function checkFractured(
  found: Findings,
  lists: ReadonlyMap<number, List>,
  reads: readonly Read[],
  databaseOf: (key: number) => string,
): void {
  for (const [txn, own] of Map.groupBy(reads, (read) => read.txn)) {
    if (txn === undefined || own.length < 2) continue
    for (const { key, found: elements, index } of own) {
      const last = elements.at(-1)
      const writer = last === undefined ? undefined : lists.get(key)?.writers.get(last)
      if (writer === undefined || writer === txn) continue
      const unseen = own.find((other) => {
        if (databaseOf(other.key) === databaseOf(key)) return false
        const appended = writer.last.get(other.key)
        if (appended === undefined) return false
        const place = lists.get(other.key)?.places.get(appended)
        return place === undefined || place >= other.found.length
      })
      if (unseen) found.expected('fractured-read', { index, of: writer.index, seen: key, unseen: unseen.key })
    }
  }
}
