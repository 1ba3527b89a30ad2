-- The number of the newest migration, for clients to compare: every migration replaces this function.
create function once.schema_version() returns integer
language sql immutable parallel safe set search_path = '' as $$ select 1 $$;
comment on function once.schema_version() is
  'The number of the newest pgonce migration installed in this database.';
call once.allow('app, recover, monitor', 'schema_version');
