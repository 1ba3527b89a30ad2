/**
 * A backend: runs the statements of one connection one after the other, a step at a time, and looks at its socket
 * only in between. What the server does for itself, and people at its console, run the same way.
 */
import {
  type Answer,
  abort,
  type Flushed,
  type Pause,
  PgError,
  refuse,
  type Server,
  type SimulatedDatabase,
} from './server.ts'
import { type Refusal, runText, type SessionState } from './session.ts'
import type { Statement } from './statements.ts'

export interface Request {
  readonly statement: Statement
  /** The statement fails with this, once it is begun. */
  refusal: Refusal | undefined
  readonly flushed: Flushed
  /** It was carried out: the answer, or the error. */
  readonly done: (answer: Answer | PgError) => void
}

export interface Backend extends SessionState {
  /** Of its server, when it was born: a crash leaves no backend. */
  readonly epoch: number
  readonly queue: Request[]
  busy: boolean
  closed: boolean
  /** The client is gone, and this backend will read so. */
  hungUp: boolean
  /** Somebody has asked it to end. */
  doomed: PgError | undefined
  /** Ends the wait for a lock. */
  interrupt: ((error: PgError) => void) | undefined
  idleSince: number
  idleWatched: boolean
  /** What the client hears last, if anything. */
  readonly onclose: (error: PgError | undefined) => void
}

export function openBackend(
  database: SimulatedDatabase,
  login: string,
  pid: number,
  onclose: Backend['onclose'],
  isPooled = false,
): Backend {
  return {
    database,
    login,
    role: login,
    synchronousCommit: undefined,
    defaultReadOnly: undefined,
    temp: false,
    transaction: undefined,
    implicit: false,
    advisory: 0,
    canUnlock: false,
    isPooled,
    pid,
    epoch: database.server.epoch,
    queue: [],
    busy: false,
    closed: false,
    hungUp: false,
    doomed: undefined,
    interrupt: undefined,
    idleSince: 0,
    idleWatched: false,
    onclose,
  }
}

/** Whether it and its server live. */
export function lives(backend: Backend): boolean {
  return !backend.closed && backend.epoch === backend.database.server.epoch
}

export function receive(backend: Backend, request: Request): void {
  if (!lives(backend)) return
  backend.queue.push(request)
  serve(backend)
}

function serve(backend: Backend): void {
  if (backend.busy || !lives(backend)) return
  if (backend.doomed) {
    endBackend(backend, backend.doomed)
    return
  }
  const request = backend.queue.shift()
  if (request === undefined) {
    if (backend.hungUp) endBackend(backend, undefined)
    else watchIdle(backend)
    return
  }
  backend.busy = true
  const { commands, values } = request.statement
  drive(backend, runText(backend, commands, values, request.flushed, request.refusal), (result) => {
    backend.busy = false
    if (backend.doomed) return endBackend(backend, backend.doomed)
    request.done(result)
    serve(backend)
  })
}

/** Runs a generator of steps, as long as the backend and its server live. */
function drive(
  backend: Backend,
  steps: Generator<Pause, Answer>,
  done: (result: Answer | PgError) => void,
): void {
  const { server } = backend.database
  const advance = (thrown?: PgError) => {
    if (!lives(backend)) return
    let step: IteratorResult<Pause, Answer>
    try {
      step = thrown === undefined ? steps.next() : steps.throw(thrown)
    } catch (error) {
      if (!(error instanceof PgError)) throw error
      return done(error)
    }
    if (!lives(backend)) return
    if (step.done) return done(step.value)
    if (typeof step.value === 'number') return server.later(step.value, advance)
    const holder = step.value
    let waiting = true
    const goOn = (error?: PgError) => {
      if (!waiting) return
      waiting = false
      backend.interrupt = undefined
      holder.waiters.delete(goOn as () => void)
      if (error) advance(error)
      else server.later(server.random.between(0.01, 0.5), advance)
    }
    holder.waiters.add(goOn as () => void)
    backend.interrupt = goOn
    const { lockTimeout = 0 } = backend.transaction ?? {}
    if (lockTimeout > 0)
      server.later(lockTimeout, () => goOn(refuse('55P03', 'canceling statement due to lock timeout')))
  }
  advance()
}

/** `idle_in_transaction_session_timeout`; one timer a backend, which looks again. */
function watchIdle(backend: Backend): void {
  const { server } = backend.database
  backend.idleSince = server.now()
  if (backend.idleWatched || !backend.transaction?.idleTimeout) return
  backend.idleWatched = true
  const look = () => {
    backend.idleWatched = false
    if (!lives(backend) || backend.busy || backend.queue.length > 0) return
    const { transaction } = backend
    if (!transaction?.idleTimeout) return
    const left = backend.idleSince + transaction.idleTimeout - server.now()
    if (left <= 0)
      return endBackend(backend, refuse('25P03', 'terminating connection: idle in transaction', 'FATAL'))
    backend.idleWatched = true
    server.later(left, look)
  }
  server.later(backend.transaction.idleTimeout, look)
}

/** The client is gone. It is noticed when the socket is read next: after the statement at hand, or at once. */
export function hangUp(backend: Backend, loseQueue: boolean): void {
  if (!lives(backend)) return
  backend.hungUp = true
  if (loseQueue) backend.queue.length = 0
  serve(backend)
}

/** `pg_terminate_backend`: ends a wait at once, and a statement that is being carried out after it. */
export function terminate(backend: Backend): void {
  if (!lives(backend)) return
  const error = refuse('57P01', 'terminating connection due to administrator command', 'FATAL')
  backend.doomed = error
  if (backend.interrupt) backend.interrupt(error)
  else serve(backend)
}

/** A request to cancel ends a wait; what is being carried out comes to its end before it looks. */
export function cancel(backend: Backend): void {
  if (lives(backend)) backend.interrupt?.(refuse('57014', 'canceling statement due to user request'))
}

function endBackend(backend: Backend, error: PgError | undefined): void {
  backend.closed = true
  const { transaction } = backend
  backend.transaction = undefined
  if (transaction && !transaction.failed) abort(transaction)
  backend.onclose(error)
}

/** Something the server does by itself, or a person at its console does. A crash ends it. */
export function runInside(server: Server, steps: Generator<Pause, unknown>): void {
  const { epoch } = server
  const advance = () => {
    if (server.epoch !== epoch || !server.up) return
    try {
      const step = steps.next()
      if (step.done) return
      if (typeof step.value === 'number') server.later(step.value, advance)
      else step.value.waiters.add(() => server.later(0.1, advance))
    } catch (error) {
      if (!(error instanceof PgError)) throw error
    }
  }
  advance()
}
