-- Forgetting, step 4 (home): proven decisions that nobody is likely to ask about any more. The time only
-- decides when to look; a question that comes later is answered 'forgotten', never wrongly.
create function once.proven(batch_size integer default 1000, keep interval default '10 minutes')
returns table (transaction_id uuid, participants text[], participant_homes uuid[])
language sql stable
set search_path = ''
as $$
  select g.transaction_id, g.participants, g.participant_homes
    from once.global_transaction g
   where g.proven_at <= now() - proven.keep
   order by g.proven_at
   limit proven.batch_size
$$;

comment on function once.proven(integer, interval) is
  'Home: proven decisions older than keep (10 minutes), whose evidence may be deleted.';
revoke all on function once.proven(integer, interval) from public;
