-- Asks the home of a branch, wherever it is: this database, or another through dblink.
create function once.ask_home(gid text) returns text language plpgsql volatile set search_path = '' as $$
declare v_gid record := once.decode_gid(ask_home.gid);
begin
  if v_gid.manager <> 'pgonce' or v_gid.home = (select d.id from once.database d) then
    return once.gid_outcome(ask_home.gid);
  end if;
  return once.carry(jsonb_build_object('step', 'finish', 'asking', once.database_id(), 'asked', v_gid.home,
    'ids', array[v_gid.transaction_id], 'xids', array[v_gid.home_xid])::text)::jsonb #>> '{outcomes,0}';
end $$;
comment on function once.ask_home(text) is
  'Committed, aborted or pending, asked at its home through dblink: select once.ask_home(''once:1:...'').';
call once.allow('recover', 'ask_home');
