-- Claims messages by key and answers one row per key, in the order of the array; see once.claim_keys.
create function once.claim_key_batch(
  scope text, keys text[], occurred_at timestamptz[] default null, payload_hashes bytea[] default null
) returns table (ordinal integer, key text, status text, result jsonb)
language plpgsql volatile set search_path = '' as $$
declare
  v_answer text := once.claim_keys(claim_key_batch.scope, claim_key_batch.keys, claim_key_batch.occurred_at,
                                   claim_key_batch.payload_hashes);
begin
  if v_answer = 'claimed' then
    return query select i.n::integer, i.key, 'claimed', null::jsonb
      from unnest(claim_key_batch.keys) with ordinality i (key, n) order by i.n;
  else
    return query select i.n::integer, i.key,
           case jsonb_typeof(i.answer) when 'string' then i.answer #>> '{}' else 'duplicate' end,
           i.answer -> 'result'
      from rows from (unnest(claim_key_batch.keys), jsonb_array_elements(v_answer::jsonb))
           with ordinality i (key, answer, n) order by i.n;
  end if;
end $$;
comment on function once.claim_key_batch(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key, a row per key: select * from once.claim_key_batch(''stripe'', array[''evt_1'']).';
call once.allow('app', 'claim_key_batch');
