-- The decisions. A row is inserted by the home's own transaction, so it is visible exactly if that committed:
-- the row is the decision, and there is no other log.
create table once.global_transaction (
  transaction_id uuid primary key,
  -- The home's own transaction, as it stands in every gid. Never given, so nobody can decide for another.
  home_xid xid8 not null default pg_current_xact_id(),
  -- The other participants: the name in their gid and the id of their database, in the same order.
  participants text[] not null, database_ids uuid[] not null,
  decided_at timestamptz not null default clock_timestamp(),
  -- When every participant's evidence had been seen; null: not yet.
  proven_at timestamptz,
  -- When all of it was seen once more, a while later; from then on it may be deleted.
  confirmed_at timestamptz check (confirmed_at is null or proven_at is not null),
  check (cardinality(participants) = cardinality(database_ids))
);

-- What the clean-up still has to look at, oldest first; and what it may purge.
create index global_transaction_unproven on once.global_transaction (decided_at, transaction_id)
 where proven_at is null;
create index global_transaction_proven on once.global_transaction (proven_at, transaction_id)
 where proven_at is not null and confirmed_at is null;
create index global_transaction_confirmed on once.global_transaction (confirmed_at, transaction_id)
 where confirmed_at is not null;
comment on table once.global_transaction is
  'Home: one row a committed global transaction, until every branch is proven to have committed.';
call once.allow('app', 'global_transaction', 'select, insert (transaction_id, participants, database_ids)');
call once.allow('recover', 'global_transaction', 'select, update (proven_at, confirmed_at), delete');
call once.allow('monitor', 'global_transaction', 'select');
call once.allow('operator', 'global_transaction', 'update (participants, database_ids)');
