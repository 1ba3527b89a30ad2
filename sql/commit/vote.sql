-- A participant's vote, right before PREPARE TRANSACTION: false if this branch wrote nothing (commit it
-- plainly, it needs no gid); else true, and the evidence stands in the branch's own transaction. A caller
-- that remembers the participant's database id names it: the decision carries it, and if this database has
-- another id by now, its evidence would never be found. Null: it was read here just now.
create function once.vote(
  transaction_id uuid, home uuid, participant text, database_id uuid default null
) returns boolean language plpgsql volatile set search_path = '' as $$
begin
  -- Asked here as well, which is the faster way to hear that all is well.
  if current_setting('once.transaction', true)
     is distinct from vote.transaction_id || ' ' || current_user then
    perform once.assert_branch(vote.transaction_id);
  end if;
  if pg_current_xact_id_if_assigned() is null then return false; end if;
  if vote.transaction_id is null or vote.home is null or vote.participant is null then
    raise exception 'null is not allowed as transaction_id, home or participant' using errcode = 'ONARG',
      detail = 'All three stand in the gid, and in the evidence of the branch.',
      hint = 'select once.vote(<transaction>, <once.database_id() of the home>, ''billing'')';
  end if;
  if vote.database_id is not null
     and not exists (select from once.database d where d.id = vote.database_id) then
    raise exception 'this database is %, not the participant %',
        (select d.id from once.database d), vote.database_id using errcode = 'ONIDN',
      detail = 'The evidence is looked for in the database whose id stands in the decision.',
      hint = 'select once.database_id(); anew, and begin the transaction anew.';
  end if;
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- A row that was there before would count as ours before we commit, and recovery would purge a decision
  -- whose branch is still prepared. So that is an error (23505), and the transaction is rolled back.
  insert into once.evidence (transaction_id, home, participant)
  values (vote.transaction_id, vote.home, vote.participant);
  return true;
end $$;
comment on function once.vote(uuid, uuid, text, uuid) is
  'Participant, before PREPARE: false if it wrote nothing; else inserts the evidence and returns true.';
call once.allow('app', 'vote');
