-- Internal: opens a dblink connection; an old one may have outlived a transaction that failed. In it names
-- mean what they mean here; each statement sees what is committed by then; and nobody waits longer than ten
-- seconds for a server that hangs, other than for COMMIT PREPARED: see once.finish_remote.
create function once.open_connection(connection text, target text) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.disconnect(open_connection.connection);
  execute format('select %s.dblink_connect($1, $2)', once.dblink_schema())
    using open_connection.connection, open_connection.target;
  perform once.remote(open_connection.connection,
    'set search_path = pg_catalog, pg_temp; set application_name = ''pgonce recovery''; '
    'set default_transaction_isolation = ''read committed''; set default_transaction_read_only = off; '
    'set statement_timeout = ''10s''');
end $$;
comment on function once.open_connection(text, text) is
  'Internal: opens a dblink connection to a foreign server, or by a connection string, with our settings.';
call once.allow('recover', 'open_connection');
