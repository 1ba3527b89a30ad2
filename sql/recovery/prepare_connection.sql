-- Internal: what every connection of ours begins with. Names mean what they mean here; each statement sees what
-- is committed by then; times come as text that means the same everywhere (an IST of Dublin's is read as one of
-- Israel's); and nobody waits for a server that hangs for longer than ten seconds, other than for COMMIT PREPARED: see
-- once.finish_remote.
create function once.prepare_connection(connection text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.remote_exec(prepare_connection.connection, s)
     from unnest(array[
       'set search_path = pg_catalog, pg_temp',
       'set application_name = ''pgonce recovery''',
       'set default_transaction_isolation = ''read committed''',
       'set default_transaction_read_only = off',
       'set datestyle = ''ISO''',
       'set statement_timeout = ''10s''']) s;
end
$$;

comment on function once.prepare_connection(text) is 'Internal: session settings of a dblink connection.';
call once.allow('recover', 'prepare_connection');
