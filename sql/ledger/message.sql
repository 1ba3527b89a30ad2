-- The ledger by key. A key is kept as 16 bytes (once.message_digest): no limit of an index, and no personal
-- data. The first 2 bytes are the day (UTC) of the message itself, never of its arrival, 0 if it has no time;
-- the other 14 begin a SHA-256 over scope and key. A collision needs some 2^56 keys of one day.
--
-- One table, and no partitions: a partition per day made claims depend on DDL, let whoever chose keys choose
-- partitions, held up all messages of a day until the first one's handler ended, and could not be dropped
-- under load. Since the day stands in front, the index does the same: new keys go to its end, and a deleted
-- day leaves whole pages empty for reuse. A row with neither hash nor result fits into 48 bytes.
create table once.message (
  digest uuid primary key, scope_id integer not null,
  -- The day of the claim, if the message has no time: retention counts from there.
  claimed_on date,
  payload_hash bytea, result jsonb
)
-- A day's worth of rows goes at once; 20 % of a large ledger would be many days.
with (autovacuum_vacuum_scale_factor = 0.05);
comment on table once.message is
  'Ledger by key: digest of day, scope and key; day of the claim if there is no time; payload hash; result.';
call once.allow('app', 'message', 'select, insert, update (result)');
