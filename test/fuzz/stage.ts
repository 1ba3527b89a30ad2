/**
 * A server of its own with two databases that hold a bit of everything, a canary, and a function that describes
 * all that must not change.
 */
import type postgres from 'postgres'
import {
  connect,
  installSchema,
  ownServer,
  type TestContext,
  type TestDatabase,
} from '../support/database.ts'
import { type LeftBehind, leaveBehind } from '../support/orphan.ts'
import { rowsOf } from '../support/sql.ts'
import { prepare } from '../support/strangers.ts'
import { injections, type Known } from './values.ts'

export const roles = ['postgres', 'app', 'recover', 'monitor', 'operator', 'hostile'] as const
export type Role = (typeof roles)[number]

/** The transaction that is open in some of the calls. */
export const openId = '00000000-0000-4000-8000-0000000000ff'

/** A part of what must not change, and a hash of it. */
export type Look = Readonly<Record<string, string>>

export interface Stage {
  readonly home: TestDatabase
  readonly branch: TestDatabase
  /** In `branch`, one connection a role. */
  readonly sessions: Readonly<Record<Role, postgres.Sql>>
  readonly known: Known
  /** Prepared in `branch`, by the application, and decided in `home`. */
  readonly orphan: LeftBehind
  /** Prepared in `branch` by somebody who cannot vote, under a gid of our form. */
  readonly forged: string
  /** What there is in `branch`, as the superuser sees it. */
  look(): Promise<Look>
}

/** In `fuzz.look()`: everything of schema once; the objects of the database; the canaries; the roles. */
const createLook = `
  create table public.canary (song text);
  insert into public.canary values ('tweet');
  create schema fuzz;
  create function fuzz.look() returns jsonb
  language plpgsql volatile security definer
  set search_path = '' set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex'
  as $look$
  declare
    v_table text;
    v_hash text;
    v_look jsonb := '{}';
  begin
    for v_table in
      select c.relname from pg_catalog.pg_class c
       where c.relnamespace = 'once'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
       order by 1
    loop
      -- The epoch of a producer apart: a duplicate with a newer one raises it.
      execute format('select md5(string_agg(r, '','' order by r)) from (select (to_jsonb(t)%s)::text as r from once.%I t) x',
                     case v_table when 'producer' then ' - ''epoch''' end, v_table) into v_hash;
      v_look := v_look || jsonb_build_object(v_table, coalesce(v_hash, 'empty'));
    end loop;
    return v_look || jsonb_build_object(
      'producer.epoch', (select md5(string_agg(p.producer || p.epoch, ',' order by p.producer)) from once.producer p),
      'canary', (select md5(string_agg(c.song, ',')) from public.canary c),
      'prepared', (select md5(string_agg(p.gid, ',' order by p.gid)) from pg_catalog.pg_prepared_xacts p),
      'roles', (select md5(string_agg(r::text, ',' order by r.rolname)) from pg_catalog.pg_roles r)
            || (select md5(string_agg(m.roleid::text || m.member, ',' order by m.roleid, m.member)) from pg_catalog.pg_auth_members m),
      'settings', (select md5(string_agg(s::text, ',' order by s::text)) from pg_catalog.pg_db_role_setting s),
      'databases', (select md5(string_agg(d.datname, ',' order by d.datname)) from pg_catalog.pg_database d),
      'objects', (select md5(string_agg(o, ',' order by o)) from (
        select 'relation ' || c.relnamespace::regnamespace || '.' || c.relname || c.relowner || coalesce(c.relacl::text, '') as o
          from pg_catalog.pg_class c
         where c.oid >= 16384 and c.relnamespace <> 'pg_toast'::regnamespace
           and c.relnamespace <> 'once'::regnamespace
        union all
        select 'relation once.' || c.relname || c.relowner
          from pg_catalog.pg_class c
         where c.relnamespace = 'once'::regnamespace
        union all
        select 'function ' || p.oid::regprocedure || p.proowner || p.prosecdef from pg_catalog.pg_proc p where p.oid >= 16384
        union all
        select 'type ' || t.typnamespace::regnamespace || '.' || t.typname from pg_catalog.pg_type t
         where t.oid >= 16384
        union all
        select 'schema ' || n.nspname || n.nspowner from pg_catalog.pg_namespace n where n.nspname !~ '^pg_(toast_)?temp'
        union all
        select 'trigger ' || g.tgname || g.tgrelid::regclass from pg_catalog.pg_trigger g where not g.tgisinternal
        union all
        select 'server ' || s.srvname from pg_catalog.pg_foreign_server s
        union all
        select 'extension ' || e.extname from pg_catalog.pg_extension e
        union all
        select 'operator ' || o.oprname || o.oprnamespace from pg_catalog.pg_operator o where o.oid >= 16384
        union all
        select 'event trigger ' || e.evtname from pg_catalog.pg_event_trigger e) x));
  end
  $look$;
  -- In front of everything where a caller's search_path says so: whoever calls one of these was hijacked.
  create schema evil;
  create function evil.hijacked() returns void language plpgsql as $evil$ begin raise 'hijacked' using errcode = 'XX001'; end $evil$;
  create function evil.length(text) returns int language sql as $evil$ select evil.hijacked(); select 1 $evil$;
  create function evil.now() returns timestamptz language sql as $evil$ select evil.hijacked(); select null::timestamptz $evil$;
  create function evil.format(text, text) returns text language sql as $evil$ select evil.hijacked(); select '' $evil$;
  create function evil.cardinality(text[]) returns int language sql as $evil$ select evil.hijacked(); select 1 $evil$;
  create function evil.current_setting(text) returns text language sql as $evil$ select evil.hijacked(); select '' $evil$;
  create function evil.equal(text, text) returns boolean language sql as $evil$ select evil.hijacked(); select true $evil$;
  create function evil.equal(uuid, uuid) returns boolean language sql as $evil$ select evil.hijacked(); select true $evil$;
  create operator evil.= (leftarg = text, rightarg = text, function = evil.equal);
  create operator evil.= (leftarg = uuid, rightarg = uuid, function = evil.equal);
  create table evil.databaseId (id uuid);
  grant usage on schema fuzz, evil to public;
  grant execute on all functions in schema fuzz, evil to public;
`

/** @param withPeers whether the databases can ask each other: slower, and more to get wrong */
export async function makeStage(t: TestContext, withPeers: boolean): Promise<Stage> {
  const server = await ownServer(t, { autovacuum: 'off' })
  const admin = connect(t, server.url())
  for (const role of roles.slice(1))
    await admin.unsafe(`create role ${role} login ${role === 'app' ? '' : 'noinherit'}`)
  await admin.unsafe('create role canary')
  await admin.unsafe('grant app to recover, operator')
  const place = async (name: string): Promise<TestDatabase> => {
    await admin.unsafe(`create database ${name}`)
    await installSchema(server.url(name))
    const sql = connect(t, server.url(name), { max: 3 })
    for (const role of roles.slice(1, -1)) await sql.unsafe(`select once.grant_${role}('${role}')`)
    if (withPeers) await sql.unsafe('create extension dblink')
    return { name, url: server.url(name), urlAs: (role) => server.url(name, role), sql }
  }
  const [home, branch] = [await place('orders'), await place('billing')]
  const sessions = Object.fromEntries(
    roles.map((role) => [role, connect(t, server.url('billing', role))]),
  ) as unknown as Stage['sessions']
  for (const sql of Object.values(sessions))
    await sql.unsafe(`set statement_timeout = '10s'; set lock_timeout = '2s'`)

  const { sql } = branch
  const strange = injections[0] as string
  await sql.unsafe(`
    select once.claim_batch('p1', array[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14], 3);
    select once.claim_batch('p2', array[0, 9223372036854775806], 2147483647);
    update once.producer set max_gaps = 1 where producer = 'p2';
    select once.set_retention('s1', '30 days'), once.set_retention('s2', null);
    select once.claim_key('s1', 'k1', now() - interval '1 day', '\\x01'), once.claim_key('s2', 'k1', '2024-02-29'),
           once.claim_key('s2', '01890a5d-ac96-774b-bcce-b302099a8057'), once.claim_key('s2', 'k2'), once.claim_key('s1', 'k2');
    select once.keep_result('s2', 'k2', '{"a": 1}');
    update once.scope set horizon = now() - interval '30 days' where scope = 's1';
    select once.set_key_times('v7', true);
    select once.claim_key('v7', '01890a5d-ac96-774b-bcce-b302099a8057');
    select once.take_partition('g1', 't1', 0, 'o1'), once.take_partition('g1', 't1', 1), once.take_partition('g1', 't2', 0);
    select once.advance('g1', 't1', 0, 1, null, 42), once.advance_token('g1', 't1', 1, 1, null, 'token'), once.report_end('t1', 0, 50);
  `)
  await sql`select once.claim(${strange}, 0), once.claim_key(${strange}, ${strange}), once.take_partition(${strange}, ${strange}, 0, ${strange})`
  const [ownId, homeId] = [await id(branch), await id(home)]
  const ids = Array.from({ length: 6 }, (_, n) => `00000000-0000-4000-8000-00000000000${n}`)
  const [unproven, proven, lost, evident, forced, gone] = ids as [
    string,
    string,
    string,
    string,
    string,
    string,
  ]
  await sql.unsafe(`
    insert into once.global_transaction (transaction_id, participants, database_ids, decided_at, proven_at)
    values ('${unproven}', '{orders}', '{${homeId}}', now() - interval '1 hour', null),
           ('${proven}', '{orders,far}', '{${homeId},${gone}}', now() - interval '2 hours', now() - interval '1 hour'),
           ('${lost}', '{}', '{}', now(), null);
    insert into once.evidence (transaction_id, home, participant, recorded_at)
    values ('${evident}', '${homeId}', 'billing', now() - interval '1 hour'), ('${gone}', '${gone}', 'billing', now()),
           ('${unproven}', '${ownId}', 'billing', now());
    insert into once.loss (transaction_id, participant, home, kind) values ('${lost}', 'orders', '${ownId}', 'lost branch');
    insert into once.heuristic (gid, transaction_id, home, home_xid, participant, owner, outcome, reason)
    values ('once:1:${gone}:${forced}:9:billing', '${forced}', '${gone}', '9', 'billing', 'app', 'commit', 'why not');
  `)
  const asApp = connect(t, server.url('billing', 'app'))
  const orphan = await leaveBehind(home, { billing: { sql: asApp } }, { outcome: 'committed' })
  const forged = orphan.gid.replace(/:[^:]+$/, ':forged')
  await prepare(t, server.url('billing', 'hostile'), forged, 'select pg_current_xact_id()')
  await prepare(t, server.url('billing'), "131077_it's", 'select pg_current_xact_id()')
  if (withPeers) {
    await sql.unsafe(`
      create server orders foreign data wrapper dblink_fdw options (host '127.0.0.1', port '${server.port}', dbname 'orders');
      create server itself foreign data wrapper dblink_fdw options (host '127.0.0.1', port '${server.port}', dbname 'billing');
      create server nowhere foreign data wrapper dblink_fdw options (host '127.0.0.1', port '1', dbname 'x');
      create user mapping for postgres server orders options (user 'postgres', password 'x');
      create user mapping for postgres server itself options (user 'postgres', password 'x');
      create user mapping for postgres server nowhere options (user 'postgres', password 'x');
      select once.add_peer('orders')`)
  }
  await sql.unsafe(createLook)
  const xids = (await rowsOf(sql, 'select home_xid::text from once.global_transaction')).flat().map(String)
  const producers = ['p1', 'p2', strange]
  const known: Known = {
    byName: {
      producer: producers,
      scope: ['s1', 's2', 'v7', strange],
      key: ['k1', 'k2', strange, '01890a5d-ac96-774b-bcce-b302099a8057'],
      keys: ['k1', 'k2', 'k3', strange, '01890a5d-ac96-774b-bcce-b302099a8057'],
      consumer_group: ['g1', 'g1', 'g1', strange],
      topic: ['t1', 't1', 't1', 't2', strange],
      epoch: ['1', '1', '1', '3', '0'],
      partition: ['0', '0', '1'],
      'expected bigint': ['42'],
      'expected text': ['token'],
      'next bigint': ['42', '43', '50'],
      transaction_id: [openId, openId, openId, ...ids],
      owner: ['o1'],
      gid: [
        orphan.gid,
        forged,
        `once:1:${ownId}:${unproven}:${xids[0]}:orders`,
        `once:1:${gone}:${forced}:9:billing`,
        "131077_it's",
      ],
      gids: [
        orphan.gid,
        forged,
        `once:1:${ownId}:${unproven}:${xids[0]}:orders`,
        `once:1:${gone}:${forced}:9:billing`,
      ],
      outcome: ['commit', 'rollback', 'committed', 'aborted', 'pending'],
      decided: ['committed', 'aborted', 'pending'],
      kind: ['lost branch', 'lost decision'],
      role: [...roles, 'canary'],
      server: ['orders', 'itself', 'nowhere'],
      home: [ownId, ownId, homeId, gone],
      homes: [ownId, ownId, homeId],
      database_id: [ownId, ownId, homeId, gone],
      database_ids: [ownId, homeId],
      participants: ['orders', 'billing'],
      batch_size: ['1', '1000'],
      reason: ['because'],
      lock_timeout: ['0', '1000'],
      idle_timeout: ['0', '60000'],
    },
    byType: { uuid: ids, xid8: xids, text: producers },
  }
  return {
    home,
    branch,
    sessions,
    known,
    orphan,
    forged,
    look: async () => (await sql<{ look: Look }[]>`select fuzz.look() as look`)[0]?.look ?? {},
  }
}

async function id({ sql }: TestDatabase): Promise<string> {
  return String((await rowsOf(sql, 'select once.database_id()')).flat()[0])
}
