-- Internal: raises on a standby. It may lag behind: no row there, missing or present, proves anything.
create function once.assert_primary() returns void language plpgsql volatile set search_path = '' as $$
begin
  if pg_is_in_recovery() then
    raise exception 'this server is a standby; only the primary decides' using errcode = 'ONSTB',
      detail = 'A standby may lag behind, so a missing row proves nothing here.',
      hint = 'Connect to the primary (target_session_attrs=read-write).';
  end if;
end $$;
comment on function once.assert_primary() is 'Internal: raises ONSTB on a standby.';
call once.allow('app, recover, monitor', 'assert_primary');
