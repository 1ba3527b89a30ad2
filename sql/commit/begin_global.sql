-- The home's part, right before the others prepare: records the decision that its own COMMIT will make, and
-- returns its xid for the gids; null if the home wrote nothing (choose another home).
--
-- A caller that remembers the home's database id names it: the gids carry it, and if this database has
-- another id by now, its decision would never be found. Null: it was read here just now.
--
-- synchronous_commit: a visible row must be a durable one. Otherwise a recoverer could see it, commit a
-- branch, and the home lose its decision in a crash.
create function once.begin_global(
  transaction_id uuid, participants text[], database_ids uuid[], home uuid default null
) returns xid8 language plpgsql volatile set search_path = '' as $$
declare v_xid xid8;
begin
  -- Asked here as well, which is the faster way to hear that all is well.
  if current_setting('once.transaction', true)
     is distinct from begin_global.transaction_id || ' ' || current_user then
    perform once.assert_branch(begin_global.transaction_id);
  end if;
  v_xid := pg_current_xact_id_if_assigned();
  if v_xid is null then return null; end if;
  -- Without its database id a participant would never be asked for evidence: the decision could be purged
  -- while the branch is still prepared.
  if begin_global.transaction_id is null
     or begin_global.participants is null or begin_global.database_ids is null
     or cardinality(begin_global.participants) <> cardinality(begin_global.database_ids)
     or (case when array_ndims(begin_global.participants) > 1
                or array_ndims(begin_global.database_ids) > 1 then true
              else array_position(begin_global.participants, null) is not null
                   or array_position(begin_global.database_ids, null) is not null end) then
    raise exception 'bad participants: % names, % database ids',
        coalesce(cardinality(begin_global.participants)::text, 'null'),
        coalesce(cardinality(begin_global.database_ids)::text, 'null') using errcode = 'ONARG',
      detail = 'Expected an id, and as many database ids as names, none of them null.',
      hint = 'Name each database but this one: array[''billing''], and what once.database_id() says there.';
  end if;
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  if begin_global.home is not null
     and not exists (select from once.database d where d.id = begin_global.home) then
    raise exception 'this database is %, not the home %',
        (select d.id from once.database d), begin_global.home using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = 'select once.database_id(); anew, and begin the transaction anew.';
  end if;
  -- home_xid is left to its default, so that nobody needs the right to choose one: see once.branch_outcome.
  insert into once.global_transaction (transaction_id, participants, database_ids)
  values (begin_global.transaction_id, begin_global.participants, begin_global.database_ids);
  return v_xid;
end $$;
comment on function once.begin_global(uuid, text[], uuid[], uuid) is
  'Home, before the others prepare: inserts the decision, returns the home''s xid (null: it wrote nothing).';
call once.allow('app', 'begin_global');
