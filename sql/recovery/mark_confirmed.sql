-- Purging, step 5 (home): every participant's evidence was seen once more. Must be durable before any
-- evidence goes: a decision that is not confirmed, with neither branch nor evidence, is a loss.
create function once.mark_confirmed(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  update once.global_transaction g set confirmed_at = clock_timestamp()
   where g.transaction_id = any (mark_confirmed.transaction_ids) and g.proven_at is not null
     and g.confirmed_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.mark_confirmed(uuid[]) is
  'Home: marks proven decisions whose evidence was seen once more everywhere; returns how many were new.';
call once.allow('recover', 'mark_confirmed');
