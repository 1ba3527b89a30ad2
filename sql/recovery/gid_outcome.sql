-- For operators at the home: what became of the transaction that a gid, or an application's id, names.
create function once.gid_outcome(gid text) returns text language plpgsql volatile set search_path = '' as $$
declare
  -- An application's id is a gid without the participant.
  v_gid record := once.decode_gid(gid_outcome.gid
    || case when gid_outcome.gid ~ '^once:1:[^:]*:[^:]*:[^:]*$' then ':-' else '' end);
begin
  if v_gid.manager <> 'pgonce' then
    raise exception 'not a gid of pgonce: %', coalesce(quote_literal(left(gid_outcome.gid, 200)), 'null')
      using errcode = 'ONARG', detail = 'Expected once:1:<home>:<transaction>:<home xid>:<participant>.',
      hint = 'Others must be asked about theirs; see the column manager of once.in_doubt.';
  end if;
  return once.branch_outcome(v_gid.home, v_gid.transaction_id, v_gid.home_xid::xid8);
end $$;
comment on function once.gid_outcome(text) is
  'Home: committed, aborted or pending: select once.gid_outcome(''once:1:...''); elsewhere once.ask_home.';
call once.allow('recover, monitor', 'gid_outcome');
