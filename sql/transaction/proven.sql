-- Forgetting, step 4 (home): proven decisions that nobody is likely to ask about any more. The time only
-- decides when to look; a question that comes later is answered 'forgotten', never wrongly.
create function once.proven(batch_size integer default 1000, keep interval default '10 minutes')
returns table (transaction_id uuid, participants text[], participant_homes uuid[])
language plpgsql stable
set search_path = ''
as $$
begin
  if proven.batch_size < 0 then
    raise exception 'bad batch_size: %', proven.batch_size
      using errcode = 'ONARG', detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  -- Within what a timestamp can hold.
  return query
  select g.transaction_id, g.participants, g.participant_homes
    from once.global_transaction g
   where g.proven_at <= now() - greatest(least(proven.keep, interval '1000 years'), interval '-1000 years')
   order by g.proven_at
   limit proven.batch_size;
end
$$;

comment on function once.proven(integer, interval) is
  'Home: proven decisions older than keep (10 minutes), whose evidence may be deleted.';
revoke all on function once.proven(integer, interval) from public;
