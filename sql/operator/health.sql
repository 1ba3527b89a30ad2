-- One row a check, for people and for alarms (pgonce metrics). A check that looks at something that is not in
-- use is ok and has no value. Names are those of Prometheus metrics, less the prefix, with the unit last.
create view once.health as
with prepared as materialized (
  select p.gid, p.database = current_database() as here, clock_timestamp() - p.prepared as age,
         age(p.transaction) as xid_age
    from pg_catalog.pg_prepared_xacts p
), branch as materialized (
  select b.gid, b.age, b.ours from once.branch b
), stranger as materialized (
  select p.gid, p.age from prepared p
   where p.here and not exists (select from branch b where b.gid = p.gid and b.ours)
), decision as materialized (
  select g.transaction_id, g.decided_at from once.global_transaction g
   where g.proven_at is null order by g.decided_at limit 10000
), unfinished as (
  -- A branch of ours that is prepared anywhere in this cluster, though it was decided here.
  select d.decided_at from once.decode_gids(array(select p.gid from prepared p where p.gid like 'once:%')) g
    join decision d on d.transaction_id = g.transaction_id
   where g.home = (select i.id from once.database i)
), finding (name, value, warn, critical, hint) as (
  select 'row_security_tables', count(*)::double precision, 1::double precision, 1::double precision,
         'rows of schema once are hidden from applications: '
         'alter table once.<table> disable row level security'
    from pg_catalog.pg_class c where c.relnamespace = 'once'::regnamespace and c.relrowsecurity
  union all select 'unsafe_settings', count(*), 1, null,
         'a crash can lose commits, or corrupt data: set fsync, full_page_writes and synchronous_commit on'
    from unnest(array['fsync', 'full_page_writes', 'synchronous_commit']) s where current_setting(s) = 'off'
  union all select 'in_doubt', count(*), null, null, null from branch b where b.ours
  union all select 'oldest_in_doubt_seconds', extract(epoch from max(b.age)), 30, 300,
         'select * from once.in_doubt order by prepared_at; select once.resolve() \gexec'
    from branch b where b.ours
  union all select 'prepared_slots_used_ratio',
         count(*) / nullif(current_setting('max_prepared_transactions')::double precision, 0), 0.7, 0.9,
         'select * from once.in_doubt; '
         'more slots: alter system set max_prepared_transactions = ..., then restart'
    from prepared
  union all select 'prepared_xid_age', max(p.xid_age),
         least(10e6, current_setting('autovacuum_freeze_max_age')::double precision * 0.5),
         current_setting('autovacuum_freeze_max_age')::double precision * 0.75,
         'select * from once.in_doubt order by xid_age desc' from prepared p where p.here
  union all select 'elsewhere_xid_age', max(p.xid_age),
         least(10e6, current_setting('autovacuum_freeze_max_age')::double precision * 0.5),
         current_setting('autovacuum_freeze_max_age')::double precision * 0.75,
         'select * from once.in_doubt_elsewhere order by xid_age desc; finish them in their own database'
    from prepared p where not p.here
  union all select 'foreign_prepared', count(*), null, null, null from stranger
  union all select 'foreign_with_our_prefix', count(*), 1, null,
         'they begin like ours and are not, so they are left alone: '
         'select gid, owner from once.in_doubt where not ours'
    from stranger s where s.gid like 'once:%'
  union all select 'foreign_oldest_seconds', extract(epoch from max(s.age)), 300, 3600,
         'select gid, manager, age, locks from once.in_doubt where not ours; '
         'ask their manager, pgonce leaves them alone'
    from stranger s
  union all select 'decided_unfinished_seconds',
         extract(epoch from clock_timestamp() - min(u.decided_at)), 30, 300,
         'decided here, but still prepared in another database of this cluster: run recovery there'
    from unfinished u
  union all select 'missing_evidence_seconds',
         extract(epoch from clock_timestamp() - min(d.decided_at)), 60, 600,
         'a decision is not proven: does recovery run, and reach every participant? '
         'select * from once.audit()'
    from decision d
  union all select 'unacknowledged_losses', count(*), 1, 1,
         'one side committed, the other did not: select * from once.audit(); repair, '
         'then select once.acknowledge(''<transaction>'', ''<why>'')'
    from once.loss h where h.acknowledged_at is null
  union all select 'unacknowledged_heuristics', count(*), 1, null,
         'select * from once.heuristics where acknowledged_at is null; '
         'then select once.acknowledge(''<transaction>'', ''<why>'')'
    from once.heuristic f where f.acknowledged_at is null
  union all select 'last_recovery_seconds',
         case when exists (select from once.global_transaction) or exists (select from once.evidence)
                   or exists (select from branch b where b.ours)
              then extract(epoch from clock_timestamp() - coalesce(r.recovered_at, i.created_at)) end,
         60, 600,
         'nobody recovers: pgonce recover --watch, once.recovery.start() or select once.recover() by pg_cron'
    from once.recovery r, once.database i
  union all select 'ledger_bytes', pg_total_relation_size('once.message')
         + pg_total_relation_size('once.producer')
         + pg_total_relation_size('once.claimed_ahead'), null, null, null
  union all select 'horizon_lag_seconds',
         extract(epoch from max(now() - s.retention - greatest(s.horizon, i.created_at - s.retention))),
         172800, 604800,
         'keys are known for longer than their scope''s retention: '
         'pgonce expire, or select * from once.expire()'
    from once.scope s, once.database i where s.retention is not null
  union all select 'expiry_age_seconds',
         case when exists (select from once.scope s where s.horizon is not null)
              then extract(epoch from clock_timestamp() - greatest(
                     e.finished_on::timestamp at time zone 'UTC', i.created_at)) end, 259200, 864000,
         'keys past their horizon are not deleted: '
         'pgonce expire, or select * from once.expire() until no row says more'
    from once.expiry e, once.database i
  union all select 'expiry_waits_seconds',
         case when e.waits_for <> '{}' then extract(epoch from clock_timestamp() - e.begun_at) end,
         86400, 604800,
         'keys past their horizon cannot be deleted: '
         'select * from once.expire() names the transactions that are in the way'
    from once.expiry e
  union all select 'expired_claims_per_day', coalesce(sum(e.claims), 0), 1, null,
         'messages came later than their scope remembers and were not processed: '
         'select * from once.expired_claims; '
         'for longer from now on: select once.set_retention(''scope'', ''90 days'')'
    from once.expired_claim e where e.answered_at > now() - interval '1 day'
  union all select 'producer_gaps_ratio', max(p.gaps::double precision / nullif(p.max_gaps, 0)), 0.8, 1,
         'select * from once.producers order by gaps desc; '
         'deliver what is missing, or once.set_watermark(...)'
    from once.producer p
  union all select 'producers_near_gap_limit', count(*), 1, null,
         'select * from once.producers order by gaps desc; '
         'one that begins at 1 wants start_at, and ids with holes the key ledger'
    from once.producer p where p.gaps >= p.max_gaps * 0.5 and p.gaps > 0
  union all select 'position_lag_messages', sum(l.lag)::double precision, null, null, null from once.lag l
  union all select 'position_stalled_seconds',
         extract(epoch from max(l.idle) filter (where l.lag > 0)), 60, 600,
         'select * from once.lag where lag > 0 order by idle desc; is the consumer running?' from once.lag l
  union all select 'positions_past_end', count(*) filter (where l.end_position < l."position"), 1, null,
         'select * from once.lag where end_position < "position"; is it the right topic?' from once.lag l
)
select f.name,
       case when f.value >= f.critical then 'critical'
            when f.value >= f.warn then 'warn' else 'ok' end as status,
       f.value, f.warn, f.critical,
       case when f.value >= f.warn or f.value >= f.critical then f.hint end as hint
  from finding f;
comment on view once.health is
  'One row a check: name, ok, warn or critical, value (null: nothing to look at), thresholds, what to type.';
call once.allow('recover, monitor', 'health', 'select');
