-- Internal: runs a statement over a dblink connection, in no transaction block: so it may be COMMIT PREPARED.
create function once.remote_exec(connection text, statement text) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_tag text;
  v_context text;
begin
  execute format('select %s.dblink_exec($1, $2)', once.dblink_schema())
    into v_tag using remote_exec.connection, remote_exec.statement;
  return v_tag;
exception when query_canceled then
  -- As once.remote.
  get stacked diagnostics v_context = pg_exception_context;
  if position(remote_exec.connection in v_context) = 0 then
    raise;
  end if;
  raise exception 'no answer in time' using
    errcode = 'ONPER', detail = sqlerrm, hint = 'Look there for what it waits for: select * from pg_stat_activity;';
end
$$;

comment on function once.remote_exec(text, text) is 'Internal: a statement over a dblink connection; returns its command tag.';
call once.allow('recover', 'remote_exec');
