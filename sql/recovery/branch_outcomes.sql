-- What became of global transactions, asked at their home:
--   committed  the decision row is visible: commit the branch
--   aborted    the home's transaction is over and left no row: roll the branch back
--   pending    the home's transaction still runs: ask again
--
-- Order is everything. First the statuses, then the rows: the home commits its row before it stops being in
-- progress, so "over" followed by "no row" is conclusive; the other way round, it could commit between the
-- two readings. Hence VOLATILE and READ COMMITTED, where each statement takes a new snapshot.
--
-- The status answers "is it over?" and nothing else. Its 'committed' must not be believed: an xid that was
-- never flushed is given to a stranger after a crash. A stranger in progress would only delay the answer; but
-- it may itself wait for it, so one that can be told from the home does not count.
create function once.branch_outcomes(home uuid, transaction_ids uuid[], home_xids xid8[])
returns table (transaction_id uuid, home_xid xid8, outcome text)
language plpgsql volatile set search_path = '' as $$
declare
  v_over boolean[];
  v_n integer; v_future constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  v_database constant oid := (
    select d.oid from pg_catalog.pg_database d where d.datname = current_database());
begin
  perform once.assert_home(branch_outcomes.home);
  if cardinality(branch_outcomes.transaction_ids) is distinct from cardinality(branch_outcomes.home_xids)
     or exists (select from unnest(branch_outcomes.transaction_ids, branch_outcomes.home_xids) i (id, xid)
                 where i.id is null or i.xid is null) then
    raise exception 'transaction_id and home_xid must not be null' using errcode = 'ONARG',
      detail = 'Both stand in the gid.', hint = 'select * from once.in_doubt';
  end if;
  -- All at once; only what may lie in the future, which is an error, one by one.
  v_over := array(
    select case when i.xid < v_future
                then coalesce(pg_xact_status(i.xid), 'too old') <> 'in progress' end
      from unnest(branch_outcomes.home_xids) with ordinality i (xid, n)
     order by i.n);
  for v_n in select i.n from unnest(v_over) with ordinality i (over, n) where i.over is null loop
    begin
      v_over[v_n] := coalesce(pg_xact_status(branch_outcomes.home_xids[v_n]), 'too old') <> 'in progress';
    exception when invalid_parameter_value then
      v_over[v_n] := true;  -- an xid that was lost in a crash before anything of it was flushed
    end;
  end loop;
  -- Is it ours that is in progress? With several databases in one cluster, a branch can get the xid that the
  -- home lost, even a branch of the very same transaction, or whoever waits for one: they would wait for this
  -- answer, and it for them. The home holds the lock on its xid until it is over; it is a transaction of this
  -- database; and nobody prepares it as another home's branch. Between status and row, as the status is: if
  -- the home holds the lock no more, its row is read after it was over. Prepared ones are looked up behind
  -- the locks: they are taken from the list when they are over and before their locks go.
  if false = any (v_over) then
    v_over := array(
      with locks as materialized (
        select l.locktype, l.database, l.transactionid, l.pid, l.mode from pg_catalog.pg_locks l
         where l.granted and l.locktype in ('transactionid', 'relation'))
      select i.over or not exists (
               select from locks l
                where l.transactionid = i.xid::xid and l.mode = 'ExclusiveLock'
                  and case
                        when l.pid is null then exists (
                          select from pg_catalog.pg_prepared_xacts p
                           where p.transaction = l.transactionid and p.database = current_database()
                             and (p.gid not like 'once:1:%'
                                  or p.gid like 'once:1:' || branch_outcomes.home || ':%'))
                        else not exists (
                          select from locks r
                           where r.pid = l.pid and r.locktype = 'relation'
                             and r.database not in (0, v_database))
                      end)
        from unnest(branch_outcomes.home_xids, v_over) with ordinality i (xid, over, n)
       order by i.n);
  end if;
  -- The xid too: a row with this id (anybody can read it in the gid) by another transaction is no decision.
  return query select i.id, i.xid,
         case when g.transaction_id is not null then 'committed' when i.over then 'aborted' else 'pending' end
    from unnest(branch_outcomes.transaction_ids, branch_outcomes.home_xids, v_over) i (id, xid, over)
    left join once.global_transaction g on g.transaction_id = i.id and g.home_xid = i.xid;
end $$;
comment on function once.branch_outcomes(uuid, uuid[], xid8[]) is
  'Home: once.branch_outcome for many branches at once.';
call once.allow('app, recover, monitor', 'branch_outcomes');
