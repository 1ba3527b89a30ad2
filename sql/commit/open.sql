-- Marks the current transaction as part of a global one, which tells later whether the handler ended it or
-- left another role in force, and bounds what a coordinator that vanishes can hold up. Timeouts in
-- milliseconds; 0: none; null: as the session has it. A procedure: CALL costs half of SELECT.
create procedure once.open(
  transaction_id uuid, lock_timeout integer default null, idle_timeout integer default null
) language plpgsql set search_path = '' as $$
begin
  if open.transaction_id is null or open.lock_timeout < 0 or open.idle_timeout < 0 then
    raise exception 'bad arguments: transaction %, lock_timeout %, idle_timeout %',
        coalesce(open.transaction_id::text, 'null'), open.lock_timeout, open.idle_timeout
      using errcode = 'ONARG', detail = 'Expected an id, and timeouts of 0 to 2147483647 milliseconds.',
      hint = 'call once.open(gen_random_uuid(), 10000, 60000); null: as the session has it.';
  end if;
  perform set_config('once.transaction', open.transaction_id || ' ' || current_user, true),
          case when open.lock_timeout is not null
               then set_config('lock_timeout', open.lock_timeout::text, true) end,
          case when open.idle_timeout is not null
               then set_config('idle_in_transaction_session_timeout', open.idle_timeout::text, true) end;
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
end $$;
comment on procedure once.open(uuid, integer, integer) is
  'First statement of a branch: marks the transaction with its global id, and sets its timeouts (ms).';
call once.allow('app', 'open');
