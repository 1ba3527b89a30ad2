-- Internal: quotes a value for a libpq connection string. No backslash is written as such: in a literal it
-- means what the caller's standard_conforming_strings says.
create function once.quote_conninfo(value text) returns text
language sql immutable parallel safe set search_path = '' as $$
  select ''''
    || replace(replace(quote_conninfo.value, chr(92), repeat(chr(92), 2)), '''', chr(92) || '''') || ''''
$$;
comment on function once.quote_conninfo(text) is 'Internal: quotes a value for a libpq connection string.';
call once.allow('recover', 'quote_conninfo');
