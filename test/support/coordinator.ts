/**
 * A coordinator that kills itself: `node coordinator.ts '{"a":URL,"b":URL,"c":URL,"point":"prepare c end","id":1}'`.
 *
 * Processes one message over three databases (a is the home, b and c prepare) and ends itself with SIGKILL
 * at the crash point: a step, a database and whether before (`start`) or after it (`end`). `none` survives.
 */
import { subscribe } from 'node:diagnostics_channel'
import { pgonce, type StepEvent } from '../../src/index.ts'
import type { Three } from './client.ts'

export interface Instructions extends Record<'a' | 'b' | 'c', string> {
  readonly point: string
  readonly id: number
}

const { a, b, c, point, id } = JSON.parse(process.argv[2] ?? '{}') as Instructions
const [step, database, when] = point.split(' ')
if (step !== 'none') {
  subscribe(`tracing:pgonce:${step}:${when === 'start' ? 'start' : 'asyncEnd'}`, (event) => {
    if ((event as StepEvent).database === database) process.kill(process.pid, 'SIGKILL')
  })
}
await using once = pgonce<Three>({ databases: { a, b, c } })
const answer = await once.process('a', { producer: 'crash', sequence: id }, async (trx, tx) => {
  await trx.insertInto('effect').values({ id }).execute()
  await Promise.all([tx.b, tx.c].map((other) => other.insertInto('effect').values({ id }).execute()))
})
console.log(answer.status)
