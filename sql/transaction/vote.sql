-- A participant's vote, right before PREPARE TRANSACTION: false if this branch wrote nothing (commit it
-- plainly, it needs no gid); else true, and the evidence stands in the branch's own transaction.
--
-- Whoever remembers the participant's identity names it: the decision carries it, and evidence in a database that
-- has another by now would never be found. Null: it was read here just now.
create function once.vote(transaction_id uuid, home uuid, participant text, participant_home uuid default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  -- Asked here as well, which is the faster way to hear that all is well.
  if current_setting('once.transaction', true) is distinct from vote.transaction_id || ' ' || current_user then
    perform once.check_open(vote.transaction_id);
  end if;
  if pg_current_xact_id_if_assigned() is null then
    return false;
  end if;
  if vote.transaction_id is null or vote.home is null or vote.participant is null then
    raise exception 'null is not allowed as transaction_id, home or participant'
      using errcode = 'ONARG', detail = 'All three stand in the gid, and in the evidence of the branch.',
            hint = 'select once.vote(<transaction>, <once.home_id() of the home>, ''billing'')';
  end if;
  if vote.participant_home is not null and not exists (select from once.identity i where i.id = vote.participant_home) then
    raise exception 'this database is %, not the participant %', (select i.id from once.identity i), vote.participant_home
      using errcode = 'ONIDN', detail = 'The evidence is looked for in the database whose identity stands in the decision.',
            hint = 'select once.home_id(); anew, and begin the transaction anew.';
  end if;
  insert into once.evidence (transaction_id, home, participant)
  values (vote.transaction_id, vote.home, vote.participant)
  on conflict on constraint evidence_pkey do nothing;
  if not found then
    -- A second vote of one transaction names another home: the first candidate had written nothing. Only our own
    -- row is replaced: one that was there before would count as ours before we commit, and recovery would forget a
    -- decision whose branch is still prepared. So that is an error (23505), and the transaction is rolled back.
    perform once.narrow_global(vote.transaction_id, '{}', '{}');
    insert into once.evidence (transaction_id, home, participant)
    values (vote.transaction_id, vote.home, vote.participant);
  end if;
  return true;
end
$$;

comment on function once.vote(uuid, uuid, text, uuid) is
  'Participant, before PREPARE: false if it wrote nothing; else inserts the evidence of the branch and returns true.';
revoke all on function once.vote(uuid, uuid, text, uuid) from public;
