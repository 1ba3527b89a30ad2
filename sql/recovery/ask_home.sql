-- Asks the home of a branch, wherever it is: this database, or another through dblink.
create function once.ask_home(gid text) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_gid record := once.decode_gid(ask_home.gid);
  v_connection text;
  v_outcome text;
begin
  if v_gid.manager <> 'pgonce' or v_gid.home = (select i.id from once.database i) then
    return once.gid_outcome(ask_home.gid);
  end if;
  v_connection := once.connect(v_gid.home);
  begin
    select (r.v)[1] into v_outcome
      from once.remote(v_connection, format('select array[once.branch_outcome(%L, %L, %L)]', v_gid.home,
                                            v_gid.transaction_id, v_gid.home_xid)) r (v);
    perform once.disconnect(v_connection);
  exception when others then
    perform once.disconnect(v_connection);
    raise;
  end;
  return v_outcome;
end
$$;

comment on function once.ask_home(text) is
  'Committed, aborted or pending for a gid, asked at its home through dblink: select once.ask_home(''once:1:...'').';
revoke all on function once.ask_home(text) from public;
