/** What every workload is made of: tables, a step that clients repeat, and what can be read in the end. */
import type { Generated } from 'kysely'
import type postgres from 'postgres'
import type { Pgonce, Transactions } from '../../../src/index.ts'
import type { Random } from '../../rig/random.ts'
import type { Completion } from '../history.ts'
import type { Name } from '../servers.ts'

export interface Tables {
  /** One row for each attempt that took effect in this database, whatever the workload. */
  effect: { attempt: string }
  account: { id: string; balance: number }
  transfer: { id: number }
  list: { key: number; items: number[] }
  head: { partition: number; next: number }
  topic: { partition: number; position: number; n: number }
  consumed: { seq: Generated<number>; partition: number; position: number; n: number; epoch: number }
  increment: { seq: Generated<number>; producer: string; sequence: number }
}

export type Databases = Record<Name, Tables>

export type Once = Pgonce<Databases>

export type Handles = Transactions<Databases>

/** One operation of the history that an attempt contains; mostly there is one. */
export interface Part {
  readonly f: string
  readonly value: unknown
}

export interface Done {
  /** How each part was completed. @defaultValue ok, with the value of its invocation */
  readonly parts?: readonly {
    readonly type?: Completion
    readonly value?: unknown
    readonly error?: string
  }[]
  /** False: it was a duplicate and left no effect. @defaultValue true */
  readonly effective?: boolean
  /** Of the global transaction. */
  readonly id?: string | null
  /** Whether every branch was committed when it was acknowledged. @defaultValue true */
  readonly finished?: boolean
}

/** A client that does one thing after the other. */
export interface Lane extends Pick<Random, 'below' | 'pick'> {
  readonly once: Once
  /** The place among the coordinators, which outlives each of them. */
  readonly slot: number
  /** Its number among the lanes of the slot. */
  readonly number: number
  /** Positive and never the same again in this run. */
  readonly unique: () => number
  /** Milliseconds since the run began, whatever the clock says. */
  readonly elapsed: () => number
  /** What the last coordinator at this place had reached; see {@link Workload.resume}. */
  readonly resumed: Readonly<Record<string, number>>
  /** What this lane keeps from step to step. */
  readonly memory: Map<string, unknown>
  /**
   * Makes an attempt and records it. `databases` are those in which it leaves an effect, which `body` inserts
   * under the attempt's name. @returns undefined if it failed or its outcome is unknown
   */
  attempt<T>(
    parts: readonly Part[],
    databases: readonly Name[],
    body: (attempt: string) => Promise<{ readonly done: Done; readonly result: T }>,
  ): Promise<T | undefined>
  sleep(milliseconds: number): Promise<void>
}

export interface Workload {
  readonly name: 'bank' | 'list-append' | 'queue' | 'monotonic'
  /** How many lanes of each coordinator run it. */
  readonly lanes: number
  /** Runs in every database. */
  readonly tables: string
  /** One step of a lane. Whatever it throws was recorded as failed or unknown. */
  step(lane: Lane): Promise<void>
  /** After the faults: what has to be delivered still. */
  drain?(lane: Lane): Promise<void>
  /** The last operations of the history. */
  finalReads(sql: (name: Name) => postgres.Sql): Promise<readonly Part[]>
}

/** Tables of all workloads. */
export const commonTables = `
  create table effect (attempt text not null)`
