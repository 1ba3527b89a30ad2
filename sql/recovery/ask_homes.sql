-- Internal: the outcomes of branches, each home asked once for all of its. An outcome, once given, never
-- changes, so it is still true when somebody acts on it. Null with a reason where a home cannot be asked.
create function once.ask_homes(gids text[]) returns table (gid text, outcome text, reason text)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_self uuid := once.database_id();
  v_home record;
  v_connection text;
begin
  for v_home in
    select d.home, array_agg(i.gid) as gids, array_agg(d.transaction_id) as ids, array_agg(d.home_xid) as xids
      from unnest(ask_homes.gids) i (gid), once.decode_gid(i.gid) d
     where d.manager = 'pgonce'
     group by d.home
  loop
    begin
      if v_home.home = v_self then
        return query
        select i.gid, b.outcome, null::text
          from once.branch_outcomes(v_self, v_home.ids, v_home.xids::xid8[]) with ordinality b (id, xid, outcome, n)
          join unnest(v_home.gids, v_home.ids, v_home.xids) i (gid, id, xid) on i.id = b.id and i.xid::xid8 = b.xid
         group by i.gid, b.outcome;
      else
        v_connection := once.connect(v_home.home);
        return query
        select i.gid, (r.v)[3], null::text
          from once.remote(v_connection, format(
                 'select array[b.transaction_id::text, b.home_xid::text, b.outcome] '
                 'from once.branch_outcomes(%L, %L::uuid[], %L::xid8[]) b', v_home.home, v_home.ids, v_home.xids)) r (v)
          join unnest(v_home.gids, v_home.ids, v_home.xids) i (gid, id, xid) on i.id = (r.v)[1]::uuid and i.xid = (r.v)[2]
         group by i.gid, (r.v)[3];
        perform once.disconnect(v_connection);
      end if;
    exception when others then
      return query select i, null::text, sqlerrm || case when sqlstate = 'ONEXT' then '' else format(' (%s)', sqlstate) end
                     from unnest(v_home.gids) i;
    end;
  end loop;
end
$$;

comment on function once.ask_homes(text[]) is
  'Internal: committed, aborted or pending for each gid, asked at its home; null and the reason where that fails.';
call once.allow('recover', 'ask_homes');
