/**
 * What a run did, as its clients saw it: a list of invocations and completions in the order in which they
 * happened, in the form that Jepsen gave them. On disk one JSON object a line.
 *
 * The values, by workload (`f`):
 *
 *     bank         transfer     {from: {database, account}, to: {database, account}, amount}
 *                  read         {database: {account: balance}}, each database in a snapshot of its own
 *                  final-read   the same, when nothing runs any more
 *     list-append  txn          [['append', key, n] | ['r', key, null | number[]], …]; what a read found stands
 *                               in the completion; key lies in databases[key % count]
 *                  final-read   {key: number[]}, every key, when nothing runs any more
 *     queue        enqueue      n
 *                  consume      {n, position}
 *                  effects      [{n, position}, …] in the order of their insertion, when nothing runs any more
 *     monotonic    inc          {producer, sequence}
 *                  effects      {producer: sequence[]} in the order of their insertion, when nothing runs any more
 *
 * @see https://github.com/jepsen-io/history
 */
import { createReadStream } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'

/** `info`: indeterminate (timed out, lost, killed); it may have happened or not, or may yet. */
export type Completion = 'ok' | 'fail' | 'info'

export interface Operation {
  /** Who did it. A process has at most one operation open; after an `info` a new one takes its place. */
  readonly process: number
  readonly type: 'invoke' | Completion
  readonly f: string
  readonly value: unknown
  /** Nanoseconds since the start. */
  readonly time: number
  /** Its place in the history. */
  readonly index: number
  readonly error?: string
}

export interface Place {
  readonly database: string
  readonly account: string
}

/** `id`: if the workload writes transfers to a ledger, their name there. */
export interface Transfer {
  readonly from: Place
  readonly to: Place
  readonly amount: number
  readonly id?: number
}

export type Balances = Readonly<Record<string, Readonly<Record<string, number>>>>

export type MicroOperation =
  | readonly ['append', key: number, value: number]
  | readonly ['r', key: number, found: readonly number[] | null]

export interface Consumed {
  readonly n: number
  readonly position: number
}

export interface Increment {
  readonly producer: string
  readonly sequence: number
}

export async function writeHistory(path: string, history: readonly Operation[]): Promise<void> {
  await writeFile(path, history.map((operation) => `${JSON.stringify(operation)}\n`).join(''))
}

/** @throws SyntaxError with the number of a line that is no operation */
export async function readHistory(path: string): Promise<readonly Operation[]> {
  const history: Operation[] = []
  let line = 0
  for await (const text of createInterface({ input: createReadStream(path) })) {
    line += 1
    if (text.trim() === '') continue
    try {
      history.push(JSON.parse(text) as Operation)
    } catch (cause) {
      throw new SyntaxError(`${path}, line ${line}: ${(cause as Error).message}`, { cause })
    }
  }
  return history
}
