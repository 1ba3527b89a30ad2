-- Claims one message by key; see once.claim_keys for the answers and why they hold. The usual answers take
-- one statement for a new message and two for a duplicate, with few expressions, since each costs at every
-- call. Whatever is unusual (a new scope, a key's own time, an expired message, another payload, bad
-- arguments, synchronous_commit = off) gets through neither and is left to once.claim_keys.
create function once.claim_key(
  scope text, key text, occurred_at timestamptz default null, payload_hash bytea default null,
  out status text, out result jsonb
)
language plpgsql volatile set search_path = ''
-- A duplicate is looked up by digest, however small the table was when the plan was made.
set enable_seqscan = off as $$
declare v_digest uuid;
begin
  -- The digest as once.message_digest has it.
  if claim_key.occurred_at is null then
    v_digest := encode(
      decode('0000', 'hex')
      || substring(sha256(convert_to(claim_key.scope, 'UTF8') || decode('00', 'hex')
                          || convert_to(claim_key.key, 'UTF8')) for 14), 'hex')::uuid;
    insert into once.message (digest, scope_id, claimed_on, payload_hash)
    select v_digest, s.scope_id, (now() at time zone 'UTC')::date, claim_key.payload_hash from once.scope s
     where s.scope = claim_key.scope and not s.key_times and claim_key.key <> ''
       and current_setting('synchronous_commit') <> 'off'
    on conflict do nothing;
    if found then claim_key.status := 'claimed'; return; end if;
    select m.result into claim_key.result from once.message m
     where m.digest = v_digest and (m.payload_hash <> claim_key.payload_hash) is not true
       and current_setting('synchronous_commit') <> 'off';
  else
    v_digest := case when isfinite(claim_key.occurred_at) then encode(
      substring(int4send((claim_key.occurred_at at time zone 'UTC')::date - date '1999-12-31') from 3)
      || substring(sha256(convert_to(claim_key.scope, 'UTF8') || decode('00', 'hex')
                          || convert_to(claim_key.key, 'UTF8')) for 14), 'hex')::uuid end;
    insert into once.message (digest, scope_id, payload_hash)
    select v_digest, s.scope_id, claim_key.payload_hash from once.scope s
     where s.scope = claim_key.scope and (claim_key.occurred_at < s.horizon) is not true
       and claim_key.occurred_at >= '2000-01-01 00:00:00+00'::timestamptz
       and claim_key.occurred_at < now() + interval '2 days' and claim_key.key <> ''
       and current_setting('synchronous_commit') <> 'off'
    on conflict do nothing;
    if found then claim_key.status := 'claimed'; return; end if;
    select m.result into claim_key.result from once.message m join once.scope s on s.scope = claim_key.scope
     where m.digest = v_digest and (claim_key.occurred_at < s.horizon) is not true
       and (m.payload_hash <> claim_key.payload_hash) is not true
       and current_setting('synchronous_commit') <> 'off';
  end if;
  if found then claim_key.status := 'duplicate'; return; end if;

  select b.status, b.result into claim_key.status, claim_key.result
    from once.claim_key_batch(claim_key.scope, array[claim_key.key],
           case when claim_key.occurred_at is not null then array[claim_key.occurred_at] end,
           case when claim_key.payload_hash is not null then array[claim_key.payload_hash] end) b;
end $$;
comment on function once.claim_key(text, text, timestamptz, bytea) is
  'Claims one message by key (or duplicate, expired): select * from once.claim_key(''stripe'', ''evt_1'').';
call once.allow('app', 'claim_key');
