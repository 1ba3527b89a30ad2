-- Whether keys without occurred_at bring their own time, if they are UUIDv7s or ULIDs. Off at first: who
-- chooses such a key chooses its time, and may not be anybody to believe.
--
-- For a new scope it counts at once. In one that may have claims it counts for keys made two days from now
-- on, and the answer is that moment: where a key is kept must never change, or it would be claimed again, and
-- no key that was claimed so far is that new.
create function once.set_key_times(scope text, enabled boolean) returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
  v_from timestamptz := now() + interval '2 days';
begin
  perform once.check_name('scope', set_key_times.scope);
  if set_key_times.enabled is null then
    raise exception 'bad enabled: null'
      using errcode = 'ONARG', detail = 'Expected true or false.',
            hint = 'For example: select once.set_key_times(''orders'', true).';
  end if;
  insert into once.scope (scope) values (set_key_times.scope) on conflict do nothing;
  if found then
    v_from := '-infinity';
  end if;
  update once.scope s
     set key_times = case when set_key_times.enabled
                          then coalesce(s.key_times, '{}') + tstzmultirange(tstzrange(v_from, null))
                          else s.key_times - tstzmultirange(tstzrange(v_from, null)) end
   where s.scope = set_key_times.scope;
  return v_from;
end
$$;

comment on function once.set_key_times(text, boolean) is
  'Whether UUIDv7s and ULIDs without occurred_at bring their own time; answers from which key time on.';
call once.allow('owner', 'set_key_times');
