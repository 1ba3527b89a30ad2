-- The ledger by key. A key is kept as 16 bytes of constant size (once.message_digest): no limit of an index,
-- and no personal data in the ledger. The first 2 bytes are the day (UTC) of the message itself, never of its
-- arrival, 0 if it has no time; the other 14 are the beginning of a SHA-256 over scope and key. A collision
-- needs some 2^56 keys of one day.
--
-- One table, and no partitions. A partition per day made every claim depend on DDL: whoever chose keys chose
-- partitions, thousands of them; the first message of a day held up all others of it until its handler ended;
-- one that is dropped locks the whole ledger, which never happened under load. Since the day stands in front,
-- the index does what partitions did: new keys go to the end of it, and a day that is deleted leaves whole
-- pages empty for reuse.
--
-- The columns are ordered and sized to fit a row with neither hash nor result into 48 bytes.
create table once.message (
  digest uuid primary key,
  scope_id integer not null,
  -- The day of the claim, if the message has no time: retention counts from there.
  claimed_on date,
  payload_hash bytea,
  result jsonb
)
-- A day's worth of rows goes at once; 20 % of a large ledger would be many days.
with (autovacuum_vacuum_scale_factor = 0.05);

comment on table once.message is
  'Ledger by key: digest of day, scope and key; day of the claim if there is no time; payload hash; result.';
call once.allow('app', 'message', 'select, insert, update (result)');
