-- Makes sure that the partition of a day exists; false if that day was dropped, so its messages are
-- expired. SECURITY DEFINER, unlike everything else here, because a claim must be able to create a
-- missing partition and an application must not own the ledger. Its search_path names pg_temp, last: else
-- Postgres looks for types there first, and a caller's own type "date" would run code as our owner.
--
-- Creators and droppers take the floor row's lock first. So nobody creates a partition twice, and a day
-- at or above the floor cannot be dropped while we create it. Under REPEATABLE READ a floor that moved
-- after the snapshot is a serialization failure, never a stale answer. The partition is attached rather
-- than created in place because ATTACH lets other claims go on.
create function once.ensure_partition(day date) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_floor date;
  v_partitions bigint;
begin
  -- to_char would also render infinity and years beyond four digits; nothing but a plain day may be a name.
  if ensure_partition.day is null or ensure_partition.day not between '1970-01-01' and '2099-12-31' then
    raise exception 'bad day: %', coalesce(ensure_partition.day::text, 'null')
      using errcode = 'ONARG', detail = 'Expected a day between 1970-01-01 and 2099-12-31.',
            hint = 'Is the time in seconds where milliseconds were meant, or the reverse?';
  end if;
  v_name := 'message_' || to_char(ensure_partition.day, 'YYYYMMDD');
  select f.day into strict v_floor from once.message_floor f for update;
  if ensure_partition.day < v_floor then
    return false;
  end if;
  -- ATTACH takes this lock too. Taken here it makes us hear of a partition that was created while we
  -- waited, which to_regclass would not know of.
  lock table only once.message in share update exclusive mode;
  if to_regclass('once.' || v_name) is not null then
    return true;
  end if;
  select count(*) into v_partitions from pg_catalog.pg_inherits i where i.inhparent = 'once.message'::regclass;
  if v_partitions > 4000 then
    raise exception 'the key ledger has % partitions, the limit is 4000', v_partitions
      using errcode = 'ONMAX',
            detail = 'Each day that a message carries is a partition.',
            hint = 'Set a retention for every scope (select once.set_retention(''scope'', ''30 days'')) and run once.expire().';
  end if;
  execute format('create table once.%I (like once.message including defaults, unique (digest))', v_name);
  execute format('alter table once.message attach partition once.%I for values in (%L)', v_name, ensure_partition.day);
  return true;
end
$$;

comment on function once.ensure_partition(date) is
  'Creates the key ledger''s partition of a day if it is missing; false if that day was dropped already.';
call once.allow('app', 'ensure_partition');
