-- Internal: runs a text over a dblink connection: a query with one column of type text, or commands, of which
-- the tag comes back. Each call is a transaction of its own over there, with a snapshot of its own; a command
-- alone is in no transaction block, so it may be COMMIT PREPARED.
--
-- What the statement_timeout over there has cancelled arrives as query_canceled, which `when others` does not
-- catch, since somebody may cancel us. The context tells: it names the connection.
create function once.remote(connection text, query text) returns setof text
language plpgsql volatile set search_path = '' as $$
declare v_context text;
begin
  return query execute format('select r.v from %s.dblink($1, $2) as r (v text)', once.dblink_schema())
    using remote.connection, remote.query;
exception when query_canceled then
  get stacked diagnostics v_context = pg_exception_context;
  if position(remote.connection in v_context) = 0 then raise; end if;
  raise exception 'no answer in time' using errcode = 'ONPER', detail = sqlerrm,
    hint = 'Look there for what it waits for: select * from pg_stat_activity;';
end $$;
comment on function once.remote(text, text) is
  'Internal: a query with one column of type text, or commands, over a dblink connection.';
call once.allow('recover', 'remote');
