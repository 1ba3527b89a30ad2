-- What an operator wants to know at three in the morning: every prepared transaction of this database, ours
-- or not, what it locks, whom it blocks, and what was decided.
--
-- pg_locks is read once, which is most of the cost. A prepared transaction's locks carry no pid, and until a
-- restart they carry the virtual transaction of the session that prepared it (from then on '-1/<xid>', which
-- the documentation of pg_prepared_xacts joins by). Its lock on its own xid tells which it is, either way.
--
-- Who waits is worked out here: pg_blocking_pids() would be asked per session, locks the lock table each
-- time, and calls every prepared transaction 0. A session waits for those that hold what it wants in a mode
-- that conflicts, and for those before it in the queue that want so; hence for a prepared transaction
-- through any number of others, as every reader behind an ALTER TABLE that waits for it.
--
-- A function, so that it can tell the planner to hash: nothing is known of how many rows pg_locks has, and a
-- nested loop over two lists of a thousand each takes longer than all the rest.
create function once.inspect()
returns table (
  gid text,
  manager text,
  global_id text,
  participant text,
  transaction_id uuid,
  home uuid,
  home_xid text,
  owner name,
  ours boolean,
  can_finish boolean,
  prepared_at timestamptz,
  age interval,
  xid_age integer,
  locks text[],
  blocks integer,
  blocked_pids integer[],
  longest_wait interval,
  decision text
)
language plpgsql volatile
set search_path = ''
set enable_nestloop = off
set enable_mergejoin = off
set enable_sort = off
as $$
begin
  return query
  with recursive prepared as materialized (
    select p.gid, p.transaction, p.owner, p.prepared, g.*
      from pg_catalog.pg_prepared_xacts p
     cross join lateral once.decode_gid(p.gid) g
     where p.database = current_database()
  ), lock as materialized (
    select l.* from pg_catalog.pg_locks l
  ), holder as materialized (
    select p.transaction, l.virtualtransaction, row_number() over () as n
      from prepared p
      join lock l on l.locktype = 'transactionid' and l.transactionid = p.transaction
     where l.pid is null and l.granted
  ), relation as materialized (
    -- A lock on an index always comes with one on its table.
    select c.oid, c.oid::regclass::text as name, row_number() over (order by c.oid::regclass::text collate "C") as rank
      from (select distinct l.relation from lock l where l.locktype = 'relation' and l.pid is null
               and l.database in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))) r
      join pg_catalog.pg_class c on c.oid = r.relation and c.relkind not in ('i', 'I')
  ), held as (
    -- Sorted by numbers: by names it takes twice as long.
    select h.n, array_agg(r.name || ' ' || l.mode order by r.rank, length(l.mode)) as locks
      from lock l
      join relation r on r.oid = l.relation
      join holder h on h.virtualtransaction = l.virtualtransaction
     where l.locktype = 'relation' and l.pid is null and l.granted
     group by h.n
  ), conflict (mode, with_modes) as (
    -- https://www.postgresql.org/docs/current/explicit-locking.html#TABLE-LOCK-COMPATIBILITY
    values ('AccessShareLock', '{AccessExclusiveLock}'::text[]),
           ('RowShareLock', '{ExclusiveLock,AccessExclusiveLock}'),
           ('RowExclusiveLock', '{ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
           ('ShareUpdateExclusiveLock', '{ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
           ('ShareLock', '{RowExclusiveLock,ShareUpdateExclusiveLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
           ('ShareRowExclusiveLock', '{RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
           ('ExclusiveLock', '{RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
           ('AccessExclusiveLock', '{AccessShareLock,RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}')
  ), waiting as materialized (
    select l.*, c.with_modes from lock l join conflict c on c.mode = l.mode where not l.granted
  ), edge as materialized (
    select w.pid as waiter, b.pid as blocker, b.virtualtransaction
      from waiting w
      join lock b on b.locktype = w.locktype
                 and coalesce(b.relation, 0) = coalesce(w.relation, 0)
                 and coalesce(b.transactionid, '0') = coalesce(w.transactionid, '0')
                 and b.database is not distinct from w.database
                 and b.page is not distinct from w.page
                 and b.tuple is not distinct from w.tuple
                 and b.virtualxid is not distinct from w.virtualxid
                 and b.classid is not distinct from w.classid
                 and b.objid is not distinct from w.objid
                 and b.objsubid is not distinct from w.objsubid
     where b.mode = any (w.with_modes)
       and (b.granted or b.waitstart < w.waitstart)
       and b.pid is distinct from w.pid
  ), blocked (virtualtransaction, pid) as (
    select e.virtualtransaction, e.waiter from edge e where e.blocker is null
    union
    select b.virtualtransaction, e.waiter from blocked b join edge e on e.blocker = b.pid
  ), blocks as (
    select b.virtualtransaction, count(*)::integer as sessions, array_agg(b.pid order by b.pid) as pids,
           max(clock_timestamp() - w.waitstart) as longest_wait
      from blocked b
      join waiting w on w.pid = b.pid
     group by b.virtualtransaction
  ), owner as materialized (
    select o.owner, once.may_vote(o.owner) as may_vote, once.may_finish(o.owner) as can_finish
      from (select distinct p.owner from prepared p) o
  ), ours as materialized (
    select p.home, p.transaction_id, p.home_xid
      from prepared p
      join owner o on o.owner = p.owner and o.may_vote
     where p.manager = 'pgonce'
  ), verdict as materialized (
    select distinct v.transaction_id, v.home_xid, v.verdict
      from (select array_agg(o.home) as homes, array_agg(o.transaction_id) as ids, array_agg(o.home_xid) as xids from ours o) a,
           once.verdicts(a.homes, a.ids, a.xids) v
  )
  select p.gid,
         -- Whose gid has our form, but who could not have made it, is nobody we know.
         case when p.manager = 'pgonce' and o.may_vote is not true then 'unknown' else p.manager end,
         p.global_id,
         p.participant,
         p.transaction_id,
         p.home,
         p.home_xid,
         p.owner,
         p.manager = 'pgonce' and o.may_vote is true,
         coalesce(o.can_finish, false),
         p.prepared,
         clock_timestamp() - p.prepared,
         age(p.transaction),
         coalesce(held.locks, '{}'),
         coalesce(k.sessions, 0),
         coalesce(k.pids, '{}'),
         k.longest_wait,
         case when p.manager = 'pgonce' and o.may_vote then v.verdict else 'not ours: ask its manager' end
    from prepared p
    left join owner o on o.owner = p.owner
    left join verdict v on v.transaction_id = p.transaction_id and v.home_xid = p.home_xid
    left join holder h on h.transaction = p.transaction
    left join held on held.n = h.n
    left join blocks k on k.virtualtransaction = h.virtualtransaction;
end
$$;

comment on function once.inspect() is 'Internal: the rows of the view once.in_doubt.';
revoke all on function once.inspect() from public;
