-- What became of one global transaction, asked at its home. Why it holds: see once.branch_outcomes.
create function once.branch_outcome(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile set search_path = '' as $$
begin
  return (select b.outcome
            from once.branch_outcomes(branch_outcome.home, array[branch_outcome.transaction_id],
                                      array[branch_outcome.home_xid]) b);
end $$;
comment on function once.branch_outcome(uuid, uuid, xid8) is
  'Home: committed, aborted or pending for a branch in doubt (as its gid says). Conclusive at any moment.';
call once.allow('app, recover, monitor', 'branch_outcome');
