/** Servers as hosted Postgres has them: a password for everybody, and nobody who is at work is a superuser. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type postgres from 'postgres'
import type { EmbeddedServer } from '../../src/embedded/server.ts'
import { connect, installSchema, type TestContext } from './database.ts'
import { blocksOf, situationOf } from './documents.ts'
import { type EffectsDatabase, withEffects } from './effects.ts'
import { until } from './until.ts'

/** Everybody's, so that a test can be read. */
export const password = 'to be asked for'

export interface HostedDatabase extends EffectsDatabase {
  /** As the application, whose role owns its branches. */
  readonly shop: postgres.Sql
}

/** Roles and pg_hba.conf. Only the test itself comes in as the superuser, over TCP and without a password. */
export async function askForPasswords(t: TestContext, server: EmbeddedServer): Promise<void> {
  const superuser = connect(t, server.url())
  await superuser.unsafe(`create role admin login createrole password '${password}'`)
  await superuser.unsafe(`create role shop login password '${password}'`)
  // From 16 on, who makes a role may grant it; these were made here.
  await superuser.unsafe('grant shop to admin with admin option')
  await writeFile(
    join(server.dataDirectory, 'pg_hba.conf'),
    'host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n',
  )
  await superuser`select pg_reload_conf()`
  await until('passwords are asked for', async () => {
    const stranger = connect(t, server.url('postgres', 'shop'), { password: 'wrong' })
    return await stranger`select`.then(
      () => false,
      (error) => error.code === '28P01',
    )
  })
}

/** A database with schema once, which like the schema belongs to `admin`, who is no superuser. */
export async function hostedDatabase(
  t: TestContext,
  server: EmbeddedServer,
  name: string,
): Promise<HostedDatabase> {
  const urlAs = (role: string) => {
    const url = new URL(server.url(name, role))
    if (role !== 'postgres') url.password = password
    return url.href
  }
  const superuser = connect(t, server.url())
  await superuser.unsafe(`create database ${name} owner admin`)
  const url = server.url(name)
  const sql = connect(t, url, { max: 4 })
  // What the provider does.
  await sql.unsafe('create extension dblink; grant usage on foreign data wrapper dblink_fdw to admin')
  await installSchema(urlAs('admin'))
  const admin = connect(t, urlAs('admin'))
  await admin.unsafe(`create table effect (id int primary key); grant insert, select on effect to shop`)
  await admin`select once.grant_app('shop')`
  return { ...withEffects({ name, url, urlAs, sql }), shop: connect(t, urlAs('shop')) }
}

/** What docs/operations.md says to type, by situation and by whom or where. */
export async function blocksFor(situation: string, where: string) {
  const blocks = await blocksOf('docs/operations.md')
  return blocks.filter((block) => situationOf(block) === situation && block.words.includes(where))
}
