-- How far once.expire has come. Once a day it goes through once.message from front to back, a stretch of
-- blocks per call. An index for it would cost each claim more than reading the table once a day.
create table once.expiry (
  singleton boolean primary key default true check (singleton),
  -- The day (UTC) of the last complete pass.
  finished_on date not null default '-infinity',
  -- Of the pass that is under way: when it began, and the transaction that fixed what it deletes.
  begun_at timestamptz, begun_by xid8,
  -- Transactions that may have read an older horizon, as virtual transaction ids; null: not looked yet.
  waits_for text[],
  next_block bigint not null default 0
);

insert into once.expiry default values;
comment on table once.expiry is
  'One row: the last complete pass of once.expire(), and where the pass under way goes on or waits.';
call once.allow('monitor', 'expiry', 'select');
