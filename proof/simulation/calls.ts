/** What the application does: calls of `runTransaction`, each with the handler that its plan describes. */
import { CompiledQuery } from 'kysely'
import { type Handles, runTransaction } from '../../src/commit/coordinator.ts'
import { PgonceError } from '../../src/errors.ts'
import { type Attempt, type Call, stackOf } from './oracle.ts'
import { nameOf, type Operation, type TransactionPlan } from './plan.ts'
import { PgError, type SimulatedDatabase } from './postgres/server.ts'
import type { Running, World } from './world.ts'

class HandlerGaveUp extends Error {}

export function startCall(here: World, process: Running, plan: TransactionPlan, number: number): void {
  const { scheduler: clock, oracle } = here
  clock.after(plan.at, process, () => {
    const call: Call = {
      number,
      plan,
      attempts: [],
      startedAt: clock.now,
      settledAt: undefined,
      result: undefined,
      error: undefined,
    }
    oracle.calls.push(call)
    const controller = plan.abortAt === undefined ? undefined : new AbortController()
    if (controller) clock.after(plan.abortAt as number, process, () => controller.abort())
    runTransaction(
      process.context,
      { ...plan.options, ...(controller ? { signal: controller.signal } : {}) },
      (handles, _, transactionId) => {
        const attempt: Attempt = { id: transactionId, call, effects: new Map() }
        call.attempts.push(attempt)
        oracle.attempts.set(transactionId, attempt)
        return handle(here, plan.operations, handles, attempt)
      },
    )
      .then(
        (result) => {
          call.result = result
        },
        (error: unknown) => {
          call.error = error
          // A driver that tells the loss of its connection in words of its own is the caller's choice.
          const isDriversOwn = error instanceof Error && 'code' in error && error.code === ''
          const isKnown =
            isDriversOwn ||
            error instanceof PgonceError ||
            error instanceof PgError ||
            error instanceof HandlerGaveUp
          if (!isKnown) oracle.violate('errors are told', `call ${number}: ${stackOf(error)}`)
        },
      )
      .then(() => {
        here.note?.(() => `call ${number} ends: ${endOf({ ...call, settledAt: 0 })}`)
        oracle.settled(call, clock.now)
      })
  })
}

async function handle(
  here: World,
  operations: readonly Operation[],
  handles: Handles,
  attempt: Attempt,
): Promise<void> {
  const aside: Promise<unknown>[] = []
  for (const operation of operations) {
    const done = carryOut(here, operation, handles, attempt)
    if (operation.aside) {
      aside.push(done)
      done.catch(() => {})
    } else await done.finally(() => Promise.allSettled(aside))
  }
  await Promise.all(aside)
}

async function carryOut(
  here: World,
  { database, does }: Operation,
  handles: Handles,
  attempt: Attempt,
): Promise<void> {
  const name = nameOf(database)
  const run = async (text: string, ...values: unknown[]) => {
    await handles[name]?.executeQuery(CompiledQuery.raw(text, values))
  }
  switch (does) {
    case 'insert':
    case 'call': {
      here.effects += 1
      const effect = here.effects
      await run(
        does === 'insert' ? 'insert into effect (id) values ($1::int)' : 'select add_effect($1::int)',
        effect,
      )
      attempt.effects.set(String(effect), here.databases[database] as SimulatedDatabase)
      return
    }
    case 'update':
      return await run('update account set n = n + 1 where id = $1::int', 1 + (here.effects % 2))
    case 'miss':
      return await run('update account set n = n + 1 where id = $1::int', 0)
    case 'read':
      return await run('select count(*)::int as n from effect')
    case 'defer':
      return await run('insert into deferred_child (id) values (0)')
    case 'skew':
      return await run("select 'write skew'")
    case 'temp':
      return await run('create temp table scratch ()')
    case 'fail':
      return await run('select 1/0')
    case 'swallow':
      return await run('select 1/0').catch(() => {})
    case 'throw':
      throw new HandlerGaveUp('the handler gave up')
  }
}

/** How a call ended, in a word. */
export function endOf({ settledAt, result, error }: Call): string {
  if (settledAt === undefined) return 'died'
  if (result) return 'committed'
  return typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : 'handler'
}
