-- A participant's vote, right before PREPARE TRANSACTION: false if this branch wrote nothing (commit it
-- plainly, it needs no gid); else true, and the evidence stands in the branch's own transaction.
create function once.vote(transaction_id uuid, home uuid, participant text) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_open(vote.transaction_id);
  if pg_current_xact_id_if_assigned() is null then
    return false;
  end if;
  -- A second vote of one transaction names another home: the first candidate had written nothing.
  insert into once.evidence as e (transaction_id, home, participant)
  values (vote.transaction_id, vote.home, vote.participant)
  on conflict on constraint evidence_pkey do update set home = excluded.home, participant = excluded.participant;
  return true;
end
$$;

comment on function once.vote(uuid, uuid, text) is
  'Participant, before PREPARE: false if it wrote nothing; else inserts the evidence of the branch and returns true.';
revoke all on function once.vote(uuid, uuid, text) from public;
