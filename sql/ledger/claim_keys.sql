-- Claims messages by key: anything with an id but no order. What clients call; once.claim_key_batch answers
-- in rows. 'claimed' if every key is new; else a JSON array with an element per key: "claimed" (the first of
-- its key, ever), "duplicate", {"result": ...} (a duplicate with a result) or "expired".
--
-- Why a key cannot be claimed twice: its digest follows from the message alone, and is unique. Rows are
-- deleted only when no transaction is left that may have read an older horizon (once.expire).
create function once.claim_keys(
  scope text, keys text[], occurred_at timestamptz[] default null, payload_hashes bytea[] default null
) returns text language plpgsql volatile set search_path = '' as $$
declare v_scope once.scope; v_prefix bytea; v_times timestamptz[]; v_digests uuid[]; v_new uuid[];
begin
  perform once.ensure_durable();
  select s.* into v_scope from once.scope s where s.scope = claim_keys.scope;
  if not found then v_scope := once.open_scope(claim_keys.scope); end if;
  if v_scope.key_times then
    v_times := array(select coalesce(i.at, once.message_time(i.key))
                       from unnest(claim_keys.keys, claim_keys.occurred_at) with ordinality i (key, at, n)
                      order by i.n);
  else
    v_times := claim_keys.occurred_at;
  end if;
  perform once.assert_keys(claim_keys.keys, claim_keys.occurred_at, claim_keys.payload_hashes, v_times);

  -- As in once.message_digest, which would cost as much again.
  v_prefix := convert_to(claim_keys.scope, 'UTF8') || decode('00', 'hex');
  v_digests := array(
    select encode(case when i.at is not null
                       then substring(int4send((i.at at time zone 'UTC')::date - date '1999-12-31') from 3)
                       else decode('0000', 'hex') end
                  || substring(sha256(v_prefix || convert_to(i.key, 'UTF8')) for 14), 'hex')::uuid
      from unnest(claim_keys.keys, v_times) with ordinality i (key, at, n)
     order by i.n);

  -- In one order for everybody, so that two batches cannot wait for each other. Of repeated keys the first is
  -- inserted; a conflict waits for the other transaction to end.
  with claimed as (
    insert into once.message as m (digest, scope_id, claimed_on, payload_hash)
    select i.digest, v_scope.scope_id,
           case when i.at is null then (now() at time zone 'UTC')::date end, i.hash
      from unnest(v_digests, v_times, claim_keys.payload_hashes) with ordinality i (digest, at, hash, n)
     where (i.at < v_scope.horizon) is not true order by i.digest, i.n
    on conflict do nothing returning m.digest
  )
  select array_agg(c.digest) into v_new from claimed c;
  if coalesce(cardinality(v_new), 0) = cardinality(claim_keys.keys) then return 'claimed'; end if;
  return once.answer_keys(v_scope.scope_id, v_scope.horizon, claim_keys.keys, v_digests, v_times,
                          claim_keys.payload_hashes, v_new);
end $$;
comment on function once.claim_keys(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key: claimed if all are new, else a JSON array of answers; see once.claim_key_batch.';
call once.allow('app', 'claim_keys');
