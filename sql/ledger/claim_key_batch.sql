-- Claims messages by key: webhook deliveries, payments, anything with an id but no order. Answers one
-- row a key, in the order of the array: 'claimed' (the first of its key, ever), 'duplicate' (with the
-- first one's result, if it kept one) or 'expired' (older than the scope's horizon).
--
-- Why a key cannot be claimed twice: its partition follows from the message alone, and that partition
-- has a unique index. If the partition was dropped between our reading of the horizon and our insert,
-- then it is missing, and creating it is refused below the floor (once.ensure_partition).
create function once.claim_key_batch(
  scope text,
  keys text[],
  occurred_at timestamptz[] default null,
  payload_hashes bytea[] default null
) returns table (ordinal integer, key text, status text, result jsonb)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_scope once.scope;
  v_digests uuid[];
  v_days date[];
  v_expired boolean[];
  v_dropped date[] := '{}';
  v_statuses text[];
  v_results jsonb[];
  v_day date;
  v_ordinals integer[];
  v_hashes bytea[];
  v_n integer;
  v_result jsonb;
  v_other_payload boolean;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
  if claim_key_batch.keys is null then
    raise exception 'null is not allowed as keys'
      using errcode = 'ONARG', detail = 'Expected an array of keys.', hint = 'Pass array[''key'', …].';
  end if;
  if cardinality(claim_key_batch.occurred_at) <> cardinality(claim_key_batch.keys)
     or cardinality(claim_key_batch.payload_hashes) <> cardinality(claim_key_batch.keys) then
    raise exception 'the arrays differ in length: % keys, % times, % payload hashes',
        cardinality(claim_key_batch.keys), coalesce(cardinality(claim_key_batch.occurred_at)::text, 'no'),
        coalesce(cardinality(claim_key_batch.payload_hashes)::text, 'no')
      using errcode = 'ONARG', detail = 'Element n of each array belongs to key n.',
            hint = 'Pass arrays of the same length, or leave the optional ones out.';
  end if;
  if exists (select from unnest(claim_key_batch.keys) k where k is null or k = '') then
    raise exception 'bad key: null or empty'
      using errcode = 'ONARG', detail = 'Expected text of at least one character.',
            hint = 'Give every message its id.';
  end if;
  if exists (select from unnest(claim_key_batch.occurred_at) t
              where t < '1970-01-01 00:00:00+00' or t >= '2100-01-01 00:00:00+00') then
    raise exception 'bad occurred_at: %', (select t from unnest(claim_key_batch.occurred_at) t
        where t < '1970-01-01 00:00:00+00' or t >= '2100-01-01 00:00:00+00' limit 1)
      using errcode = 'ONARG', detail = 'Expected a time between 1970 and 2100.',
            hint = 'Is the time in milliseconds where seconds were meant, or the reverse?';
  end if;

  v_scope := once.open_scope(claim_key_batch.scope);

  with timed as materialized (
    select k.n, k.key, coalesce(k.at, once.message_time(k.key)) as at
      from unnest(claim_key_batch.keys, claim_key_batch.occurred_at) with ordinality k (key, at, n)
  )
  select array_agg(once.message_digest(claim_key_batch.scope, i.key) order by i.n),
         array_agg((i.at at time zone 'UTC')::date order by i.n),
         array_agg(coalesce(i.at < v_scope.horizon, false) order by i.n)
    into v_digests, v_days, v_expired
    from timed i;

  -- From here on expiry cannot drop a partition that we find.
  lock table only once.message in row exclusive mode;

  -- Days in one order for everybody, so that two batches cannot wait for each other's partitions.
  for v_day in
    select d.day
      from (select distinct u.day from unnest(v_days, v_expired) u (day, expired) where not u.expired) d
     where to_regclass('once.message_' || to_char(d.day, 'YYYYMMDD')) is null and d.day is not null
     order by d.day
  loop
    if not once.ensure_partition(v_day) then
      v_dropped := v_dropped || v_day;
    end if;
  end loop;

  -- Likewise the keys in one order. Of repeated keys the first is inserted; a conflict waits for the
  -- other transaction to end.
  with item as materialized (
    select i.n, i.digest, i.day, i.hash, i.expired or coalesce(i.day = any (v_dropped), false) as expired
      from unnest(v_digests, v_days, v_expired, claim_key_batch.payload_hashes)
           with ordinality i (digest, day, expired, hash, n)
  ), first as (
    select distinct on (i.digest, i.day) i.n, i.digest, i.day, i.hash
      from item i
     where not i.expired
     order by i.digest, i.day, i.n
  ), inserted as (
    insert into once.message as m (digest, scope_id, day, claimed_on, payload_hash)
    select f.digest, v_scope.scope_id, f.day,
           case when f.day is null then (now() at time zone 'UTC')::date end, f.hash
      from first f
     order by f.digest, f.day
    on conflict do nothing
    returning m.digest, m.day
  ), claimed as (
    select f.n from inserted c join first f on f.digest = c.digest and f.day is not distinct from c.day
  )
  select array_agg(case when i.expired then 'expired' when c.n is null then 'duplicate' else 'claimed' end order by i.n)
    into v_statuses
    from item i left join claimed c on c.n = i.n;

  if 'expired' = any (v_statuses) then
    insert into once.expired_claim (scope_id, claims, oldest_day)
    select v_scope.scope_id, count(*), min(i.day)
      from unnest(v_days, v_statuses) i (day, status)
     where i.status = 'expired';
  end if;

  -- What the first claims of duplicates left behind, day by day. Executed, so that every query is planned
  -- for its one day: a plan for any day would open and lock all the partitions.
  if 'duplicate' = any (v_statuses) then
    v_results := array_fill(null::jsonb, array[cardinality(claim_key_batch.keys)]);
    for v_day, v_ordinals, v_digests, v_hashes in
      select i.day, array_agg(i.n), array_agg(i.digest), array_agg(i.hash)
        from unnest(v_days, v_statuses, v_digests, claim_key_batch.payload_hashes)
             with ordinality i (day, status, digest, hash, n)
       where i.status = 'duplicate'
       group by i.day
    loop
      for v_n, v_result, v_other_payload in
        execute format($query$
          select i.n, m.result, m.payload_hash <> i.hash
            from unnest($1, $2, $3) i (n, digest, hash) join once.message m on m.digest = i.digest
           where m.day %s and (m.result is not null or m.payload_hash <> i.hash)
        $query$, case when v_day is null then 'is null' else format('= %L', v_day) end)
        using v_ordinals, v_digests, v_hashes
      loop
        if v_other_payload then
          raise exception 'key % came again with another payload',
              quote_literal(left(claim_key_batch.keys[v_n], 100))
            using errcode = 'ONPAY',
                  detail = format('Scope %L: the payload hash differs from that of the first claim.',
                                  claim_key_batch.scope),
                  hint = 'Two different messages share one key: fix the sender, or choose a key that tells them apart.';
        end if;
        v_results[v_n] := v_result;
      end loop;
    end loop;
  end if;

  return query
  select i.n::integer, i.key, i.status, i.result
    from unnest(claim_key_batch.keys, v_statuses, v_results) with ordinality i (key, status, result, n)
   order by i.n;
end
$$;

comment on function once.claim_key_batch(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key, one answer a key (claimed, duplicate, expired): select * from once.claim_key_batch(''stripe'', array[''evt_1'']).';
call once.allow('app', 'claim_key_batch');
