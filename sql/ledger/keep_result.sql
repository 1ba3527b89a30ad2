-- Keeps the result of a message beside its claim, so that a duplicate gets the first one's answer. Kept
-- once: a result that duplicates may have been given already is never replaced.
create function once.keep_result(scope text, key text, result jsonb, occurred_at timestamptz default null) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
  v_day date := (coalesce(keep_result.occurred_at, once.message_time(keep_result.key)) at time zone 'UTC')::date;
  v_digest uuid := once.message_digest(keep_result.scope, keep_result.key);
  v_count bigint;
begin
  if v_day is null then
    update once.message_timeless m set result = keep_result.result
     where m.digest = v_digest and m.result is null;
    get diagnostics v_count = row_count;
  else
    -- Executed, so that it is planned for its one day: a plan for any day would lock all the partitions.
    execute 'update once.message m set result = $1 where m.day = $2 and m.digest = $3 and m.result is null'
      using keep_result.result, v_day, v_digest;
    get diagnostics v_count = row_count;
  end if;
  if v_count = 0 then
    raise exception 'no claim of key % in scope % waits for a result',
        quote_literal(left(keep_result.key, 100)), quote_literal(keep_result.scope)
      using errcode = 'ONARG',
            detail = 'Either the key is not claimed, or its result is kept already, or occurred_at differs from the claim''s.',
            hint = 'Call once.claim_key(…) first, in the same transaction, and keep one result.';
  end if;
end
$$;

comment on function once.keep_result(text, text, jsonb, timestamptz) is
  'Keeps the result of a claimed key for its duplicates; call it in the claiming transaction.';
call once.allow('app', 'keep_result');
