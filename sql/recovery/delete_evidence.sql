-- Purging, step 7 (participant): the home has confirmed these. Durable, or the evidence could come back in a
-- crash after its home row went, and look like a lost decision.
create function once.delete_evidence(home uuid, transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- A forced branch loses its proof with this: keep what it proved. Its home has decided to commit.
  update once.heuristic f set decided = 'committed', done = 'committed', judged_at = clock_timestamp()
   where f.transaction_id = any (delete_evidence.transaction_ids) and f.home = delete_evidence.home
     and f.judged_at is null
     and exists (select from once.evidence e where e.transaction_id = f.transaction_id);
  delete from once.evidence e
   where e.transaction_id = any (delete_evidence.transaction_ids) and e.home = delete_evidence.home;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.delete_evidence(uuid, uuid[]) is
  'Participant: deletes evidence of transactions that their home has confirmed.';
call once.allow('recover', 'delete_evidence');
