-- Internal: quotes a value for a libpq connection string.
create function once.quote_conninfo(value text) returns text
language sql immutable parallel safe
set search_path = ''
as $$
  select '''' || replace(replace(quote_conninfo.value, '\', '\\'), '''', '\''') || ''''
$$;

comment on function once.quote_conninfo(text) is 'Internal: quotes a value for a libpq connection string.';
revoke all on function once.quote_conninfo(text) from public;
