-- The ledger by sequence: one compact row per producer. All up to the watermark was processed, and the ranges
-- of once.claimed_ahead; what lies between may still arrive. No CHECK constraints: see once.name.
create table once.producer (
  producer once.name primary key, epoch integer not null default 0, watermark bigint not null default -1,
  -- How many rows of once.claimed_ahead are this producer's: each ends a gap.
  gaps integer not null default 0,
  max_gaps once.gap_limit not null default 1000
)
-- Every claim updates the row; free space on the page keeps those updates HOT, without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table once.producer is
  'Ledger by sequence, one row per producer: epoch, watermark (all up to it processed), ranges ahead of it.';
call once.allow('app', 'producer',
  'select, insert (producer, epoch, watermark), update (epoch, watermark, gaps)');
