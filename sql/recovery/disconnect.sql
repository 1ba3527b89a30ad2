-- Internal: closes a dblink connection if it is open.
create function once.disconnect(connection text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_dblink text := once.dblink_schema(); v_open boolean;
begin
  execute format('select $1 = any (%s.dblink_get_connections())', v_dblink)
     into v_open using disconnect.connection;
  if v_open then
    execute format('select %s.dblink_disconnect($1)', v_dblink) using disconnect.connection;
  end if;
end $$;
comment on function once.disconnect(text) is 'Internal: closes a dblink connection if it is open.';
call once.allow('recover', 'disconnect');
