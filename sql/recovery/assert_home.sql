-- Internal: raises unless this database may answer for a home, now, in this transaction.
create function once.assert_home(home uuid) returns void language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'an outcome cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO',
      detail = 'The row must be read with a snapshot newer than the transaction''s status.',
      hint = 'begin transaction isolation level read committed;';
  end if;
  if once.database_id() is distinct from assert_home.home then
    raise exception 'this database is %, not the home %',
        once.database_id(), coalesce(assert_home.home::text, 'null') using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = 'Find it: select id from once.database in each database.';
  end if;
end $$;
comment on function once.assert_home(uuid) is
  'Internal: raises ONSTB on a standby, ONISO under a frozen snapshot, ONIDN in another database.';
call once.allow('app, recover, monitor', 'assert_home');
