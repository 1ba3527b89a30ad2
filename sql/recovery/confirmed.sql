-- Purging, step 6 (home): decisions confirmed a while ago, whose evidence may be deleted. Not at once: a
-- standby that takes over without the mark would find a decision whose evidence is gone, and call that a
-- loss. The time decides when to look, and nothing else: a later question is answered 'purged'.
create function once.confirmed(
  batch_size integer default 1000, keep interval default '5 minutes',
  after_confirmed_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], confirmed_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if confirmed.batch_size < 0 then
    raise exception 'bad batch_size: %', confirmed.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  -- Within what a timestamp can hold.
  return query select g.transaction_id, g.participants, g.database_ids, g.confirmed_at
    from once.global_transaction g
   where g.confirmed_at
         <= now() - greatest(least(confirmed.keep, interval '1000 years'), interval '-1000 years')
     and (g.confirmed_at, g.transaction_id) > (confirmed.after_confirmed_at, confirmed.after_id)
   order by g.confirmed_at, g.transaction_id limit confirmed.batch_size;
end $$;
comment on function once.confirmed(integer, interval, timestamptz, uuid) is
  'Home: decisions confirmed longer ago than keep, whose evidence may go, oldest first, after the given one.';
call once.allow('recover', 'confirmed');
