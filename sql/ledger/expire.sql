-- One bounded step of retention: moves the horizons of scopes that have a retention, deletes a batch of
-- timeless keys and of the records of expired claims, creates the partitions of the next days, drops partitions
-- that are past every scope's horizon. Call it again, each time in a transaction of its own, while a row says more.
--
-- It never holds claims up for long: deletes skip rows that are locked; a drop, which locks the whole
-- ledger, comes last, and one that does not get its lock within 200 ms is left to the next call.
-- SECURITY DEFINER because it creates and drops tables; for its search_path see once.ensure_partition.
create function once.expire(batch_size integer default 5000)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_expiry once.timeless_expiry;
  v_blocks constant integer := 1000;  -- of timeless keys a call: some 150,000 keys, read in tens of milliseconds
  v_end bigint;
  v_scope text;
  v_count bigint;
  v_deleted bigint := 0;
  v_floor date;
  v_new_floor date;
  v_day date;
  v_created date[] := '{}';
  v_doomed date[] := '{}';
  v_done boolean := false;
  v_lock_timeout text := current_setting('lock_timeout');
  v_today date := (now() at time zone 'UTC')::date;
begin
  if expire.batch_size is null or expire.batch_size not between 1 and 1000000 then
    raise exception 'bad batch_size: %', coalesce(expire.batch_size::text, 'null')
      using errcode = 'ONARG', detail = 'Expected 1 to 1000000 keys.', hint = 'Leave it out for 5000.';
  end if;

  select w.* into v_expiry from once.timeless_expiry w for update skip locked;
  if not found then
    return query select 'busy', null::text, 'another expiry is at work', 0::bigint, false;
    return;
  end if;
  perform once.ensure_durable();

  return query
  update once.scope s set horizon = greatest(s.horizon, now() - s.retention)
   where s.retention is not null
  returning 'horizon', s.scope,
    'older than ' || to_char(s.horizon at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' is expired',
    0::bigint, false;

  -- One pass over the timeless keys a day, as claimed_on is a day.
  if v_expiry.finished_on < v_today then
    v_end := pg_relation_size('once.message_timeless') / current_setting('block_size')::bigint;
    for v_scope, v_count in
      with doomed as (
        select m.ctid
          from once.message_timeless m join once.scope s on s.scope_id = m.scope_id
         where m.ctid >= format('(%s,0)', v_expiry.next_block)::tid
           and m.ctid < format('(%s,0)', v_expiry.next_block + v_blocks)::tid
           and m.claimed_on < ((now() - s.retention) at time zone 'UTC')::date
         limit expire.batch_size
           for update of m skip locked
      ), gone as (
        delete from once.message_timeless m where m.ctid = any (array(select d.ctid from doomed d))
        returning m.scope_id
      )
      select s.scope, count(*) from gone g join once.scope s on s.scope_id = g.scope_id group by s.scope order by s.scope
    loop
      v_deleted := v_deleted + v_count;
      return query select 'delete', v_scope, 'keys without time'::text, v_count, false;
    end loop;
    if v_deleted < expire.batch_size then
      v_expiry.next_block := v_expiry.next_block + v_blocks;
      if v_expiry.next_block >= v_end then
        v_expiry.next_block := 0;
        v_expiry.finished_on := v_today;
      end if;
      update once.timeless_expiry w set next_block = v_expiry.next_block, finished_on = v_expiry.finished_on;
    end if;
    if v_expiry.finished_on < v_today then
      return query select 'delete', null::text, format('keys without time: at block %s of %s', v_expiry.next_block, v_end),
                          0::bigint, true;
    end if;
  end if;

  delete from once.expired_claim e
   where e.ctid = any (array(select o.ctid from once.expired_claim o
                              where o.answered_at < now() - interval '2 days'
                              order by o.answered_at limit expire.batch_size));
  get diagnostics v_count = row_count;
  if v_count > 0 then
    return query select 'delete', null::text, 'records of expired claims'::text, v_count, v_count = expire.batch_size;
  end if;

  begin
    perform set_config('lock_timeout', '200ms', true);
    -- The queue of creators and droppers: see once.ensure_partition.
    select f.day into strict v_floor from once.message_floor f for update;

    if exists (select from once.scope) then
      for v_day in select v_today + n from generate_series(0, 2) n loop
        if to_regclass('once.message_' || to_char(v_day, 'YYYYMMDD')) is null and once.ensure_partition(v_day) then
          v_created := v_created || v_day;
        end if;
      end loop;
    end if;

    -- A scope that keeps for ever keeps every partition; a new scope starts at the floor.
    select (min(coalesce(s.horizon, '-infinity')) at time zone 'UTC')::date into v_new_floor from once.scope s;
    if v_new_floor > v_floor then
      select coalesce(array_agg(d.day order by d.day), '{}') into v_doomed
        from (select to_date(right(c.relname, 8), 'YYYYMMDD') as day
                from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
               where i.inhparent = 'once.message'::regclass and c.relname ~ '^message_[0-9]{8}$') d
       where d.day < v_new_floor;
      if v_doomed <> '{}' then
        -- Once we have this lock no claim is under way, so we see every scope that keeps its keys for longer.
        lock table only once.message in access exclusive mode;
        select (min(coalesce(s.horizon, '-infinity')) at time zone 'UTC')::date into v_new_floor from once.scope s;
        v_doomed := array(select d from unnest(v_doomed) d where d < v_new_floor order by d);
      end if;
    end if;
    if v_new_floor > v_floor then
      foreach v_day in array v_doomed[1:10] loop
        execute format('drop table once.%I', 'message_' || to_char(v_day, 'YYYYMMDD'));
      end loop;
      update once.message_floor f set day = coalesce(v_doomed[11], v_new_floor);
    end if;
    v_done := true;
  exception when lock_not_available then
    null;
  end;
  perform set_config('lock_timeout', v_lock_timeout, true);

  if v_done then
    return query select 'create', null::text, 'partition of ' || d, 1::bigint, false from unnest(v_created) d;
    return query select 'drop', null::text, 'partition of ' || d, 1::bigint, cardinality(v_doomed) > 10
                   from unnest(v_doomed[1:10]) d;
  else
    return query select 'busy', null::text, 'partitions are in use, left to the next call', 0::bigint, false;
  end if;
end
$$;

comment on function once.expire(integer) is
  'One step of retention (horizons, partitions, timeless keys): select * from once.expire(); again while a row says more.';
call once.allow('recover', 'expire');
