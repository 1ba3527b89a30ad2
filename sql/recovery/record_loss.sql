-- Records a loss that the audit found; once, however many auditors find it. True if it is new.
create function once.record_loss(transaction_id uuid, participant text, home uuid, kind text) returns boolean
language plpgsql volatile set search_path = '' as $$
begin
  if record_loss.transaction_id is null or record_loss.home is null
     or coalesce(record_loss.kind, '') not in ('lost decision', 'lost branch') then
    raise exception 'bad loss: transaction %, home %, kind %',
        coalesce(record_loss.transaction_id::text, 'null'), coalesce(record_loss.home::text, 'null'),
        quote_nullable(left(record_loss.kind, 40))
      using errcode = 'ONARG', detail = 'Expected two ids, and lost decision or lost branch.',
      hint = 'Recovery records losses by itself: select * from once.audit()';
  end if;
  -- A forced branch may have been committed before its home decided: see once.judge_heuristic.
  if record_loss.kind = 'lost decision'
     and exists (select from once.heuristic h
                  where h.transaction_id = record_loss.transaction_id
                    and h.decided is distinct from 'committed') then
    return false;
  end if;
  -- An application writes the name: one that does not fit must not keep the audit from what comes after it.
  insert into once.loss (transaction_id, participant, home, kind)
  values (record_loss.transaction_id, coalesce(left(record_loss.participant, 200), ''),
          record_loss.home, record_loss.kind) on conflict do nothing;
  return found;
end $$;
comment on function once.record_loss(uuid, text, uuid, text) is
  'Records that a decision (lost decision) or a branch (lost branch) was lost; true if it was not known yet.';
call once.allow('recover', 'record_loss');
