-- Records a loss that the audit found; once, however many auditors find it. True if it is new.
create function once.record_heuristic(transaction_id uuid, participant text, home uuid, kind text) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  -- An application writes the name: one that does not fit must not keep the audit from what comes after it.
  insert into once.heuristic (transaction_id, participant, home, kind)
  values (record_heuristic.transaction_id, coalesce(left(record_heuristic.participant, 200), ''),
          record_heuristic.home, record_heuristic.kind)
  on conflict do nothing;
  return found;
end
$$;

comment on function once.record_heuristic(uuid, text, uuid, text) is
  'Records that a decision (lost decision) or a branch (lost branch) was lost; true if it was not known yet.';
revoke all on function once.record_heuristic(uuid, text, uuid, text) from public;
