-- Internal: the outcomes of branches as far as this database knows them, in words where it does not. It never
-- fails, since a view shows it: a list without outcomes is better than none.
create function once.known_outcomes(homes uuid[], transaction_ids uuid[], home_xids text[])
returns table (home uuid, transaction_id uuid, home_xid text, outcome text)
language plpgsql volatile set search_path = ''
-- As ever, whatever once.inspect has set for itself: decision rows are found by index.
set enable_nestloop = on
set enable_sort = on as $$
declare v_self uuid; v_why_not text; v_ids uuid[]; v_xids xid8[];
begin
  begin
    v_self := once.database_id();
  exception when sqlstate 'ONCPY' then
    select i.id into v_self from once.database i;
    v_why_not := 'unknown here: this database is a copy, see select once.database_id()';
  end;
  if pg_is_in_recovery() then
    v_why_not := 'unknown here: this is a standby, ask the primary';
  elsif current_setting('transaction_isolation') <> 'read committed' then
    v_why_not := 'unknown here: ask under read committed';
  end if;
  select array_agg(i.id), array_agg(i.xid::xid8) into v_ids, v_xids
    from unnest(known_outcomes.homes, known_outcomes.transaction_ids, known_outcomes.home_xids)
         i (home, id, xid) where i.home = v_self;
  if cardinality(v_ids) is distinct from cardinality(known_outcomes.transaction_ids) then
    return query select i.home, i.id, i.xid, 'unknown here: ask ' || i.home
      from unnest(known_outcomes.homes, known_outcomes.transaction_ids, known_outcomes.home_xids)
           i (home, id, xid) where i.home is distinct from v_self;
  end if;
  if v_why_not is not null then
    return query select v_self, i.id, i.xid::text, v_why_not from unnest(v_ids, v_xids) i (id, xid);
  elsif v_ids is not null then
    return query select v_self, b.transaction_id, b.home_xid::text, b.outcome
                   from once.branch_outcomes(v_self, v_ids, v_xids) b;
  end if;
end $$;
comment on function once.known_outcomes(uuid[], uuid[], text[]) is
  'Internal: committed, aborted, pending where this database is the home; else why it is unknown here.';
call once.allow('app, recover, monitor', 'known_outcomes');
