/** What the application does: calls of `runTransaction`, each with the handler that its plan describes. */
import { CompiledQuery } from 'kysely'
import { runTransaction, type Stage } from '../../src/commit/coordinator.ts'
import { PgonceError } from '../../src/errors.ts'
import { defaults } from '../../src/options.ts'
import * as say from '../../src/statements.ts'
import { type Attempt, type Call, stackOf } from './oracle.ts'
import { type Claim, nameOf, type Operation, type TransactionPlan } from './plan.ts'
import { PgError, type SimulatedDatabase } from './postgres/server.ts'
import { endings, smuggled, streamText } from './postgres/workload.ts'
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
    runTransaction(process.context, { ...defaults, ...plan.options, signal: controller?.signal }, (stage) =>
      runBody(here, call, stage),
    )
      .then(
        async (result) => {
          await result.result?.()
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

/**
 * What the client does around a handler: the message is claimed, and a duplicate has no handler.
 *
 * @returns what remains to be heard after the commit
 */
async function runBody(here: World, call: Call, stage: Stage): Promise<(() => Promise<void>) | undefined> {
  const { claim, operations } = call.plan
  const attempt: Attempt = { id: '', call, effects: new Map(), refused: undefined, claim: undefined }
  call.attempts.push(attempt)
  const begin = async ({ database }: Claim) => {
    const branch = await stage.begin(nameOf(database))
    named(here, attempt, branch.transactionId)
    return branch
  }
  const take = async (one: Claim) => {
    const branch = await begin(one)
    attempt.claim = (await branch.change(claimOf(one))).status
  }
  if (claim?.when === 'alone') {
    const branch = await begin(claim)
    const effect = newEffect(here, attempt, claim.database)
    const text = `insert into effect (id) values (${effect})`
    const { answer } = await branch.sendAhead(say.withEffects(claimOf(claim))([text]))
    return async () => {
      attempt.claim = (await answer).status
      if (attempt.claim === 'duplicate') attempt.effects.clear()
    }
  }
  if (claim?.when === 'first') {
    await take(claim)
    if (attempt.claim === 'duplicate') {
      stage.leave()
      return undefined
    }
  }
  await stage.handle(() => handle(here, operations, stage, attempt))
  if (claim?.when !== 'late') return undefined
  // As a position is moved, or a result kept: behind the handler, whose work is void if that is refused.
  await take(claim)
  if (attempt.claim === 'duplicate') throw new HandlerGaveUp('somebody was faster')
  return undefined
}

const claimOf = ({ sequence }: Claim) =>
  say.claimSequence('producer', BigInt(sequence), { epoch: 0, strict: false, startAt: null })

function newEffect(here: World, attempt: Attempt, database: number): number {
  here.effects += 1
  attempt.effects.set(String(here.effects), here.databases[database] as SimulatedDatabase)
  return here.effects
}

function named({ oracle }: World, attempt: Attempt, id: string): void {
  if (attempt.id !== '') return
  attempt.id = id
  oracle.attempts.set(id, attempt)
}

async function handle(
  here: World,
  operations: readonly Operation[],
  stage: Stage,
  attempt: Attempt,
): Promise<void> {
  const aside: Promise<unknown>[] = []
  const left: Promise<unknown>[] = []
  for (const operation of operations) {
    const done = carryOut(here, operation, stage, attempt)
    if (operation.aside === 'never') {
      left.push(done)
      done.catch(() => {})
    } else if (operation.aside) {
      aside.push(done)
      done.catch(() => {})
    } else await done.finally(() => Promise.allSettled(aside))
  }
  await Promise.all(aside)
  for (const one of left) if (!(await isOver(one))) attempt.refused ??= 'it did not wait for a query'
}

/** Whether a promise is settled, or will be without anything else happening in the world. */
async function isOver(promise: Promise<unknown>): Promise<boolean> {
  let isSettled = false
  const settle = () => {
    isSettled = true
  }
  promise.then(settle, settle)
  for (let turn = 0; turn < 50 && !isSettled; turn += 1) await undefined
  return isSettled
}

/** A stream, as Kysely's builders make it. */
const streaming = { ...CompiledQuery.raw(streamText), query: { kind: 'SelectQueryNode' } } as CompiledQuery

async function carryOut(
  here: World,
  { database, does }: Operation,
  stage: Stage,
  attempt: Attempt,
): Promise<void> {
  const name = nameOf(database)
  const handle = stage.handles[name]
  // Its id is nobody's but a branch's to tell.
  if (attempt.id === '' && does !== 'nothing')
    stage.begin(name).then(
      ({ transactionId }) => named(here, attempt, transactionId),
      () => {},
    )
  const run = async (text: string, ...values: unknown[]) => {
    await handle?.executeQuery(CompiledQuery.raw(text, values))
  }
  const write = async (text: string) => {
    await run(text, newEffect(here, attempt, database))
  }
  switch (does) {
    case 'insert':
      return await write('insert into effect (id) values ($1::int)')
    case 'call':
      return await write('select add_effect($1::int)')
    case 'attempt':
      return await write('insert into effect (id) values ($1::int)').catch(() => {})
    case 'update':
      return await run('update account set n = n + 1 where id = $1::int', 1 + (here.effects % 2))
    case 'miss':
      return await run('update account set n = n + 1 where id = $1::int', 0)
    case 'read':
      return await run('select count(*)::int as n from effect')
    case 'stream': {
      const rows = handle?.getExecutor().stream(streaming, 2)
      for await (const _ of rows ?? []) if (here.effects % 3 === 0) break
      return
    }
    case 'defer':
      return await run('insert into deferred_child (id) values (0)')
    case 'soften':
      return await run('insert into deferred_trigger (id) values (0)')
    case 'skew':
      return await run("select 'write skew'")
    case 'temp':
      return await run('create temp table scratch ()')
    case 'set':
      return await run('set synchronous_commit = off')
    case 'set local':
      return await run('set local synchronous_commit = off')
    case 'role':
      return await run('set role keeper')
    case 'lock':
      return await run('select from pg_advisory_lock_shared(7)')
    case 'end':
      attempt.refused ??= 'it ended the transaction'
      return await run(endings[here.effects % endings.length] as string).catch(() => {})
    case 'smuggle':
      // What it had written there is gone, by its own doing.
      for (const [effect, where] of attempt.effects) if (where.name === name) attempt.effects.delete(effect)
      return await run(smuggled)
    case 'nothing':
      return
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
