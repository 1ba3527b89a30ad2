-- Internal: opens a dblink connection to a database by its id, and returns its name: by the foreign server of
-- once.peer; to this database itself over its own port; to another database of this cluster. The last two
-- name no password, which dblink allows to superusers only: everybody else needs a peer.
--
-- Whoever owns a database can put anything under the names of our functions, and it would run as us. So a
-- database that was not named as a peer is spoken to only if its schema once, with all in it, belongs to the
-- role that owns ours, by the catalogs, which nobody can put anything into.
create function once.connect(database_id uuid) returns text
language plpgsql volatile set search_path = '' as $$
declare
  v_name text := 'once ' || connect.database_id;
  v_server name; v_database name; v_local text; v_found uuid; v_owner name; v_there boolean;
  v_message text; v_detail text;
begin
  perform once.dblink_schema();
  select p.server, exists (select from pg_catalog.pg_foreign_server s where s.srvname = p.server)
    into v_server, v_there
    from once.peer p where p.database_id = connect.database_id;
  if v_server is not null then
    begin
      -- dblink would take the name for a connection string.
      if not v_there then
        raise undefined_object using message = 'there is no such server any more';
      end if;
      perform once.open_connection(v_name, v_server);
      select r into v_found from once.remote(v_name, 'select once.database_id()::text') r;
    exception when others then
      get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
      perform once.disconnect(v_name);
      if sqlstate like 'ON%' then raise; end if;
      -- What is wrong over there stands in dblink's detail, and reports show messages only.
      raise exception 'no connection by foreign server %: %', quote_ident(v_server),
          regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
        using errcode = 'ONPER',
        detail = format('It leads to database %s, says once.peer; dblink says: %s.',
                        connect.database_id, v_message),
        hint = format('grant usage on foreign server %1$I to %2$I; create user mapping for %2$I '
                      'server %1$I options (user ''...'', password ''...''); '
                      'the server there must ask for the password.', v_server, current_user);
    end;
  else
    -- The settings that a role may not see are not there.
    select format('port=%s connect_timeout=5 user=%s host=%s',
                  max(s.setting) filter (where s.name = 'port'), once.quote_conninfo(current_user),
                  once.quote_conninfo(coalesce(
                    nullif(split_part(
                      max(s.setting) filter (where s.name = 'unix_socket_directories'), ',', 1), ''),
                    nullif(nullif(split_part(
                      max(s.setting) filter (where s.name = 'listen_addresses'), ',', 1), '*'), '0.0.0.0'),
                    'localhost')))
      into v_local from pg_catalog.pg_settings s;
    select n.nspowner::regrole::name into v_owner from pg_catalog.pg_namespace n where n.nspname = 'once';
    for v_database in
      select d.datname from pg_catalog.pg_database d
       where d.datallowconn and not d.datistemplate
         and (d.datname = current_database()) = (connect.database_id = (select i.id from once.database i))
       order by d.datname
    loop
      begin
        perform once.open_connection(v_name, v_local || ' dbname=' || once.quote_conninfo(v_database));
        if exists (
          select from once.remote(v_name, format($q$
            select '' from pg_catalog.pg_namespace n
             where n.nspname = 'once' and pg_catalog.pg_get_userbyid(n.nspowner) = %1$L
               and exists (select from pg_catalog.pg_class c
                            where c.relnamespace = n.oid and c.relname = 'database' and c.relkind = 'r')
               and not exists (select from pg_catalog.pg_class c
                            where c.relnamespace = n.oid and pg_catalog.pg_get_userbyid(c.relowner) <> %1$L)
               and not exists (select from pg_catalog.pg_proc f
                            where f.pronamespace = n.oid and pg_catalog.pg_get_userbyid(f.proowner) <> %1$L)
            $q$, v_owner))) then
          select r into v_found from once.remote(v_name, 'select i.id::text from once.database i') r;
        end if;
      exception when others then
        if v_database = current_database() then
          get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
          perform once.disconnect(v_name);
          raise exception 'no connection to this database itself: %',
              regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
            using errcode = 'ONPER',
            detail = 'COMMIT PREPARED cannot run in a function, so it goes over a connection of its own.',
            hint = 'select once.add_peer(''server'') '
                   'with a foreign server that leads to this database, and a user mapping.';
        end if;
      end;
      exit when v_found = connect.database_id;
      v_found := null;
      perform once.disconnect(v_name);
    end loop;
    if v_found is null then
      raise exception 'nothing known of the database %', connect.database_id using errcode = 'ONPER',
        detail = 'It is no peer, and no other database of this cluster that could be looked into.',
        hint = 'Name a foreign server (wrapper dblink_fdw) that leads to it: '
               'select once.add_peer(''server'').';
    end if;
    select r into v_found from once.remote(v_name, 'select once.database_id()::text') r;
  end if;
  if v_found is distinct from connect.database_id then
    perform once.disconnect(v_name);
    raise exception 'foreign server % leads to database %, not to %',
        quote_ident(v_server), v_found, connect.database_id using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = format('delete from once.peer where database_id = %L; then select once.add_peer(''server'').',
                    connect.database_id);
  end if;
  return v_name;
end $$;
comment on function once.connect(uuid) is
  'Internal: opens a dblink connection to the database with this id; returns its name.';
call once.allow('recover', 'connect');
