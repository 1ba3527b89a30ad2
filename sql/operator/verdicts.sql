-- Internal: the decisions about branches as far as this database knows them, in words where it does not. It
-- never fails, since a view shows it: at three in the morning a list without decisions is better than none.
create function once.verdicts(homes uuid[], transaction_ids uuid[], home_xids text[])
returns table (home uuid, transaction_id uuid, home_xid text, verdict text)
language plpgsql volatile
set search_path = ''
-- As ever, whatever once.inspect has set for itself: decisions are found by index.
set enable_nestloop = on
set enable_sort = on
as $$
declare
  v_self uuid;
  v_why_not text;
  v_ids uuid[];
  v_xids xid8[];
begin
  begin
    v_self := once.home_id();
  exception when sqlstate 'ONCPY' then
    select i.id into v_self from once.identity i;
    v_why_not := 'unknown here: this database is a copy, see select once.home_id()';
  end;
  if pg_is_in_recovery() then
    v_why_not := 'unknown here: this is a standby, ask the primary';
  elsif current_setting('transaction_isolation') <> 'read committed' then
    v_why_not := 'unknown here: ask under read committed';
  end if;
  select array_agg(i.id), array_agg(i.xid::xid8) into v_ids, v_xids
    from unnest(verdicts.homes, verdicts.transaction_ids, verdicts.home_xids) i (home, id, xid)
   where i.home = v_self;
  if cardinality(v_ids) is distinct from cardinality(verdicts.transaction_ids) then
    return query
    select i.home, i.id, i.xid, 'unknown here: ask ' || i.home
      from unnest(verdicts.homes, verdicts.transaction_ids, verdicts.home_xids) i (home, id, xid)
     where i.home is distinct from v_self;
  end if;
  if v_why_not is not null then
    return query select v_self, i.id, i.xid::text, v_why_not from unnest(v_ids, v_xids) i (id, xid);
  elsif v_ids is not null then
    return query select v_self, d.transaction_id, d.home_xid::text, d.decision from once.decide_batch(v_self, v_ids, v_xids) d;
  end if;
end
$$;

comment on function once.verdicts(uuid[], uuid[], text[]) is
  'Internal: committed, aborted or pending for transactions whose home is this database; else why it is unknown here.';
revoke all on function once.verdicts(uuid[], uuid[], text[]) from public;
