-- Takes participants that turned out to have written nothing out of the current transaction's own
-- decision row, or the row itself and this branch's evidence if nobody else is left (one-phase commit).
-- SECURITY DEFINER so that an application needs no right to change decisions: it reaches only rows
-- that the current transaction inserted. For its search_path see once.ensure_partition.
create function once.narrow_global(transaction_id uuid, participants text[], database_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xid constant bigint := pg_current_xact_id_if_assigned()::text::bigint;
begin
  if narrow_global.participants is null or narrow_global.database_ids is null
     or cardinality(narrow_global.participants) <> cardinality(narrow_global.database_ids)
     or exists (select from unnest(narrow_global.participants, narrow_global.database_ids) p (name, database_id)
                 where p.name is null or p.database_id is null) then
    raise exception 'bad participants: % names, % database ids', coalesce(cardinality(narrow_global.participants)::text, 'null'),
        coalesce(cardinality(narrow_global.database_ids)::text, 'null')
      using errcode = 'ONARG',
            detail = 'Expected as many database ids as names. Null would be taken for "nobody is left", which removes the decision.',
            hint = 'Pass empty arrays if every other participant wrote nothing.';
  end if;
  if cardinality(narrow_global.participants) > 0 then
    update once.global_transaction g
       set participants = narrow_global.participants,
           database_ids = narrow_global.database_ids
     where g.transaction_id = narrow_global.transaction_id
       and g.home_xid = pg_current_xact_id_if_assigned();
  else
    delete from once.global_transaction g
     where g.transaction_id = narrow_global.transaction_id
       and g.home_xid = pg_current_xact_id_if_assigned();
  end if;
  -- A row that we see, of a transaction in progress, is our own, even if a savepoint of the handler's is open and
  -- the row has the xid of that. xmin has 32 bits; it lies within 2^31 of our xid.
  delete from once.evidence e
   where e.transaction_id = narrow_global.transaction_id
     and pg_xact_status((v_xid + (((e.xmin::text::bigint - v_xid) & 4294967295) # 2147483648) - 2147483648)::text::xid8)
         = 'in progress';
end
$$;

comment on function once.narrow_global(uuid, text[], uuid[]) is
  'Corrects the current transaction''s own decision row to the participants that wrote; none left: removes it.';
call once.allow('app', 'narrow_global');
