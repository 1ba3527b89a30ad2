import test from 'ava'
import { Semaphore } from '../../src/connection/semaphore.ts'

const never = new AbortController().signal

test('There are as many permits as said, first come, first served', async (t) => {
  const permits = new Semaphore(2)
  await permits.take(never)
  t.true(permits.tryTake())
  t.false(permits.tryTake())
  const order: number[] = []
  const waiting = [1, 2].map((n) => permits.take(never).then(() => order.push(n)))
  permits.give()
  // Somebody waits, so nobody goes ahead.
  t.false(permits.tryTake())
  permits.give()
  await Promise.all(waiting)
  t.deepEqual(order, [1, 2])
  permits.give()
  t.true(permits.tryTake())
})

test('Who gives up waiting holds nothing and keeps nobody from going on', async (t) => {
  const permits = new Semaphore(1)
  await permits.take(never)
  const controller = new AbortController()
  const first = permits.take(controller.signal)
  const second = permits.take(never)
  const reason = new Error('enough')
  controller.abort(reason)
  t.is(await t.throwsAsync(first), reason)
  permits.give()
  await second
  t.is(await t.throwsAsync(permits.take(controller.signal)), reason)
  permits.give()
  t.true(permits.tryTake())
})
