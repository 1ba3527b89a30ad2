-- Purging, step 3 (home): every participant's evidence of these transactions was seen.
create function once.mark_proven(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  update once.global_transaction g set proven_at = clock_timestamp()
   where g.transaction_id = any (mark_proven.transaction_ids) and g.proven_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.mark_proven(uuid[]) is
  'Home: marks decisions whose evidence was seen at every participant; returns how many were new.';
call once.allow('recover', 'mark_proven');
