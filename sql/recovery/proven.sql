-- Purging, step 4 (home): proven decisions, to be confirmed: their evidence is looked for once more. A
-- participant whose standby took over without the newest transactions has lost evidence that we had seen; if
-- it is gone, and nothing is prepared, the branch was lost. So keep is also how far a standby may lag without
-- a loss going unnoticed. The time decides when to look, nothing else.
create function once.proven(
  batch_size integer default 1000, keep interval default '5 minutes',
  after_proven_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], proven_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if proven.batch_size < 0 then
    raise exception 'bad batch_size: %', proven.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  -- Within what a timestamp can hold.
  return query select g.transaction_id, g.participants, g.database_ids, g.proven_at
    from once.global_transaction g
   where g.proven_at <= now() - greatest(least(proven.keep, interval '1000 years'), interval '-1000 years')
     and g.confirmed_at is null
     and (g.proven_at, g.transaction_id) > (proven.after_proven_at, proven.after_id)
   order by g.proven_at, g.transaction_id limit proven.batch_size;
end $$;
comment on function once.proven(integer, interval, timestamptz, uuid) is
  'Home: decisions proven longer ago than keep, to be confirmed, oldest first, after the given one.';
call once.allow('recover', 'proven');
