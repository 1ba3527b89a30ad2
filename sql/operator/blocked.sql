-- The sessions that hang because of a prepared transaction. The query's text shows to members of
-- pg_read_all_stats, and to everybody for sessions of his own.
create view once.blocked as with doubt as materialized (
  select d.* from once.in_doubt d where d.blocks > 0
), pid as materialized (
  select b.pid,
         -- 0 is what Postgres calls any prepared transaction.
         array(select distinct x from unnest(pg_blocking_pids(b.pid)) x where x <> 0 order by x) as behind
    from (select distinct unnest(d.blocked_pids) as pid from doubt d) b
), lock as materialized (
  select l.pid, l.locktype, l.relation, l.mode, l.granted, l.waitstart from pg_catalog.pg_locks l
   where l.pid in (select p.pid from pid p) and (not l.granted or l.locktype = 'tuple')
)
select b.pid, d.gid, d.manager, d.outcome, clock_timestamp() - w.waitstart as waits_for,
       -- Who waits for a row waits for the transaction that wrote it, and holds the row's place in the queue.
       coalesce(w.relation, (select min(t.relation::text)::oid from lock t
                              where t.pid = b.pid and t.locktype = 'tuple'))::regclass as relation,
       w.locktype as waits_on, w.mode, p.behind, a.usename, a.application_name, a.client_addr, a.query
  from doubt d cross join lateral unnest(d.blocked_pids) b (pid) join pid p on p.pid = b.pid
  join lock w on w.pid = b.pid and not w.granted
  left join pg_catalog.pg_stat_activity a on a.pid = b.pid;
comment on view once.blocked is
  'By session: which prepared transaction it waits for, how long, for what, behind whom, and its query.';
call once.allow('recover, monitor', 'blocked', 'select');
