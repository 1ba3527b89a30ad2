-- What became of a global transaction, asked at its home:
--   committed  the decision row is visible: commit the branch
--   aborted    the home's transaction is over and left no row: roll the branch back
--   pending    the home's transaction still runs: ask again
--
-- Order is everything. First the status, then the row: the home commits its row before it stops being in
-- progress, so "over" followed by "no row" is conclusive; the other way round, it could commit between
-- the two readings. Hence VOLATILE and READ COMMITTED, where each statement takes a new snapshot.
--
-- The status answers "is it over?" and nothing else. Its 'committed' must not be believed: an xid that
-- was never flushed is given to a stranger after a crash, whose outcome it then tells. A stranger's xid
-- in progress only delays the answer.
create function once.decide(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_over boolean;
begin
  perform once.check_home(decide.home);
  if decide.transaction_id is null or decide.home_xid is null then
    raise exception 'transaction_id and home_xid must not be null'
      using errcode = 'ONARG', detail = 'Both stand in the gid.', hint = 'select * from once.in_doubt';
  end if;
  begin
    v_over := coalesce(pg_xact_status(decide.home_xid), 'too old') <> 'in progress';
  exception when invalid_parameter_value then
    v_over := true;  -- an xid that was lost in a crash before anything of it was flushed
  end;
  -- The xid too: a row with this id that another transaction inserted (anybody can read the id in the gid)
  -- is no decision.
  if exists (select from once.global_transaction g
              where g.transaction_id = decide.transaction_id and g.home_xid = decide.home_xid) then
    return 'committed';
  end if;
  return case when v_over then 'aborted' else 'pending' end;
end
$$;

comment on function once.decide(uuid, uuid, xid8) is
  'Home: committed, aborted or pending, for a branch in doubt (arguments from its gid). Conclusive at any moment.';
revoke all on function once.decide(uuid, uuid, xid8) from public;
