-- Claims that were answered 'expired': their messages came later than the scope remembers keys, the handlers
-- did not run, and nobody knows whether they did the first time. once.health alarms.
--
-- A row per claim or batch, only ever inserted: over a counter claims would wait, deadlock, and fail under
-- REPEATABLE READ or SERIALIZABLE. A row is there exactly if the transaction committed that was told
-- 'expired', which is when the message was given up. once.expire deletes rows after two days.
create table once.expired_claim (
  answered_at timestamptz not null default clock_timestamp(),
  expired_claim_id bigint generated always as identity, scope_id integer not null, claims integer not null,
  -- The oldest of them, by the messages' own time.
  oldest_day date not null,
  primary key (answered_at, expired_claim_id)
);
comment on table once.expired_claim is
  'Ledger by key: one row per claim or batch answered expired, kept for two days; see once.expired_claims.';
call once.allow('app', 'expired_claim', 'insert (scope_id, claims, oldest_day)');

-- For people: which scopes, and how long a retention would have known them.
create view once.expired_claims as
select s.scope, sum(e.claims)::bigint as claims, min(e.answered_at) as first_at,
       max(e.answered_at) as last_at, min(e.oldest_day) as oldest_day, s.retention, s.horizon
  from once.expired_claim e join once.scope s on s.scope_id = e.scope_id
 where e.answered_at > now() - interval '1 day' group by s.scope_id;
comment on view once.expired_claims is
  'Scopes whose claims were answered expired within a day: how many, when, the oldest day, and the horizon.';
call once.allow('recover, monitor', 'expired_claims', 'select');
