-- The ledger by key. A key is kept as the first 16 bytes of SHA-256 over scope and key: constant size
-- for any key, no index limit, and no personal data in the ledger. A collision needs some 2^64 keys.
--
-- A key lives in the partition of the day (UTC) of its own message, never of its arrival: the same
-- message always meets its first claim there, so a unique index a partition is enough, and retention is
-- dropping a partition. Keys with no time live in one partition apart and expire in batches.
--
-- The columns are ordered and sized to fit a row with neither hash nor result into 48 bytes.
create table once.message (
  digest uuid not null,
  scope_id integer not null,
  day date,
  claimed_on date,
  payload_hash bytea,
  result jsonb
) partition by list (day);

comment on table once.message is
  'Ledger by key: digest of (scope, key), the message''s own day (null: no time), optional payload hash and result.';

create table once.message_timeless partition of once.message (
  claimed_on not null default (now() at time zone 'UTC')::date,
  unique (digest)
) for values in (null);

comment on table once.message_timeless is
  'Keys whose messages carry no time, with the day of their claim; once.expire() deletes the oldest in batches.';

-- How far the expiry of the timeless keys has come. It reads the table once a day from front to back, a
-- stretch of blocks a call. No index serves it: a B-tree would cost 16 bytes a key, and the ranges of a
-- BRIN index never narrow again, so that once freed space is reused every one of them matches.
create table once.timeless_expiry (
  singleton boolean primary key default true check (singleton),
  next_block bigint not null default 0,
  finished_on date not null default '-infinity'
);

insert into once.timeless_expiry default values;

comment on table once.timeless_expiry is
  'One row: where once.expire() goes on among the timeless keys, and the day (UTC) of its last complete pass.';

-- The first day that was not dropped. Locking the row puts creators and droppers of partitions in one
-- queue; reading it under that lock means a dropped day is never created again.
create table once.message_floor (
  singleton boolean primary key default true check (singleton),
  day date not null
);

insert into once.message_floor (day) values ('-infinity');

comment on table once.message_floor is
  'One row: the first day whose partition was not dropped; older messages are answered expired.';
call once.allow('app', 'message', 'select, insert, update (result)');
call once.allow('app', 'message_timeless', 'select, insert, update (result)');
call once.allow('app, monitor', 'message_floor', 'select');
