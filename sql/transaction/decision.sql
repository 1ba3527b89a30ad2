-- For operators at the home: what became of the transaction that a gid, or an application's id, names.
create function once.decision(gid text) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  -- An application's id is a gid without the participant.
  v_gid record := once.decode_gid(case when decision.gid ~ '^once:1:[^:]*:[^:]*:[^:]*$' then decision.gid || ':-'
                                       else decision.gid end);
begin
  if v_gid.manager <> 'pgonce' then
    raise exception 'not a gid of pgonce: %', coalesce(quote_literal(left(decision.gid, 200)), 'null')
      using errcode = 'ONARG', detail = 'Expected once:1:<home>:<transaction>:<home xid>:<participant>.',
            hint = 'Others must be asked about theirs; see the column manager of once.in_doubt.';
  end if;
  return once.decide(v_gid.home, v_gid.transaction_id, v_gid.home_xid::xid8);
end
$$;

comment on function once.decision(text) is
  'Home: committed, aborted or pending for a gid: select once.decision(''once:1:…''). Elsewhere: see once.ask_home.';
revoke all on function once.decision(text) from public;
