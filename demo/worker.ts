/**
 * A worker process: takes its partition, and processes what the driver delivers from its position on. Expects
 * to be killed at any moment, and each database to be gone at any moment.
 */
import { once as nextEvent } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { pgonce } from '../src/client.ts'
import { AbortedError, codeOf, OutcomeUnknownError } from '../src/errors.ts'
import { home } from './environment.ts'
import { type Delivery, databaseNames, type Message } from './plan.ts'
import { type FromWorker, group, producerOf, type ToWorker, topic } from './protocol.ts'
import { add, count, type DemoDatabases } from './tally.ts'

// Ctrl-C reaches every process of the terminal, but the driver decides when to stop. Without it there is no work.
process.on('SIGINT', () => {})
process.once('disconnect', () => process.exit())

try {
  const start = await receive()
  if (start.kind === 'start') await work(start.urls, start.partition)
} catch (error) {
  await send({ kind: 'failure', message: describe(error) })
  process.exitCode = 1
}
process.disconnect()

async function work(urls: Extract<ToWorker, { kind: 'start' }>['urls'], partition: number): Promise<void> {
  await using once = pgonce<DemoDatabases>({ databases: urls, maxConnections: 2 })
  for (;;) {
    try {
      // Also after an outcome that is not known: what was decided stands in the position.
      const { epoch, position } = await once.takePartition(
        home,
        { group, topic, partition },
        `pid ${process.pid}`,
      )
      let expected = position as bigint | null
      for (;;) {
        const deliveries = await fetch(Number(expected ?? 0n))
        if (deliveries.length === 0) return
        const next = (expected ?? 0n) + BigInt(deliveries.length)
        await once.processBatch(
          home,
          { producer: producerOf(partition), sequences: deliveries.map(({ sequence }) => sequence) },
          async (_, fresh, transactions) => {
            const counts = count(messagesOf(deliveries, fresh))
            // Always in this order, so that two workers cannot wait for each other across databases.
            for (const name of databaseNames) await add(transactions[name], counts.get(name) ?? new Map())
          },
          { position: { group, topic, partition, epoch, expected, next } },
        )
        expected = next
      }
    } catch (error) {
      if (!isPassing(error)) throw error
      await send({ kind: 'trouble', message: describe(error) })
      await sleep(100)
    }
  }
}

/** The messages that the ledger found to be new, once each. */
function messagesOf(deliveries: readonly Delivery[], fresh: readonly bigint[]): Message[] {
  const messages = new Map(deliveries.map(({ sequence, message }) => [BigInt(sequence), message]))
  return fresh.flatMap((sequence) => messages.get(sequence) ?? [])
}

/** Whether it is what a server that goes away or comes back may cause: the transaction did nothing, or asks. */
function isPassing(error: unknown): boolean {
  if (error instanceof AbortedError || error instanceof OutcomeUnknownError) return true
  const code = codeOf(error) ?? ''
  return /^(NO_CONNECTION|TOO_MANY_CONNECTIONS|LOCK_TIMEOUT|08...|57P0.|53300|55P03|CONNECT\w+|E[A-Z]+)$/.test(
    code,
  )
}

function describe(error: unknown): string {
  const { message, stack } = error as Error
  const code = codeOf(error)
  return isPassing(error)
    ? `${code}: ${message}`
    : `${code ?? ''} ${stack ?? message ?? String(error)}`.trim()
}

// ---------------------------------------------------------------------------------------------------
// Talking to the driver

async function fetch(position: number): Promise<readonly Delivery[]> {
  // Listening first: the answer may be faster than the word that the question was sent.
  const answering = receive()
  await send({ kind: 'fetch', position })
  const answer = await answering
  return answer.kind === 'batch' ? answer.deliveries : []
}

async function receive(): Promise<ToWorker> {
  const [message] = await nextEvent(process, 'message')
  return message as ToWorker
}

function send(message: FromWorker): Promise<void> {
  return new Promise((resolve, reject) =>
    process.send?.(message, (error: Error | null) => (error ? reject(error) : resolve())),
  )
}
