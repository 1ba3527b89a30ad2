/**
 * `once.recover()`, a courier inside Postgres, modelled after sql/recovery/recover.sql: a backend of the database that
 * it looks after, with connections of its own, one of them back to this database. It ends with its server, and whoever
 * kills it kills it between any two steps.
 */
import { codeOf } from '../../src/errors.ts'
import * as say from '../../src/statements.ts'
import { closeWire, connect, lossOf, send, type Wire } from './network.ts'
import type { SimulatedDatabase } from './postgres/server.ts'
import { statementOf, textOf } from './postgres/statements.ts'
import type { Running, World } from './world.ts'

type Row = Record<string, unknown>

/** `statement_timeout` over there; and how often COMMIT PREPARED is tried again. */
const patience = 10_000
const tries = 100

/**
 * Looks after one database once.
 *
 * @param steps as the request has them, one after the other
 * @throws what ends the function: it cannot reach its own database
 */
export async function recoverInside(
  here: World,
  process: Running,
  self: SimulatedDatabase,
  steps: readonly string[],
  keep: number,
): Promise<void> {
  const me = await inTime(here, process, connect(here, process, self))
  const down = new Set<string>()
  const requests = steps.map(
    (step) => ({ steps: [step], keep: `${keep} ms`, recoverer: 'once.recover()' }) as Row,
  )
  try {
    for (let request = requests.shift(); request !== undefined; request = requests.shift()) {
      const asked = await callOver(here, me, 'ask', JSON.stringify(request))
      requests.unshift(...asked.flatMap(({ next }) => (next === undefined ? [] : [next as Row])))
      const questions = asked.filter(({ question }) => question !== undefined)
      for (const batch of Map.groupBy(questions, (row) => row.batch).values()) {
        const answers: Row[] = []
        for (const { to, question } of batch) {
          const answer = await carry(here, process, me, String(to), JSON.stringify(question), down)
          if (answer !== undefined) answers.push(answer)
        }
        if (answers.length === 0) continue
        for (const row of await callOver(here, me, 'apply', JSON.stringify(answers)))
          if (row.action === 'run') await finish(here, process, me, row)
      }
    }
  } finally {
    closeWire(here, me)
  }
}

/** sql/recovery/carry.sql, over a connection that is closed again; undefined: no answer. */
async function carry(
  here: World,
  process: Running,
  me: Wire,
  to: string,
  question: string,
  down: Set<string>,
): Promise<Row | undefined> {
  const there = here.databases.find(({ databaseId }) => databaseId === to)
  if (there === undefined || down.has(to)) return undefined
  const isSelf = there === me.backend.database
  const connecting = isSelf ? Promise.resolve(me) : connect(here, process, there)
  try {
    const [answer] = await callOver(here, await inTime(here, process, connecting), 'answer', question)
    return answer
  } catch (error) {
    if (isSelf && me.closed) throw error
    down.add(to)
    return undefined
  } finally {
    // One that comes too late is closed when it does.
    if (!isSelf) connecting.then((wire) => closeWire(here, wire)).catch(() => {})
  }
}

const messageOf = { ask: say.ask, answer: say.answer, apply: say.apply }

/** One call, alone in a transaction that reads what is committed by each of its statements. */
async function callOver(
  here: World,
  wire: Wire,
  name: 'ask' | 'answer' | 'apply',
  message: string,
): Promise<Row[]> {
  const process = wire.process as Running
  try {
    await inTime(here, process, send(here, wire, statementOf(say.beginReadCommitted(false))))
    const { rows } = await inTime(here, process, send(here, wire, statementOf(messageOf[name](message))))
    await inTime(here, process, send(here, wire, statementOf(say.end())))
    return rows.map((row) => JSON.parse(String(row)) as Row)
  } catch (error) {
    // Whatever the server says, the transaction is over.
    await inTime(here, process, send(here, wire, statementOf(say.rollback())))
    throw error
  }
}

/** sql/recovery/finish_remote.sql */
async function finish(here: World, process: Running, me: Wire, row: Row): Promise<void> {
  const { scheduler: clock } = here
  const { role } = row
  const verb = row.outcome === 'committed' ? 'commit' : 'rollback'
  const statement = statementOf(say.finish(verb, String(row.gid), String(row.statement)))
  if (role !== null) await inTime(here, process, send(here, me, textOf(`set role "${role}"`, [])))
  try {
    for (let turn = 0; turn < tries; turn += 1) {
      try {
        // No timeout ends this one.
        await send(here, me, statement)
        return
      } catch (error) {
        if (codeOf(error) !== '55000') {
          if (me.closed) throw error
          return
        }
        await new Promise<void>((resolve) => void clock.after(20, process, resolve))
      }
    }
  } finally {
    if (role !== null && !me.closed)
      await inTime(here, process, send(here, me, statementOf(say.setRole('none'))))
  }
}

function inTime<T>({ scheduler: clock }: World, process: Running, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = clock.after(patience, process, () => reject(lossOf('ONPER', 'no answer in time')))
    answer.then(resolve, reject).finally(() => clock.cancel(timer))
  })
}
