-- What an operator wants to know at three in the morning, in one query; how it is found: once.inspect.
create view once.in_doubt as
select i.gid, i.manager, i.global_id, i.participant, i.transaction_id, i.home, i.home_xid, i.owner, i.ours,
       i.can_finish, i.prepared_at, i.age, i.xid_age, i.locks, i.blocks, i.blocked_pids, i.longest_wait,
       i.outcome from once.inspect() i;
comment on view once.in_doubt is
  'Every prepared transaction of this database: manager, ids, owner, age, locks, whom it blocks, outcome.';
comment on column once.in_doubt.manager is
  'Whose it is, by the form of its gid; only pgonce''s are finished from here.';
comment on column once.in_doubt.can_finish is 'Whether Postgres lets you finish it; not whether you should.';
comment on column once.in_doubt.xid_age is 'Transactions since it began: younger dead rows stay.';
comment on column once.in_doubt.locks is 'Relations that it locks, with modes; row locks show in who waits.';
comment on column once.in_doubt.blocks is 'How many sessions wait for it, directly or behind others that do.';
comment on column once.in_doubt.outcome is 'committed, aborted, pending; or where to ask.';
call once.allow('app, recover, monitor', 'in_doubt', 'select');
