-- Purging, step 1 (home): decisions whose branches are not proven yet, oldest first, a page at a time.
create function once.unproven(
  batch_size integer default 1000, after_decided_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], decided_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if unproven.batch_size < 0 then
    raise exception 'bad batch_size: %', unproven.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  return query select g.transaction_id, g.participants, g.database_ids, g.decided_at
    from once.global_transaction g
   where g.proven_at is null
     and (g.decided_at, g.transaction_id) > (unproven.after_decided_at, unproven.after_id)
   order by g.decided_at, g.transaction_id limit unproven.batch_size;
end $$;
comment on function once.unproven(integer, timestamptz, uuid) is
  'Home: decisions whose branches are not all proven, oldest first, after the given one.';
call once.allow('recover, monitor', 'unproven');
