-- This database's prepared transactions that carry our prefix. A gid proves nothing, anybody who may
-- connect can choose one; ours are recognised by gid, owner and database together: every branch of ours
-- inserted evidence, so its owner must be able to.
create view once.in_doubt as
select p.gid,
       (g.part)[2]::uuid as transaction_id,
       (g.part)[1]::uuid as home,
       (g.part)[3] as home_xid,
       (g.part)[4] as participant,
       p.owner,
       p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age,
       coalesce(g.part is not null and r.oid is not null
                and has_function_privilege(r.oid, 'once.vote(uuid, uuid, text)', 'execute')
                and has_schema_privilege(r.oid, 'once', 'usage'), false) as ours,
       -- Only the owner or a superuser finishes it; a member must SET ROLE, since 16 a privilege of its own.
       coalesce(pg_has_role(current_user, r.oid, case when current_setting('server_version_num')::integer >= 160000
                                                      then 'set' else 'member' end), false) as can_finish
  from pg_catalog.pg_prepared_xacts p
  left join pg_catalog.pg_roles r on r.rolname = p.owner
 cross join lateral (
   select regexp_match(p.gid, '^once:1:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9]{1,19}):([A-Za-z0-9._-]{1,63})$') as part
 ) g
 where p.database = current_database()
   and p.gid like 'once:%';

comment on view once.in_doubt is
  'Prepared transactions of this database with pgonce''s prefix: gid taken apart, owner, age, whether it is ours and whether you may finish it.';
