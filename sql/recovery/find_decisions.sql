-- The audit's question to a home: which of these decisions do you still have, proven, confirmed?
create function once.find_decisions(transaction_ids uuid[])
returns table (transaction_id uuid, proven boolean, confirmed boolean)
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_home(once.database_id());
  return query select g.transaction_id, g.proven_at is not null, g.confirmed_at is not null
    from once.global_transaction g where g.transaction_id = any (find_decisions.transaction_ids);
end $$;
comment on function once.find_decisions(uuid[]) is
  'Home: which of the given transactions have a decision row here, and whether it is proven, and confirmed.';
call once.allow('recover', 'find_decisions');
