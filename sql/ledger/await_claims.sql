-- Internal, of once.expire, and with its owner's rights and search_path for that: waits up to a second for
-- the transactions that may have read an older horizon, and names those left (once.expiry.waits_for).
create function once.await_claims()
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare v_waits_for text[]; v_begun_by xid8;
begin
  select e.waits_for, e.begun_by into v_waits_for, v_begun_by from once.expiry e;
  if v_begun_by = pg_current_xact_id() then
    return query
    select 'wait', null::text, 'keys past their horizon: call again in another transaction', 0::bigint, false;
    return;
  end if;
  if v_waits_for is null then
    -- A caller's transaction may have looked before, and would be shown the same again.
    perform pg_stat_clear_snapshot();
    -- Who is not in pg_stat_activity, or has no user there, is about to connect, and whatever it begins then
    -- sees the new horizons; or it is autovacuum.
    v_waits_for := array(
      select l.virtualxid from pg_catalog.pg_locks l
        join pg_catalog.pg_stat_activity a on a.pid = l.pid
       where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted
         and l.pid <> pg_backend_pid() and a.usesysid is not null and a.datname = current_database());
  end if;
  for i in 1..21 loop
    v_waits_for := array(select l.virtualxid from pg_catalog.pg_locks l
                          where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted
                            and l.virtualxid = any (v_waits_for));
    exit when v_waits_for = '{}' or i = 21;
    perform pg_sleep(0.05);
  end loop;
  update once.expiry e set waits_for = v_waits_for;
  if v_waits_for <> '{}' then
    return query select 'wait', null::text,
           'keys past their horizon are deleted when what began before it moved has ended: process '
           || string_agg(l.pid || coalesce(' (' || a.usename || ')', ''), ', ' order by l.pid),
           count(*), false
      from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.virtualxid = any (v_waits_for);
  end if;
end $$;
comment on function once.await_claims() is
  'Internal: waits a moment for transactions that may have read an older horizon, and names those left.';
call once.allow('owner', 'await_claims');
