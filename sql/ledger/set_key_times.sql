-- Whether UUIDv7s and ULIDs without occurred_at bring their own time. Off unless this is called: who chooses
-- such a key chooses its time. A scope that is there keeps what it has: where a key is kept follows from
-- this, and a key that is looked for somewhere else would be claimed again.
create function once.set_key_times(scope text, enabled boolean) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.check_name('scope', set_key_times.scope);
  if set_key_times.enabled is null then
    raise exception 'bad enabled: null' using errcode = 'ONARG', detail = 'Expected true or false.',
      hint = 'For example: select once.set_key_times(''orders'', true).';
  end if;
  insert into once.scope (scope, key_times) values (set_key_times.scope, set_key_times.enabled)
  on conflict do nothing;
  perform from once.scope s where s.scope = set_key_times.scope and s.key_times = set_key_times.enabled;
  if not found then
    raise exception 'scope % is there already, with key times %',
        quote_literal(set_key_times.scope), case when set_key_times.enabled then 'off' else 'on' end
      using errcode = 'ONARG', detail = 'Where a key is kept must not change, or it could be claimed again.',
      hint = 'Call this before the first claim and before once.set_retention. Else take a new scope, '
             'or give occurred_at with every claim.';
  end if;
end $$;
comment on function once.set_key_times(text, boolean) is
  'Whether UUIDv7s and ULIDs without occurred_at bring their own time; only before a scope is used.';
call once.allow('owner', 'set_key_times');
