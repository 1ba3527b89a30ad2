/**
 * Proxies between a client and its servers that count how often the client has to wait. While they count, what is
 * said, in either direction and on any connection, arrives when nobody has said anything for a while: so all that is
 * sent without waiting for an answer arrives together, and is one round trip.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { startProxy } from './proxy.ts'

export interface Count {
  /** How often the client had to wait, one time after the other, whichever of the servers for. */
  readonly trips: number
  /** How many statements it sent to all of them. Several in one text are one. */
  readonly messages: number
}

export interface CountingProxies<Name extends string> extends AsyncDisposable {
  /** The databases' URLs, through the proxies. */
  readonly urls: Readonly<Record<Name, string>>
  /** Counts what is said until the task has ended, and the messages that it leaves to be sent afterwards. */
  count(task: () => Promise<unknown>): Promise<Count>
}

/** Long enough for a client to send all that it can without an answer. */
const quietMs = 15

export async function startCountingProxies<Name extends string>(
  targets: Readonly<Record<Name, string>>,
): Promise<CountingProxies<Name>> {
  await using starting = new AsyncDisposableStack()
  const tide = holdBack()
  let messages = 0
  const start = (target: string) =>
    startProxy({
      target,
      carry({ direction, messages: said, pass }) {
        const isAsking = direction === 'client' && said.length > 0
        if (isAsking) messages += said.filter(({ name }) => name === 'Query' || name === 'Execute').length
        tide.pass(pass, isAsking && !said.some(({ name }) => name === 'Terminate'))
      },
    })
  const urls = {} as Record<Name, string>
  for (const name of Object.keys(targets) as Name[])
    urls[name] = starting.use(await start(targets[name])).url()
  const started = starting.move()
  return {
    urls,
    async count(task) {
      messages = 0
      tide.begin()
      try {
        await task()
        const { trips } = tide
        await tide.silence()
        return { trips, messages }
      } finally {
        tide.end()
      }
    },
    [Symbol.asyncDispose]: () => started.disposeAsync(),
  }
}

/** Lets everything pass at once, or, from `begin` to `end`, all that has come when nothing more comes. */
function holdBack() {
  const held: (() => void)[] = []
  let isHolding = false
  let isTrip = false
  let trips = 0
  let timer: NodeJS.Timeout | undefined

  const deliver = () => {
    timer = undefined
    if (isTrip) trips += 1
    isTrip = false
    for (const pass of held.splice(0)) pass()
  }
  /** After what is at the door already: this process may have been kept from looking. */
  const deliverSoon = () => {
    const due = timer
    setImmediate(() => {
      if (timer === due) deliver()
    })
  }
  return {
    get trips() {
      return trips
    },
    begin() {
      isHolding = true
      trips = 0
    },
    end() {
      isHolding = false
      clearTimeout(timer)
      deliver()
    },
    /** @param isAsking whether an answer will be waited for */
    pass(task: () => void, isAsking: boolean) {
      if (!isHolding) return task()
      held.push(task)
      isTrip ||= isAsking
      clearTimeout(timer)
      timer = setTimeout(deliverSoon, quietMs)
    },
    async silence() {
      do await sleep(quietMs)
      while (timer !== undefined)
    },
  }
}
