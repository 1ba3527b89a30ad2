-- Claims one message by key; see once.claim_key_batch for the answers and why they hold.
create function once.claim_key(
  scope text,
  key text,
  occurred_at timestamptz default null,
  payload_hash bytea default null,
  out status text,
  out result jsonb
)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_scope once.scope;
  v_time timestamptz := coalesce(claim_key.occurred_at, once.message_time(claim_key.key));
  v_day date := (v_time at time zone 'UTC')::date;
  v_digest uuid := once.message_digest(claim_key.scope, claim_key.key);
begin
  select s.* into v_scope from once.scope s where s.scope = claim_key.scope;
  -- The fast path: a known scope, a key that is not past the horizon, a partition that exists. Whether it
  -- does is asked within the insert, whose lock on the ledger keeps expiry from dropping it meanwhile.
  if found and claim_key.key <> '' and (v_time < v_scope.horizon) is not true
     and (v_day between '1970-01-01' and '2099-12-31') is not false then
    if current_setting('synchronous_commit') = 'off' then
      perform once.ensure_durable();
    end if;
    insert into once.message (digest, scope_id, day, claimed_on, payload_hash)
    select v_digest, v_scope.scope_id, v_day,
           case when v_day is null then (now() at time zone 'UTC')::date end, claim_key.payload_hash
     where v_day is null or to_regclass('once.message_' || to_char(v_day, 'YYYYMMDD')) is not null
    on conflict do nothing;
    if found then
      claim_key.status := 'claimed';
      return;
    end if;
  end if;

  select b.status, b.result into claim_key.status, claim_key.result
    from once.claim_key_batch(claim_key.scope, array[claim_key.key],
           case when claim_key.occurred_at is not null then array[claim_key.occurred_at] end,
           case when claim_key.payload_hash is not null then array[claim_key.payload_hash] end) b;
end
$$;

comment on function once.claim_key(text, text, timestamptz, bytea) is
  'Claims one message by scope and key: select * from once.claim_key(''stripe'', ''evt_1'') answers claimed, duplicate or expired.';
call once.allow('app', 'claim_key');
