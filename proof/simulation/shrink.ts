/**
 * Makes a plan that fails smaller for as long as it still breaks the same invariant: fewer faults, transactions,
 * recoverers, operations, and plainer ones.
 */
import type { Operation, Plan, TransactionPlan } from './plan.ts'
import { simulate } from './run.ts'

/** At most so many tries: the plan is small before. */
const patience = 2_000

export async function shrink(plan: Plan, invariant: string): Promise<{ plan: Plan; tries: number }> {
  let best = plan
  let tries = 0
  const fails = async (candidate: Plan) => {
    tries += 1
    try {
      const { violations } = await simulate(candidate)
      return violations.some((violation) => violation.invariant === invariant)
    } catch {
      return false
    }
  }
  for (let smaller = true; smaller && tries < patience; ) {
    smaller = false
    for (const candidate of simpler(best)) {
      if (tries >= patience || !(await fails(candidate))) continue
      best = candidate
      smaller = true
      break
    }
  }
  return { plan: best, tries }
}

/** What is one step plainer, the greatest steps first. */
function* simpler(plan: Plan): Generator<Plan> {
  for (const what of ['transactions', 'recoverers', 'faults'] as const) {
    for (const list of without(plan[what] as readonly unknown[])) yield { ...plan, [what]: list }
  }
  if (plan.processes.length > 1) {
    const used = new Set(plan.transactions.map(({ process }) => process))
    if (used.size <= 1) {
      const [only = 0] = used
      yield {
        ...plan,
        processes: plan.processes.filter((_, index) => index === only),
        transactions: plan.transactions.map((transaction) => ({ ...transaction, process: 0 })),
      }
    }
  }
  for (const [index, transaction] of plan.transactions.entries()) {
    for (const plainer of plainerTransactions(transaction))
      yield { ...plan, transactions: plan.transactions.with(index, plainer) }
  }
  for (const [index, process] of plan.processes.entries()) {
    if (process.recovers)
      yield { ...plan, processes: plan.processes.with(index, { ...process, recovers: false }) }
    if (process.drivers.some((driver) => driver !== 'own'))
      yield {
        ...plan,
        processes: plan.processes.with(index, {
          ...process,
          drivers: process.drivers.map(() => 'own' as const),
        }),
      }
  }
  for (const [index, recoverer] of plan.recoverers.entries()) {
    if (recoverer.runs > 1)
      yield { ...plan, recoverers: plan.recoverers.with(index, { ...recoverer, runs: 1 }) }
    if (recoverer.inside)
      yield { ...plan, recoverers: plan.recoverers.with(index, { ...recoverer, inside: false }) }
    if (recoverer.audits)
      yield { ...plan, recoverers: plan.recoverers.with(index, { ...recoverer, audits: false }) }
  }
  const usual = { maxPrepared: 64, synchronousCommit: 'on', isolation: 'read committed', statusReach: 1000 }
  for (const [index, server] of plan.servers.entries()) {
    if (JSON.stringify(server) !== JSON.stringify(usual))
      yield { ...plan, servers: plan.servers.with(index, usual) }
  }
  const last = plan.databases.length - 1
  const isUsed = plan.transactions.some(({ operations }) =>
    operations.some(({ database }) => database === last),
  )
  if (last > 0 && !isUsed)
    yield {
      ...plan,
      databases: plan.databases.slice(0, -1),
      servers: plan.servers.slice(0, Math.max(...plan.databases.slice(0, -1)) + 1),
    }
}

function* plainerTransactions(transaction: TransactionPlan): Generator<TransactionPlan> {
  const { abortAt, ...never } = transaction
  if (abortAt !== undefined) yield never
  const { claim, ...plain } = transaction
  if (claim !== undefined) yield plain
  for (const operations of without(transaction.operations))
    if (operations.length > 0) yield { ...transaction, operations }
  for (const [index, { database, does, aside }] of transaction.operations.entries()) {
    const instead = (operation: Operation) => ({
      ...transaction,
      operations: transaction.operations.with(index, operation),
    })
    if (aside) yield instead({ database, does })
    if (does !== 'insert') yield instead({ database, does: 'insert', ...(aside ? { aside } : {}) })
  }
  for (const option of Object.keys(transaction.options)) {
    if (option === 'timeout') {
      if (transaction.options.timeout !== 60_000)
        yield { ...transaction, options: { ...transaction.options, timeout: 60_000 } }
      continue
    }
    yield {
      ...transaction,
      options: Object.fromEntries(
        Object.entries(transaction.options).filter(([name]) => name !== option),
      ) as TransactionPlan['options'],
    }
  }
}

/** Without half of them, then without each. */
function* without<T>(list: readonly T[]): Generator<T[]> {
  if (list.length > 2) {
    const half = list.length >> 1
    yield list.slice(half)
    yield list.slice(0, half)
  }
  for (let index = 0; index < list.length; index += 1) yield list.toSpliced(index, 1)
}
