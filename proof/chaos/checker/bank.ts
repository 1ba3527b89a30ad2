/**
 * Bank: money moves between accounts in several databases, and none is made or lost.
 *
 *     wrong-total      when nothing runs any more, the balances of all databases do not add up; of two reads then,
 *                      or of a read of one database with only transfers inside it, likewise
 *     negative-value   a balance below zero, which the workload refuses
 *     unexpected-key   an account that there is not
 *     nil-balance      an account without a balance, or missing in a read of its database
 *     wrong-balance    the balance in the end is none that the transfers can have led to
 *     lost-write       an acknowledged transfer is in no ledger
 *     atomicity        a transfer is in one of its two ledgers
 *     G1a              a transfer that failed is in a ledger
 *     duplicate        a transfer is in a ledger twice
 *     unexpected       a transfer in a ledger that nobody asked for
 *
 * The last five need the workload to keep a ledger: `id` in transfers, and at the end an operation `ledger` with
 * `{database: id[]}`.
 *
 * A read before the end takes a snapshot of each database, one after the other. Its total is that of no moment:
 * that is a fractured read, and expected.
 *
 * @see https://github.com/jepsen-io/jepsen/blob/main/jepsen/src/jepsen/tests/bank.clj
 */
import type { Balances, Operation, Transfer } from '../history.ts'
import { type Action, pair } from './actions.ts'
import { type Findings, findings, type Verdict } from './verdict.ts'

export interface BankOptions {
  /** What all accounts hold together. @defaultValue the sum of `initial`; without either the first final read's */
  readonly total?: number
  /** What they held at first. Then the final balances are compared with the transfers, account by account. */
  readonly initial?: Balances
}

export function checkBank(history: readonly Operation[], { initial, total: given }: BankOptions): Verdict {
  const actions = pair(history)
  const found = findings()
  const reads = actions.filter(({ f, type }) => type === 'ok' && (f === 'read' || f === 'final-read'))
  const finals = reads.filter(({ f }) => f === 'final-read')
  const known = initial ?? finals.map(({ answered }) => answered as Balances)[0]
  const total = given ?? (known && sumOf(known))
  const transfers = actions.filter(({ f }) => f === 'transfer')

  for (const { f, answered, index } of reads) {
    const balances = answered as Balances
    const sum = sumOf(balances)
    const whole =
      checkAccounts(found, balances, known, index) &&
      (known === undefined || Object.keys(known).every((database) => database in balances))
    if (f === 'final-read') {
      if (sum !== total || !whole) found.anomaly('wrong-total', { index, expected: total, total: sum })
    } else if (whole && sum !== total) {
      found.expected('fractured-read', { index, expected: total, total: sum })
    }
  }
  checkEachDatabase(found, reads, transfers, initial)
  for (const { f, type, answered, index } of actions) {
    if (f !== 'ledger' || type !== 'ok') continue
    const ledgers = answered as Readonly<Record<string, readonly number[]>>
    checkLedgers(found, transfers, ledgers, index)
  }
  if (initial !== undefined)
    for (const { answered, index } of finals)
      checkFinalBalances(found, transfers, initial, answered as Balances, index)
  return found.verdict(actions)
}

function sumOf(balances: Balances): number {
  let sum = 0
  for (const accounts of Object.values(balances))
    for (const balance of Object.values(accounts)) sum += balance
  return sum
}

/** Whether every account has a balance. */
function checkAccounts(found: Findings, read: Balances, known: Balances | undefined, index: number): boolean {
  let whole = true
  const missing = (database: string, account: string) => {
    whole = false
    found.anomaly('nil-balance', { index, database, account })
  }
  for (const [database, accounts] of Object.entries(read)) {
    for (const [account, balance] of Object.entries(accounts)) {
      if (typeof balance !== 'number') missing(database, account)
      else if (balance < 0) found.anomaly('negative-value', { index, database, account, balance })
      if (known && known[database]?.[account] === undefined)
        found.anomaly('unexpected-key', { index, database, account })
    }
    for (const account of Object.keys(known?.[database] ?? {}))
      if (!(account in accounts)) missing(database, account)
  }
  return whole
}

/** A database that no transfer leaves or enters keeps its total, in every snapshot. */
function checkEachDatabase(
  found: Findings,
  reads: readonly Action[],
  transfers: readonly Action[],
  initial: Balances | undefined,
): void {
  if (initial === undefined) return
  const crossed = new Set<string>()
  for (const { asked } of transfers) {
    const { from, to } = asked as Transfer
    if (from.database !== to.database) crossed.add(from.database).add(to.database)
  }
  for (const [database, accounts] of Object.entries(initial)) {
    if (crossed.has(database)) continue
    const expected = sumOf({ [database]: accounts })
    for (const { answered, index } of reads) {
      const own = (answered as Balances)[database]
      if (own === undefined) continue
      const total = sumOf({ [database]: own })
      if (total !== expected) found.anomaly('wrong-total', { index, database, expected, total })
    }
  }
}

function checkLedgers(
  found: Findings,
  transfers: readonly Action[],
  ledgers: Readonly<Record<string, readonly number[]>>,
  index: number,
): void {
  const entries = new Map<string, Set<number>>()
  for (const [database, ids] of Object.entries(ledgers)) {
    const seen = new Set<number>()
    for (const id of ids) {
      if (seen.has(id)) found.anomaly('duplicate', { index, database, transfer: id })
      seen.add(id)
    }
    entries.set(database, seen)
  }
  const asked = new Map<number, Set<string>>()
  for (const { asked: value, type, index: at } of transfers) {
    const { id, from, to } = value as Transfer
    if (id === undefined) continue
    const databases = new Set([from.database, to.database])
    asked.set(id, databases)
    const present = [...databases].filter((database) => entries.get(database)?.has(id))
    if (present.length > 0 && present.length < databases.size)
      found.anomaly('atomicity', { index: at, transfer: id, present })
    if (type === 'ok' && present.length < databases.size)
      found.anomaly('lost-write', { index: at, transfer: id, present })
    if (type === 'fail' && present.length > 0) found.anomaly('G1a', { index: at, transfer: id, present })
  }
  for (const [database, ids] of entries)
    for (const id of ids)
      if (!asked.get(id)?.has(database)) found.anomaly('unexpected', { index, database, transfer: id })
}

/** What is acknowledged counts, what failed does not, and what is indeterminate may. */
function checkFinalBalances(
  found: Findings,
  transfers: readonly Action[],
  initial: Balances,
  final: Balances,
  index: number,
): void {
  const keyOf = (database: string, account: string) => JSON.stringify([database, account])
  const possible = new Map<string, { least: number; most: number }>()
  for (const [database, accounts] of Object.entries(initial))
    for (const [account, balance] of Object.entries(accounts))
      possible.set(keyOf(database, account), { least: balance, most: balance })
  for (const { asked, type } of transfers) {
    if (type === 'fail') continue
    const { from, to, amount } = asked as Transfer
    const source = possible.get(keyOf(from.database, from.account))
    const target = possible.get(keyOf(to.database, to.account))
    if (source === target) continue
    if (source) {
      source.least -= amount
      if (type === 'ok') source.most -= amount
    }
    if (target) {
      target.most += amount
      if (type === 'ok') target.least += amount
    }
  }
  for (const [database, accounts] of Object.entries(final))
    for (const [account, balance] of Object.entries(accounts)) {
      const range = possible.get(keyOf(database, account))
      if (range && (balance < range.least || balance > range.most))
        found.anomaly('wrong-balance', { index, database, account, balance, ...range })
    }
}
