-- Keeps the result of a message for its duplicates, once: what they may have been given is never replaced.
create function once.keep_result(scope text, key text, result jsonb, occurred_at timestamptz default null)
returns void language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare v_own constant timestamptz := once.message_time(keep_result.key);
begin
  update once.message m set result = keep_result.result
    from once.scope s
   where s.scope = keep_result.scope
     and m.digest = once.message_digest(keep_result.scope, keep_result.key,
           coalesce(keep_result.occurred_at, case when s.key_times then v_own end))
     and m.result is null;
  if not found then
    raise exception 'no claim of key % in scope % waits for a result',
        quote_literal(left(keep_result.key, 100)), quote_literal(keep_result.scope) using errcode = 'ONARG',
      detail = 'Either the key is not claimed, or its result is kept already, or occurred_at differs '
               'from the claim''s.',
      hint = 'Call once.claim_key(...) first, in the same transaction, and keep one result.';
  end if;
end $$;
comment on function once.keep_result(text, text, jsonb, timestamptz) is
  'Keeps the result of a claimed key for its duplicates; call it in the claiming transaction.';
call once.allow('app', 'keep_result');
