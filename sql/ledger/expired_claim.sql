-- Claims that were answered 'expired': messages that came later than their scope remembers keys, so their
-- handlers did not run, and nobody knows whether they did the first time. That is to be seen somewhere, by
-- scope, and once.health alarms.
--
-- A row per claim or batch, only ever inserted: there is nothing to wait for, so claims do not stand in a row
-- and no two of them can deadlock, as they would over a counter, and none fails under REPEATABLE READ or
-- SERIALIZABLE for it. That costs what a claim of a new key costs, and claims of anything else nothing. A row
-- is there exactly if the transaction committed that was told 'expired', which is when the message was given
-- up. once.expire deletes rows after two days, in batches: a topic that is replayed leaves as many as it has
-- batches.
create table once.expired_claim (
  answered_at timestamptz not null default clock_timestamp(),
  expired_claim_id bigint generated always as identity,
  scope_id integer not null,
  claims integer not null,
  -- The oldest of them, by the messages' own time.
  oldest_day date not null,
  primary key (answered_at, expired_claim_id)
);

comment on table once.expired_claim is
  'Ledger by key: one row per claim or batch answered expired, kept for two days; see once.expired_claims.';
call once.allow('app', 'expired_claim', 'insert (scope_id, claims, oldest_day)');

-- For people: which scopes, and how long a retention would have known them.
create view once.expired_claims as
select s.scope,
       sum(e.claims)::bigint as claims,
       min(e.answered_at) as first_at,
       max(e.answered_at) as last_at,
       min(e.oldest_day) as oldest_day,
       s.retention,
       s.horizon
  from once.expired_claim e
  join once.scope s on s.scope_id = e.scope_id
 where e.answered_at > now() - interval '1 day'
 group by s.scope_id;

comment on view once.expired_claims is
  'Scopes whose claims were answered expired within a day: how many, when, the oldest day, and the horizon.';
call once.allow('recover, monitor', 'expired_claims', 'select');
