-- Internal: the schema that dblink was installed into, quoted: any. Only recovery over dblink needs it.
create function once.dblink_schema() returns text language plpgsql stable set search_path = '' as $$
declare v_schema text;
begin
  select quote_ident(n.nspname) into v_schema
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
   where e.extname = 'dblink';
  if v_schema is null then
    raise exception 'the extension dblink is not installed in this database' using errcode = 'ONEXT',
      detail = 'It asks other databases, and finishes prepared transactions, which no function can.',
      hint = 'create extension dblink; or recover from outside: npx pgonce recover';
  end if;
  return v_schema;
end $$;
comment on function once.dblink_schema() is
  'Internal: the schema of the extension dblink; raises ONEXT if it is not installed.';
call once.allow('recover', 'dblink_schema');
