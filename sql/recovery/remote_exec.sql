-- Internal: runs a statement over a dblink connection, in no transaction block: so it may be COMMIT PREPARED.
create function once.remote_exec(connection text, statement text) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_tag text;
begin
  execute format('select %s.dblink_exec($1, $2)', once.dblink_schema())
    into v_tag using remote_exec.connection, remote_exec.statement;
  return v_tag;
end
$$;

comment on function once.remote_exec(text, text) is 'Internal: a statement over a dblink connection; returns its command tag.';
revoke all on function once.remote_exec(text, text) from public;
