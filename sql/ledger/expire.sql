-- One bounded step of retention: moves the horizons of scopes that have a retention, and deletes a batch of
-- keys and of records of expired claims that are past them. Call it again, each time in a transaction of its
-- own, while a row says more. It never waits for a claim's lock, and no claim waits for it.
--
-- Deleting a key is safe once no claim can come through with an older horizon: (1) the horizons are moved and
-- what to delete is fixed from them, and that commits; (2) a later transaction notes who else is running, by
-- virtual transaction ids, which everybody holds from before its first snapshot to its end; (3) when all of
-- those have ended, whoever claims has a snapshot that shows the new horizons, at any isolation level, and
-- hears 'expired'. New transactions do not count, so it makes progress under any load. A prepared transaction
-- holds none, and does not read any more. Do not claim in an exported snapshot.
--
-- SECURITY DEFINER because nobody else may delete keys; the search_path names pg_temp, last: else Postgres
-- looks for types there first, and a caller's own type "date" would run code as our owner.
create function once.expire(batch_size integer default 5000)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_pass once.expiry;
  v_today constant date := (now() at time zone 'UTC')::date;
  v_count bigint;
begin
  if expire.batch_size is null or expire.batch_size not between 1 and 1000000 then
    raise exception 'bad batch_size: %', coalesce(expire.batch_size::text, 'null') using errcode = 'ONARG',
      detail = 'Expected 1 to 1000000 keys.', hint = 'Leave it out for 5000.';
  end if;
  select e.* into v_pass from once.expiry e for update skip locked;
  if not found then
    return query select 'busy', null::text, 'another call of once.expire() is at work', 0::bigint, false;
    return;
  end if;
  perform once.ensure_durable();

  -- Not at each of many calls in a row.
  return query
  update once.scope s set horizon = now() - s.retention
   where s.retention is not null and (s.horizon < now() - s.retention - interval '1 minute') is not false
  returning 'horizon', s.scope,
    'older than ' || to_char(s.horizon at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' is expired',
    0::bigint, false;

  delete from once.expired_claim e
   where e.ctid = any (array(select o.ctid from once.expired_claim o
                              where o.answered_at < now() - interval '2 days'
                              order by o.answered_at limit expire.batch_size));
  get diagnostics v_count = row_count;
  if v_count > 0 then
    return query
    select 'delete', null::text, 'records of expired claims', v_count, v_count = expire.batch_size;
  end if;

  if v_pass.finished_on = v_today or not exists (select from once.scope s where s.horizon is not null) then
    return;
  end if;
  if v_pass.begun_at is null then
    update once.scope s set delete_before = (s.horizon at time zone 'UTC')::date where s.horizon is not null;
    update once.expiry e
       set begun_at = now(), begun_by = pg_current_xact_id(), waits_for = null, next_block = 0;
    return query
    select 'delete', null::text, 'keys past their horizon: from the next call on', 0::bigint, true;
    return;
  end if;
  return query select * from once.await_claims();
  if not exists (select from once.expiry e where e.waits_for = '{}') then return; end if;
  return query select * from once.delete_keys(expire.batch_size);
end $$;
comment on function once.expire(integer) is
  'One step of retention: select * from once.expire(); again, in another transaction, while a row says more.';
call once.allow('recover', 'expire');
