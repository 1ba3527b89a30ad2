-- As once.branch_outcome, for an application that lost the connection, which may ask long after the last
-- branch was finished and the row purged. So an absent row means 'aborted' only for transactions newer than
-- every purged one, else 'purged': committed and cleaned up, or aborted.
create function once.outcome(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile set search_path = '' as $$
declare v_outcome text := once.branch_outcome(outcome.home, outcome.transaction_id, outcome.home_xid);
begin
  -- Read after the row: a row that was purged before we looked for it has raised the mark before.
  if v_outcome = 'aborted' and (select i.purged_xid >= outcome.home_xid from once.database i) then
    return 'purged';
  end if;
  return v_outcome;
end $$;
comment on function once.outcome(uuid, uuid, xid8) is
  'Home: committed, aborted, pending or purged (too long ago to tell), for the question of an application.';
call once.allow('app, recover', 'outcome');
