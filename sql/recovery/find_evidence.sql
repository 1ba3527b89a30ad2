-- Purging, step 2 (participant): which of these transactions committed their branch here.
create function once.find_evidence(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  return query
  select e.transaction_id from once.evidence e where e.transaction_id = any (find_evidence.transaction_ids);
end $$;
comment on function once.find_evidence(uuid[]) is
  'Participant: those of the given transactions whose branch committed in this database.';
call once.allow('app, recover', 'find_evidence');
