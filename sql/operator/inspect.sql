-- What an operator wants to know at three in the morning: every prepared transaction of this database, ours
-- or not, what it locks, whom it blocks, and what was decided.
--
-- pg_locks is read once, which is most of the cost. A prepared transaction's locks carry no pid, and until a
-- restart the virtual transaction of the session that prepared it (then '-1/<xid>'). Its own xid's lock
-- tells.
--
-- Who waits is worked out here: pg_blocking_pids() locks the lock table for each session, and calls every
-- prepared transaction 0. A session waits for those that hold what it wants in a mode that conflicts, and for
-- those before it in the queue that want so; hence for a prepared transaction through any number of others.
--
-- A function, so that it can tell the planner to hash: nothing is known of how many rows pg_locks has, and a
-- nested loop over two lists of a thousand each takes longer than all the rest.
create function once.inspect() returns table (
  gid text, manager text, global_id text, participant text, transaction_id uuid, home uuid, home_xid text,
  owner name, ours boolean, can_finish boolean, prepared_at timestamptz, age interval, xid_age integer,
  locks text[], blocks integer, blocked_pids integer[], longest_wait interval, outcome text
)
language plpgsql volatile set search_path = '' set enable_nestloop = off set enable_mergejoin = off
set enable_sort = off as $$
begin
  return query with recursive prepared as materialized (
    select p.gid, p.transaction, p.owner, p.prepared from pg_catalog.pg_prepared_xacts p
     where p.database = current_database()
  ), owner as materialized (
    select o.owner, once.may_vote(o.owner) as may_vote, once.may_finish(o.owner) as can_finish
      from (select distinct p.owner from prepared p) o
  ), branch as materialized (
    select p.transaction, p.owner, p.prepared, g.*, coalesce(o.can_finish, false) as can_finish,
           g.manager = 'pgonce' and o.may_vote is true as ours
      from prepared p join once.decode_gids(array(select n.gid from prepared n)) g on g.gid = p.gid
      left join owner o on o.owner = p.owner
  ), lock as materialized (
    select l.* from pg_catalog.pg_locks l
  ), bundle as materialized (
    -- What prepared transactions hold, by what it is: there are many locks, but few relations and modes.
    select l.relation, l.mode, array_agg(l.virtualtransaction) as holders,
           array_agg(l.transactionid) filter (where l.relation is null) as transactions
      from lock l
     where l.pid is null and l.granted
       and (l.locktype = 'transactionid'
            or l.locktype = 'relation'
               and l.database in (0, (select d.oid from pg_catalog.pg_database d
                                       where d.datname = current_database())))
     group by l.relation, l.mode
  ), holder as materialized (
    select u.transaction, u.virtualtransaction
      from bundle b, unnest(b.transactions, b.holders) u (transaction, virtualtransaction)
     where b.relation is null and b.mode = 'ExclusiveLock'
  ), label as materialized (
    -- A lock on an index always comes with one on its table.
    select b.holders, c.oid::regclass::text || ' ' || b.mode as label from bundle b
      join pg_catalog.pg_class c on c.oid = b.relation and c.relkind not in ('i', 'I')
     order by c.oid::regclass::text collate "C", length(b.mode)
  ), held as materialized (
    -- In the labels' order, for which no array is sorted: hashing keeps the order in which rows come.
    select h.virtualtransaction, array_agg(h.label) as locks
      from (select unnest(l.holders) as virtualtransaction, l.label from label l) h
     group by h.virtualtransaction
  ), conflict (mode, with_modes) as (
    -- https://www.postgresql.org/docs/current/explicit-locking.html#TABLE-LOCK-COMPATIBILITY
    select m.modes[c.mode], array(select m.modes[n] from unnest(c.with_modes) n)
      from (values ('{AccessShareLock,RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,'
                    'ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'::text[])) m (modes),
           (values (1, '{8}'::integer[]), (2, '{7,8}'), (3, '{5,6,7,8}'), (4, '{4,5,6,7,8}'),
                   (5, '{3,4,6,7,8}'), (6, '{3,4,5,6,7,8}'), (7, '{2,3,4,5,6,7,8}'),
                   (8, '{1,2,3,4,5,6,7,8}')) c (mode, with_modes)
  ), waiting as materialized (
    select l.*, c.with_modes from lock l join conflict c on c.mode = l.mode where not l.granted
  ), edge as materialized (
    select w.pid as waiter, b.pid as blocker, b.virtualtransaction from waiting w
      join lock b on b.locktype = w.locktype and coalesce(b.relation, 0) = coalesce(w.relation, 0)
                 and coalesce(b.transactionid, '0') = coalesce(w.transactionid, '0')
                 and b.database is not distinct from w.database and b.page is not distinct from w.page
                 and b.tuple is not distinct from w.tuple and b.virtualxid is not distinct from w.virtualxid
                 and b.classid is not distinct from w.classid and b.objid is not distinct from w.objid
                 and b.objsubid is not distinct from w.objsubid
     where b.mode = any (w.with_modes) and (b.granted or b.waitstart < w.waitstart)
       and b.pid is distinct from w.pid
  ), blocked (virtualtransaction, pid) as (
    select e.virtualtransaction, e.waiter from edge e where e.blocker is null
    union
    select b.virtualtransaction, e.waiter from blocked b join edge e on e.blocker = b.pid
  ), blocks as materialized (
    select s.virtualtransaction, count(*)::integer as sessions, array_agg(s.pid) as pids,
           clock_timestamp() - min(s.waitstart) as longest_wait
      from (select b.virtualtransaction, b.pid, w.waitstart
              from blocked b join waiting w on w.pid = b.pid
             order by b.pid) s
     group by s.virtualtransaction
  ), ours as materialized (
    select distinct b.home, b.transaction_id, b.home_xid from branch b where b.ours
  ), outcome as materialized (
    select k.home, k.transaction_id, k.home_xid, k.outcome
      from (select array_agg(o.home) as homes, array_agg(o.transaction_id) as ids,
                   array_agg(o.home_xid) as xids from ours o) a,
           once.known_outcomes(a.homes, a.ids, a.xids) k
  )
  select b.gid,
         -- Whose gid has our form, but who could not have made it, is nobody we know.
         case when b.manager = 'pgonce' and not b.ours then 'unknown' else b.manager end, b.global_id,
         b.participant, b.transaction_id, b.home, b.home_xid, b.owner, b.ours, b.can_finish, b.prepared,
         clock_timestamp() - b.prepared, age(b.transaction), coalesce(held.locks, '{}'),
         coalesce(k.sessions, 0), coalesce(k.pids, '{}'), k.longest_wait,
         case when b.ours then u.outcome
              when b.owner is null and b.manager = 'pgonce' then 'its owner was dropped: see once.audit()'
              else 'not ours: ask its manager' end
    from branch b
    left join outcome u on u.home = b.home and u.transaction_id = b.transaction_id and u.home_xid = b.home_xid
    left join holder h on h.transaction = b.transaction
    left join held on held.virtualtransaction = h.virtualtransaction
    left join blocks k on k.virtualtransaction = h.virtualtransaction;
end $$;
comment on function once.inspect() is 'Internal: the rows of the view once.in_doubt.';
call once.allow('app, recover, monitor', 'inspect');
