-- Internal: the answer of once.claim_keys where not every key was new; "claimed" are the digests that were.
create function once.answer_keys(
  scope_id integer, horizon timestamptz, keys text[], digests uuid[], times timestamptz[],
  payload_hashes bytea[], claimed uuid[]
) returns text language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare v_answer text; v_bad bigint; v_expired bigint; v_oldest timestamptz;
begin
  -- Of several with one digest the first in order is the claim: it follows the digest's entry in "claimed".
  with item as (
    select i.digest, i.at, i.hash, i.n, i.expired,
           lag(i.n = 0, 1, false) over (partition by i.digest, i.expired order by i.n) as claimed
      from (select k.digest, k.at, k.hash, k.n, (k.at < answer_keys.horizon) is true as expired
              from unnest(answer_keys.digests, answer_keys.times, answer_keys.payload_hashes)
                   with ordinality k (digest, at, hash, n)
            union all
            select c, null, null, 0, false from unnest(answer_keys.claimed) c) i
  )
  select '[' || string_agg(case when i.expired then '"expired"' when i.claimed then '"claimed"'
                                when f.result is null then '"duplicate"'
                                else '{"result":' || f.result::text || '}' end, ',' order by i.n) || ']',
         min(i.n) filter (where f.payload_hash <> i.hash), count(*) filter (where i.expired),
         min(i.at) filter (where i.expired)
    into v_answer, v_bad, v_expired, v_oldest
    from item i
    left join lateral (
      select m.payload_hash, m.result from once.message m
       where m.digest = i.digest and not i.expired and not i.claimed limit 1
    ) f on true
   where i.n > 0;

  if v_bad is not null then
    raise exception 'key % came again with another payload',
        (select quote_literal(left(k.key, 100))
           from unnest(answer_keys.keys) with ordinality k (key, n)
          where k.n = v_bad) using errcode = 'ONPAY',
      detail = format('Scope %L: the payload hash differs from that of the first claim.',
                      (select s.scope from once.scope s where s.scope_id = answer_keys.scope_id)),
      hint = 'Two different messages share one key: fix the sender, or choose a key that tells them apart.';
  end if;
  if v_expired > 0 then
    insert into once.expired_claim (scope_id, claims, oldest_day)
    select s.scope_id, v_expired, (v_oldest at time zone 'UTC')::date
      from once.scope s where s.scope_id = answer_keys.scope_id;
  end if;
  return v_answer;
end $$;
comment on function once.answer_keys(integer, timestamptz, text[], uuid[], timestamptz[], bytea[], uuid[]) is
  'Internal: what once.claim_keys answers if not every key was new.';
call once.allow('app', 'answer_keys');
