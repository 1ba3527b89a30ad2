-- The ledger by sequence: one compact row a producer. Everything up to the watermark was processed, and
-- so was everything in "ahead"; what lies between is a gap that may still arrive. An ordered stream
-- keeps "ahead" empty, so its row never grows. No CHECK constraints: see once.name.
create table once.producer (
  producer once.name primary key,
  epoch integer not null default 0,
  watermark bigint not null default -1,
  ahead int8multirange not null default '{}',
  max_gaps once.gap_limit not null default 1000
)
-- Every claim updates the row; free space on the page keeps those updates HOT, without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on table once.producer is
  'Ledger by sequence, one row a producer: epoch, watermark (all up to it processed) and ranges processed ahead of it.';

create view once.producers as
select p.producer, p.epoch, p.watermark,
       (select count(*) from unnest(p.ahead)) as gaps,
       coalesce(upper(p.ahead) - 1, p.watermark) as highest,
       p.max_gaps
  from once.producer p;

comment on view once.producers is
  'Per producer: epoch, watermark, how many gaps are open, the highest sequence claimed, the limit of gaps.';
call once.allow('app', 'producer', 'select, insert (producer, epoch), update (epoch, watermark, ahead)');
call once.allow('app, monitor', 'producers', 'select');
