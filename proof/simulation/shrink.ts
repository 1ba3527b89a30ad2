/**
 * Makes a plan that fails smaller for as long as it still breaks the same invariant. What a plan could do without is a
 * list of parts, by name, and fast-check searches for the fewest that are needed.
 */
import fc from 'fast-check'
import type { Operation, Plan, TransactionPlan } from './plan.ts'
import { simulate } from './run.ts'

/** At most so many tries: the plan is small before. */
const patience = 2_000

export async function shrink(plan: Plan, invariant: string): Promise<{ plan: Plan; tries: number }> {
  const parts = partsOf(plan)
  let tries = 0
  const holds = async (kept: readonly string[]) => {
    if (tries >= patience) return true
    tries += 1
    try {
      const { violations } = await simulate(only(plan, new Set(kept)))
      return !violations.some((violation) => violation.invariant === invariant)
    } catch {
      return true
    }
  }
  const { counterexample } = await fc.check(fc.asyncProperty(fc.subarray(parts), holds), {
    numRuns: 1,
    examples: [[parts]],
  })
  return { plan: only(plan, new Set(counterexample?.[0] ?? parts)), tries }
}

/** What it could do without, the greatest parts first. */
function partsOf(plan: Plan): string[] {
  const parts = new Set<string>()
  only(plan, { has: (part) => parts.add(part) !== undefined })
  const depth = (part: string) => part.split('.').length
  return [...parts].sort((one, other) => depth(one) - depth(other))
}

/** Whether a part is kept. */
interface Kept {
  has(part: string): boolean
}

const usual = { maxPrepared: 64, synchronousCommit: 'on', isolation: 'read committed', statusReach: 1000 }

/** The plan with these parts only; what is left out, and is needed, is as plain as can be. */
function only(plan: Plan, kept: Kept): Plan {
  const filter = <T>(what: string, list: readonly T[]) =>
    list.filter((_, index) => kept.has(`${what}${index}`))
  const transactions = plan.transactions.flatMap((transaction, index) => {
    const name = `transaction${index}`
    return kept.has(name) ? [onlyTransaction(transaction, name, kept)] : []
  })
  const recoverers = filter('recoverer', plan.recoverers).map((recoverer) => {
    const name = `recoverer${plan.recoverers.indexOf(recoverer)}`
    return {
      ...recoverer,
      runs: kept.has(`${name}.runs`) ? recoverer.runs : 1,
      inside: kept.has(`${name}.inside`) && recoverer.inside,
      audits: kept.has(`${name}.audits`) && recoverer.audits,
    }
  })
  const processes = plan.processes.map((process, index) => ({
    ...process,
    recovers: kept.has(`process${index}.recovers`) && process.recovers,
    drivers: kept.has(`process${index}.drivers`)
      ? process.drivers
      : process.drivers.map(() => 'own' as const),
  }))
  const servers = plan.servers.map((server, index) => (kept.has(`server${index}.settings`) ? server : usual))
  const faults = filter('fault', plan.faults)
  return withoutUnused({ ...plan, transactions, recoverers, processes, servers, faults }, kept)
}

function onlyTransaction(transaction: TransactionPlan, name: string, kept: Kept): TransactionPlan {
  const { abortAt, claim, operations: all, options, ...rest } = transaction
  const keeps = (part: string) => kept.has(`${name}.${part}`)
  const operations = all.flatMap(({ database, does, aside }, index): Operation[] => {
    if (!keeps(`operation${index}`)) return []
    const isAside = aside !== undefined && keeps(`operation${index}.aside`)
    return [
      { database, does: keeps(`operation${index}.does`) ? does : 'insert', ...(isAside ? { aside } : {}) },
    ]
  })
  const { timeout, ...others } = options
  const chosen = Object.entries(others).filter(([option]) => keeps(option))
  return {
    ...rest,
    operations: operations.length > 0 ? operations : all.slice(0, 1),
    options: { timeout: keeps('timeout') ? timeout : 60_000, ...Object.fromEntries(chosen) },
    ...(abortAt !== undefined && keeps('abortAt') ? { abortAt } : {}),
    ...(claim !== undefined && keeps('claim') ? { claim } : {}),
  }
}

/** Processes without transactions, and the last databases, may go if nobody uses them. */
function withoutUnused(plan: Plan, kept: Kept): Plan {
  const { transactions, databases } = plan
  const used = new Set(transactions.map(({ process }) => process))
  const [single = 0] = used
  const alone = !kept.has('processes') && used.size <= 1
  const touched = transactions.flatMap(({ operations, claim }) => [
    ...operations.map(({ database }) => database),
    ...(claim === undefined ? [] : [claim.database]),
  ])
  const count = kept.has('databases') ? databases.length : Math.max(1, ...touched.map((one) => one + 1))
  return {
    ...plan,
    ...(alone && {
      processes: plan.processes.filter((_, index) => index === single),
      transactions: transactions.map((transaction) => ({ ...transaction, process: 0 })),
    }),
    databases: databases.slice(0, count),
    servers: plan.servers.slice(0, Math.max(...databases.slice(0, count)) + 1),
  }
}
