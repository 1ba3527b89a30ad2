-- What became of one global transaction, asked at its home: committed, aborted or pending. The law, and why
-- it holds, stand in once.decide_batch.
create function once.decide(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile
set search_path = ''
as $$
begin
  return (select d.decision
            from once.decide_batch(decide.home, array[decide.transaction_id], array[decide.home_xid]) d);
end
$$;

comment on function once.decide(uuid, uuid, xid8) is
  'Home: committed, aborted or pending, for a branch in doubt (arguments from its gid). Conclusive at any moment.';
revoke all on function once.decide(uuid, uuid, xid8) from public;
