-- Records a loss that the audit found; once, however many auditors find it. True if it is new.
create function once.record_heuristic(transaction_id uuid, participant text, home uuid, kind text) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  if record_heuristic.transaction_id is null or record_heuristic.home is null
     or coalesce(record_heuristic.kind, '') not in ('lost decision', 'lost branch') then
    raise exception 'bad loss: transaction %, home %, kind %', coalesce(record_heuristic.transaction_id::text, 'null'),
        coalesce(record_heuristic.home::text, 'null'), quote_nullable(left(record_heuristic.kind, 40))
      using errcode = 'ONARG', detail = 'Expected two ids, and lost decision or lost branch.',
            hint = 'Recovery records losses by itself: select * from once.audit()';
  end if;
  -- A branch that was forced is put beside its decision instead (once.judge_forced); it may have been committed
  -- before its home has decided.
  if record_heuristic.kind = 'lost decision'
     and exists (select from once.forced f
                  where f.transaction_id = record_heuristic.transaction_id and f.decision is distinct from 'committed') then
    return false;
  end if;
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
