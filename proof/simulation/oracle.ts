/**
 * Knows what is true, since it sees all servers at once and at every step, and says what must never happen. Part is
 * checked at the moment when it happens, which names the culprit; the rest when everything has come to rest.
 */
import { OutcomeUnknownError } from '../../src/errors.ts'
import type { Wire } from './network.ts'
import type { TransactionPlan } from './plan.ts'
import { decodeGid } from './postgres/once.ts'
import type {
  LogRecord,
  Observer,
  Prepared,
  Server,
  SimulatedDatabase,
  Transaction,
} from './postgres/server.ts'

export interface Violation {
  readonly invariant: string
  readonly detail: string
}

/** One run of a handler. */
export interface Attempt {
  /** The transaction's UUID; empty before a branch of it has told. */
  id: string
  readonly call: Call
  /** Rows that its statements have written, with their database. */
  readonly effects: Map<string, SimulatedDatabase>
  /** The handler did what a handler must not: why nothing of it may be committed. */
  refused: string | undefined
  /** What its claim said. */
  claim: string | undefined
}

/** One call of `runTransaction`. */
export interface Call {
  readonly number: number
  readonly plan: TransactionPlan
  readonly attempts: Attempt[]
  startedAt: number
  settledAt: number | undefined
  result: { readonly id: string | null; readonly finished: boolean } | undefined
  error: unknown
}

export interface Oracle extends Observer {
  readonly violations: Violation[]
  readonly calls: Call[]
  /** By transaction UUID. */
  readonly attempts: Map<string, Attempt>
  /** Gids that somebody finished by hand. */
  readonly byHand: Map<string, 'commit' | 'rollback'>
  readonly forged: Set<string>
  violate(invariant: string, detail: string): void
  settled(call: Call, now: number): void
  /** What every attempt has left behind, in the end. */
  checkEffects(): void
  /** That no message took effect twice. */
  checkClaims(): void
  /** That losses are recorded, and nothing else. */
  checkLosses(): void
}

/** Milliseconds after which a transaction that begins must know that its database is read-only by now. */
const longestUnfenced = 1_200

/**
 * @param lost connections whose server hears no more of the client
 * @param isUndisturbed nothing goes wrong but that an operator makes a database read-only
 */
export function createOracle(
  databases: readonly SimulatedDatabase[],
  lost: ReadonlySet<Wire>,
  isUndisturbed: boolean,
): Oracle {
  const violations: Violation[] = []
  const calls: Call[] = []
  const attempts = new Map<string, Attempt>()
  const byHand = new Map<string, 'commit' | 'rollback'>()
  const forged = new Set<string>()
  const failedOver = new Set<Server>()
  const homes = new Map<string, string>()
  /**
   * Decisions whose evidence was seen once more after they were proven, or that were confirmed, before a failover
   * took it: nobody need look for that any more. Not promised.
   */
  const confirmedBefore = new Set<string>()
  const seenAgain = new Set<string>()

  const violate = (invariant: string, detail: string) => {
    if (violations.length < 5) violations.push({ invariant, detail })
  }
  const byDatabaseId = (databaseId: string) =>
    databases.find((database) => database.databaseId === databaseId)
  /** The home's connection broke before COMMIT came: it can only roll back, though it does not know that yet. */
  const isLost = (transaction: Transaction) =>
    [...lost].some(
      ({ backend }) => backend.transaction === transaction && !backend.busy && backend.queue.length === 0,
    )
  const handled = (id: string, how?: 'commit') =>
    [...byHand].some(([gid, done]) => decodeGid(gid)?.id === id && (how === undefined || done === how))

  const checkDecision = (transaction: Transaction, durable: boolean, id: string) => {
    const row = transaction.database.tables.global.get(id)
    if (row === undefined) return
    if (!durable)
      violate('decision is durable', `${id} is visible in ${transaction.database.name}, and not flushed`)
    row.participants.forEach((participant, index) => {
      const there = byDatabaseId(String(row.databaseIds[index]))
      if (there === undefined || failedOver.has(there.server) || handled(id)) return
      const gid = `once:1:${transaction.database.databaseId}:${id}:${row.xid}:${participant}`
      if (!there.server.prepared.get(gid))
        violate('prepared before decided', `${id} was decided and ${participant} is not prepared`)
    })
  }
  const checkPurged = (id: string) => {
    for (const { name, tables, server } of databases) {
      if (tables.evidence.has(id))
        violate('purged after its evidence', `${id} was purged, ${name} has evidence`)
      for (const { gid } of server.prepared.values())
        if (!failedOver.has(server) && !forged.has(gid) && decodeGid(gid)?.id === id)
          violate('purged after it was finished', `${id} was purged, ${gid} is prepared`)
    }
  }
  const checkUnconfirmed = (id: string, where: SimulatedDatabase) => {
    const row = databases.map(({ tables }) => tables.global.get(id)).find((found) => found !== undefined)
    if (row?.confirmedAt === undefined)
      violate('confirmed before evidence goes', `evidence of ${id} was deleted in ${where.name}, unconfirmed`)
  }

  const checkFence = ({ begunAt, database, writes }: Transaction) => {
    const { fencedAt, now } = database.server
    if (!isUndisturbed || fencedAt === undefined || begunAt === undefined) return
    if (begunAt > fencedAt + longestUnfenced && writes.some(({ table }) => table === 'effect'))
      violate(
        'an operator who fences is obeyed',
        `${database.name} was written to, ${now() - fencedAt} ms after`,
      )
  }

  return {
    violations,
    calls,
    attempts,
    byHand,
    forged,
    violate,

    committed(transaction, durable) {
      checkFence(transaction)
      const inserted = new Set<string>()
      for (const { table, key, row } of transaction.writes) {
        if (table !== 'global' && table !== 'evidence') continue
        const name = `${table}/${key}`
        if (row === undefined) {
          if (inserted.has(name)) continue
          if (table === 'global') checkPurged(key)
          else checkUnconfirmed(key, transaction.database)
        } else {
          if (table === 'global' && (row as { xid: number }).xid === transaction.xid && !inserted.has(name))
            checkDecision(transaction, durable, key)
          inserted.add(name)
        }
      }
    },

    prepared({ gid }) {
      const parts = decodeGid(gid)
      if (parts && !forged.has(gid)) homes.set(parts.id, parts.home)
    },

    tainted(what) {
      violate('a transaction begins with a session as new', what)
    },

    // An address may lead to another database than was thought.
    wrote(database, effect) {
      for (const call of calls)
        for (const { effects } of call.attempts) if (effects.has(effect)) effects.set(effect, database)
    },

    seen(database, id) {
      const home = byDatabaseId(homes.get(id) ?? '')
      if (home?.tables.global.get(id)?.provenAt !== undefined) seenAgain.add(`${id} ${database.name}`)
    },

    finished({ gid }: Prepared, commit, server) {
      const parts = decodeGid(gid)
      if (parts === undefined || byHand.has(gid)) return
      if (forged.has(gid)) {
        if (commit) violate('a forged branch is no branch', `${gid} was committed`)
        return
      }
      const home = byDatabaseId(parts.home)
      if (home === undefined) return violate('the home exists', gid)
      const visible = String(home.tables.global.get(parts.id)?.xid) === parts.xid
      if (commit) {
        if (!visible && !failedOver.has(home.server) && !failedOver.has(server))
          violate('committed after the decision', `${gid} was committed and its home has no decision`)
        return
      }
      const logged = home.server.log.some(
        (record) =>
          record.type === 'commit' &&
          String(record.xid) === parts.xid &&
          record.transaction.database === home &&
          record.transaction.own.get(`global/${parts.id}`) !== undefined,
      )
      if (visible || logged)
        violate('rolled back after an abort', `${gid} was rolled back, and its home has committed`)
      const running = home.server.running.get(Number(parts.xid))
      // The branch itself may have the xid, if the home lost it in a crash and both are of one cluster.
      if (running?.database === home && running.mark.startsWith(parts.id) && !isLost(running))
        violate('rolled back after an abort', `${gid} was rolled back, and its home may still commit`)
    },

    lostTail(server, records: readonly LogRecord[]) {
      if (records.length === 0) return
      failedOver.add(server)
      for (const { tables } of databases) {
        for (const { id, confirmedAt } of tables.global.values())
          if (confirmedAt !== undefined) confirmedBefore.add(id)
      }
      for (const { name } of server.databases) {
        for (const id of homes.keys()) if (seenAgain.has(`${id} ${name}`)) confirmedBefore.add(id)
      }
    },

    settled(call, now) {
      call.settledAt = now
      const last = call.attempts.at(-1)
      if (call.result?.finished !== true || last === undefined || failedOver.size > 0) return
      for (const [effect, database] of last.effects) {
        if (!database.tables.effect.has(effect))
          violate(
            'finished means visible',
            `call ${call.number} is finished, and ${database.name} does not show it`,
          )
      }
    },

    checkEffects() {
      for (const call of calls) {
        for (const attempt of call.attempts) {
          const present = presentOf(attempt)
          const isLast = attempt === call.attempts.at(-1)
          const doubtful = handled(attempt.id) || failedOver.size > 0
          if (present.size === 2) {
            if (!doubtful)
              violate('atomic', `attempt ${attempt.id} of call ${call.number}: ${listOf(attempt)}`)
            continue
          }
          if (attempt.effects.size === 0 || doubtful) continue
          const committed = present.has(true)
          if (committed && attempt.refused)
            violate(
              'a handler that does what it must not is refused',
              `attempt ${attempt.id}: ${attempt.refused}`,
            )
          const what = `call ${call.number}, attempt ${attempt.id}`
          if (committed && !isLast)
            violate('tried again only after an abort', `${what} was committed, and run again`)
          if (call.settledAt === undefined || !isLast) continue
          if (call.result && !committed) violate('acknowledged stays', `${what} was acknowledged and is gone`)
          if (!call.result && committed && !(call.error instanceof OutcomeUnknownError))
            violate(
              'an error means nothing happened',
              `${what} failed with ${String(call.error)}, and is committed`,
            )
        }
      }
    },

    checkClaims() {
      const byMessage = new Map<string, Attempt[]>()
      for (const { plan, attempts: tried } of calls) {
        if (plan.claim === undefined) continue
        const message = `${plan.claim.database} ${plan.claim.sequence}`
        const took = tried.filter((attempt) => presentOf(attempt).has(true))
        byMessage.set(message, [...(byMessage.get(message) ?? []), ...took])
      }
      if (failedOver.size > 0) return
      for (const [message, took] of byMessage) {
        if (took.length > 1)
          violate('once', `message ${message} took effect in ${took.map(({ id }) => id).join(' and ')}`)
      }
      for (const { name, tables } of databases) {
        for (const sequence of tables.sequence.get('producer') ?? []) {
          const claims = calls.filter(({ plan: { claim } }) => claim?.sequence === Number(sequence))
          // Where a handler wrote nothing, or its address led elsewhere, nothing shows what became of it.
          const isFulfilled = claims.some(({ attempts: tried }) =>
            tried.some((attempt) => attempt.effects.size === 0 || presentOf(attempt).has(true)),
          )
          if (!isFulfilled && byHand.size === 0)
            violate('a claim and its effects are one', `${sequence} is claimed in ${name}, with no effect`)
        }
      }
      for (const { number, result, attempts: tried } of calls) {
        const last = tried.at(-1)
        if (result && last?.claim === 'duplicate' && last.effects.size > 0)
          violate('once', `call ${number} was a duplicate, and its handler ran`)
      }
    },

    checkLosses() {
      const recorded = databases.flatMap(({ tables }) => [...tables.loss.values()])
      for (const { id, kind, participant } of recorded) {
        const attempt = attempts.get(id)
        // Committed by hand before the home has decided it is against the decision, for as long as there is none.
        if (kind === 'lost decision' && handled(id, 'commit')) continue
        // Where a branch or its home has no rows of its own, a real loss shows nowhere else.
        const names = [...(attempt?.effects.values() ?? [])].map(({ name }) => name)
        const homeName = byDatabaseId(homes.get(id) ?? '')?.name ?? ''
        if (
          (handled(id) || failedOver.size > 0) &&
          !(names.includes(participant) && names.includes(homeName))
        )
          continue
        if (attempt === undefined || presentOf(attempt).size < 2)
          violate(
            'no false alarm',
            `${kind} of ${participant} was recorded for ${id}: ${attempt ? listOf(attempt) : ''}`,
          )
      }
      for (const attempt of attempts.values()) {
        if (presentOf(attempt).size < 2) continue
        const home = byDatabaseId(homes.get(attempt.id) ?? '')
        // Without a row of the handler's at home it does not show which side was lost.
        if (home === undefined || ![...attempt.effects.values()].includes(home)) continue
        const homeCommitted = [...attempt.effects].some(
          ([effect, database]) => database === home && home.tables.effect.has(effect),
        )
        for (const database of new Set(attempt.effects.values())) {
          if (database === home) continue
          const here = [...attempt.effects].some(
            ([effect, where]) => where === database && database.tables.effect.has(effect),
          )
          // What was forced is put beside its decision instead.
          const isJudged = [...database.tables.heuristic.values()].some(
            ({ id, decided, done }) =>
              id === attempt.id && done === (here ? 'committed' : 'rolled back') && decided !== done,
          )
          if (isJudged || here === homeCommitted || (homeCommitted && confirmedBefore.has(attempt.id)))
            continue
          const kind = homeCommitted ? 'lost branch' : 'lost decision'
          if (
            !recorded.some(
              (row) => row.id === attempt.id && row.participant === database.name && row.kind === kind,
            )
          )
            violate(
              'losses are recorded',
              `${kind} of ${database.name} in ${attempt.id} was not recorded: ${listOf(attempt)}`,
            )
        }
      }
    },
  }
}

/** What an error says, and where it was made. */
export function stackOf(error: unknown): string {
  return error instanceof Error ? String(error.stack) : String(error)
}

function presentOf(attempt: Attempt): Set<boolean> {
  return new Set([...attempt.effects].map(([effect, { tables }]) => tables.effect.has(effect)))
}

function listOf(attempt: Attempt): string {
  return [...attempt.effects]
    .map(([effect, { name, tables }]) => `${name} ${tables.effect.has(effect) ? 'committed' : 'not'}`)
    .join(', ')
}
