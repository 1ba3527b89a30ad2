-- Purging, step 8 (home): the evidence is gone everywhere, so is the row. Raises the mark that makes
-- once.outcome say 'purged' from now on; rows that are not confirmed are never touched.
create function once.purge(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  with gone as (
    delete from once.global_transaction g
     where g.transaction_id = any (purge.transaction_ids) and g.confirmed_at is not null returning g.home_xid
  ), mark as (
    update once.database i set purged_xid = greatest(i.purged_xid, (select max(g.home_xid) from gone g))
     where exists (select from gone)
  )
  select count(*) into v_count from gone;
  return v_count;
end $$;
comment on function once.purge(uuid[]) is
  'Home: deletes confirmed decisions, whose evidence is gone; returns how many.';
call once.allow('recover', 'purge');
