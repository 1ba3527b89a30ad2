-- What recovery reads, often, so it is lean: this database's prepared transactions with our prefix. The view
-- for people is once.in_doubt. Anybody can choose a gid; ours have the right gid, owner and database.
create view once.branch as with prepared as materialized (
  select p.gid, p.owner, p.prepared from pg_catalog.pg_prepared_xacts p
   where p.database = current_database() and p.gid like 'once:%'
), owner as materialized (
  select o.owner, once.may_vote(o.owner) as may_vote, once.may_finish(o.owner) as may_finish
    from (select distinct p.owner from prepared p) o
), decoded as materialized (
  select g.* from once.decode_gids(array(select p.gid from prepared p)) g
)
select p.gid, g.transaction_id, g.home, g.home_xid, g.participant, p.owner, p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age, g.manager = 'pgonce' and o.may_vote as ours,
       o.may_finish as can_finish
  from prepared p join owner o on o.owner is not distinct from p.owner
  join decoded g on g.gid = p.gid;
comment on view once.branch is
  'Prepared transactions here with our prefix: gid, owner, age, whether ours, whether you may finish it.';
call once.allow('app, recover, monitor', 'branch', 'select');
