-- Sequences processed ahead of their producer's watermark: ranges that neither overlap nor touch, first and
-- last included. A row per range, so that a claim touches only the ranges next to it: in one value on the
-- producer's row the 1,000th gap made a claim 28 times as dear. Who changes rows here updates the producer's.
create table once.claimed_ahead (
  producer once.name, first bigint, last bigint not null, primary key (producer, first)
)
-- A stream that goes on behind a gap updates "last" again and again: HOT, as it is in no index.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table once.claimed_ahead is
  'Ledger by sequence: ranges processed ahead of their producer''s watermark, one row per range.';
call once.allow('app', 'claimed_ahead', 'select, insert, update (last), delete');

create view once.producers as
select p.producer, p.epoch, p.watermark, p.gaps::bigint as gaps,
       coalesce((select a.last from once.claimed_ahead a
                  where a.producer = p.producer order by a.first desc limit 1), p.watermark) as highest,
       p.max_gaps from once.producer p;
comment on view once.producers is
  'Per producer: epoch, watermark, how many gaps are open, the highest sequence claimed, the limit of gaps.';
call once.allow('app, monitor', 'producers', 'select');
