-- The identity of a message: 2 bytes for the day of its time (UTC), counted from 1999-12-31, 0 without a
-- time; 14 bytes of a SHA-256 over scope and key, with a zero byte between. Null: no claim has this time.
create function once.message_digest(scope text, key text, occurred_at timestamptz default null) returns uuid
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return encode(
    case when message_digest.occurred_at is null then decode('0000', 'hex')
         when message_digest.occurred_at >= '2000-01-01 00:00:00+00'::timestamptz
          and message_digest.occurred_at < '2179-06-06 00:00:00+00'::timestamptz
         then substring(
                int4send((message_digest.occurred_at at time zone 'UTC')::date - date '1999-12-31') from 3)
    end
    || substring(sha256(convert_to(message_digest.scope, 'UTF8') || decode('00', 'hex')
                        || convert_to(message_digest.key, 'UTF8')) for 14), 'hex')::uuid;
end $$;
comment on function once.message_digest(text, text, timestamptz) is
  'How the ledger remembers a key: 2 bytes for the day (0: no time), 14 of SHA-256 over scope, zero, key.';
call once.allow('app', 'message_digest');
