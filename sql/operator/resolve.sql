-- The statements that finish what is decided, for psql to run: select once.resolve() \gexec
-- Only ours, only what the current user may finish, only with the decision of its home. Homes elsewhere are
-- asked through dblink; what cannot be asked is left out, and stands in once.in_doubt.
--
-- The reason stands before the statement, as a comment: a comment in front does not make it two statements,
-- and one at the end would swallow a semicolon.
create function once.resolve() returns table (statement text)
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'a decision cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO', detail = 'The row must be read with a snapshot newer than the transaction''s status.',
            hint = 'begin transaction isolation level read committed;';
  end if;
  return query
  with branch as materialized (
    select b.gid, b.owner, b.home, b.transaction_id, b.prepared_at, b.age,
           b.owner <> current_user
           and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) as as_other
      from once.branch b
     where b.ours and b.can_finish
  ), decided as materialized (
    select b.*, a.decision
      from branch b
      join once.ask_homes((select array_agg(o.gid) from branch o)) a on a.gid = b.gid
     where a.decision in ('committed', 'aborted')
  ), line (owner, step, prepared_at, statement) as (
    select distinct d.owner, 1, '-infinity'::timestamptz, format('/* only its owner may finish it */ set role %I', d.owner)
      from decided d where d.as_other
    union all
    select d.owner, 2, d.prepared_at,
           format('/* %s: home %s %s; prepared %s ago */ %s prepared %L', d.transaction_id, d.home,
                  case d.decision when 'committed' then 'committed' else 'is over and did not commit' end,
                  date_trunc('second', d.age), case d.decision when 'committed' then 'commit' else 'rollback' end, d.gid)
      from decided d
    union all
    select distinct d.owner, 3, 'infinity'::timestamptz, 'reset role' from decided d where d.as_other
  )
  select l.statement from line l order by l.owner, l.step, l.prepared_at;
end
$$;

comment on function once.resolve() is
  'The statements that finish every decided branch of ours here; in psql: select once.resolve() \gexec';
revoke all on function once.resolve() from public;
