-- Internal: notes beside an object which kinds of role need it, as in 'app, recover'; `owner` is nobody else.
-- A routine is taken from PUBLIC, who may execute it by default.
create procedure once.allow(kinds text, object text, privileges text default 'execute')
language plpgsql set search_path = '' as $$
begin
  if allow.privileges = 'execute' then
    execute format('revoke all on routine once.%I from public', allow.object);
  end if;
  insert into once.privilege (kind, object, privileges)
  select k, allow.object, allow.privileges from regexp_split_to_table(allow.kinds, ', ') k where k <> 'owner'
      on conflict on constraint privilege_pkey do update set privileges = excluded.privileges;
end $$;
comment on procedure once.allow(text, text, text) is
  'Internal: notes what kinds of role need of an object, and takes a routine from PUBLIC.';
call once.allow('owner', 'allow');
call once.allow('app, recover, monitor', 'privilege', 'select');
