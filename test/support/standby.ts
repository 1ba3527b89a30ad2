/** A synchronous standby that a server waits for, and that never comes. */
import { setTimeout as sleep } from 'node:timers/promises'
import type postgres from 'postgres'
import { connect, type TestContext } from './database.ts'
import { until } from './until.ts'

export interface Standby {
  /** Process ids of backends that wait for it. */
  waiting(): Promise<number[]>
  /** From now on nothing commits. */
  lose(): Promise<void>
  /** Nobody waits for it any more. */
  regain(): Promise<void>
}

/** @param admin a superuser's connections to a server of its own, of which none writes, and so none waits */
export function standbyOf(t: TestContext, admin: postgres.Sql, url: string): Standby {
  const waiting = async () => {
    const rows = await admin<{ pid: number }[]>`
      select pid from pg_stat_activity where wait_event = 'SyncRep' order by pid`
    return rows.map(({ pid }) => pid)
  }
  const name = async (names: string) => {
    await admin.unsafe(`alter system set synchronous_standby_names = '${names}'`)
    await admin.unsafe('select pg_reload_conf()')
  }
  return {
    waiting,
    async lose() {
      await name('nobody')
      // The checkpointer tells the backends, in its own time.
      const probe = connect(t, url)
      await until('a commit waits', async () => {
        const probed = probe`select pg_logical_emit_message(true, 'probe', '')`.catch(() => {})
        await Promise.race([probed, sleep(200)])
        return (await waiting()).length > 0
      })
    },
    async regain() {
      await name('')
      await until('nobody waits', async () => (await waiting()).length === 0)
    },
  }
}
