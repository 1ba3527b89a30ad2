-- Internal: runs a query over a dblink connection. It must return one column of type text[], so that one
-- function serves all. Each call is a transaction of its own over there, with a snapshot of its own.
create function once.remote(connection text, query text) returns setof text[]
language plpgsql volatile
set search_path = ''
as $$
begin
  return query execute format('select r.v from %s.dblink($1, $2) as r (v text[])', once.dblink_schema())
    using remote.connection, remote.query;
end
$$;

comment on function once.remote(text, text) is 'Internal: a query with one column text[] over a dblink connection.';
revoke all on function once.remote(text, text) from public;
