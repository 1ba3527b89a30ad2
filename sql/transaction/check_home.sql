-- Internal: raises unless this database may answer for a home, now, in this transaction.
create function once.check_home(home uuid) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_primary();
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'a decision cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO',
            detail = 'The row must be read with a snapshot newer than the transaction''s status.',
            hint = 'begin transaction isolation level read committed;';
  end if;
  if once.home_id() is distinct from check_home.home then
    raise exception 'this database is %, not the home %', once.home_id(), coalesce(check_home.home::text, 'null')
      using errcode = 'ONIDN', detail = 'Only the database whose identity stands in the gid decides.',
            hint = 'Find it: select id from once.identity in each database.';
  end if;
end
$$;

comment on function once.check_home(uuid) is
  'Internal: raises ONSTB on a standby, ONISO under a frozen snapshot, ONIDN in another database.';
revoke all on function once.check_home(uuid) from public;
