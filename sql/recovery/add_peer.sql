-- Names the foreign server that leads to another database of pgonce, and asks that database who it is.
create function once.add_peer(server text) returns uuid language plpgsql volatile set search_path = '' as $$
declare v_name constant text := 'once new peer'; v_id uuid; v_message text; v_detail text;
begin
  perform once.dblink_schema();
  -- Else dblink would take the name for a connection string.
  if not exists (select from pg_catalog.pg_foreign_server s where s.srvname = add_peer.server) then
    raise exception 'no foreign server named %', coalesce(quote_literal(add_peer.server), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of a foreign server, without quotes.',
      hint = 'create server billing foreign data wrapper dblink_fdw '
             'options (host ''...'', dbname ''billing''); create user mapping for current_user '
             'server billing options (user ''...'', password ''...'');';
  end if;
  begin
    perform once.open_connection(v_name, add_peer.server);
    select r into v_id from once.remote(v_name, 'select once.database_id()::text') r;
    perform once.disconnect(v_name);
  exception when others then
    get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
    perform once.disconnect(v_name);
    if sqlstate like 'ON%' then raise; end if;
    raise exception 'foreign server % does not lead to a database of pgonce: %', quote_ident(add_peer.server),
        regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
      using errcode = 'ONPER', detail = format('dblink says: %s.', v_message),
      hint = format('grant usage on foreign server %1$I to %2$I; create user mapping for %2$I '
                    'server %1$I options (user ''...'', password ''...''); '
                    'and over there: npx pgonce migrate.', add_peer.server, current_user);
  end;
  insert into once.peer (database_id, server) values (v_id, add_peer.server)
  on conflict on constraint peer_pkey do update
     set server = excluded.server, added_at = now(), added_by = session_user;
  return v_id;
end $$;
comment on function once.add_peer(text) is
  'Names the foreign server to another database of pgonce; its id: select once.add_peer(''billing'').';
call once.allow('operator', 'add_peer');
