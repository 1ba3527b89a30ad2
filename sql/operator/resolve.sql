-- The statements that finish what is decided, for psql to run: select once.resolve() \gexec
-- Only ours, only what the current user may finish, only as its home decided. Homes elsewhere are
-- asked through dblink; what cannot be asked is left out, and stands in once.in_doubt. A notice says why, since who
-- types this and sees nothing happen would not know what is missing.
--
-- The reason stands before the statement, as a comment: a comment in front does not make it two statements,
-- and one at the end would swallow a semicolon.
create function once.resolve() returns table (statement text)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_gids text[];
  v_outcomes text[];
  v_reasons text[];
  v_left record;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'an outcome cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO', detail = 'The row must be read with a snapshot newer than the transaction''s status.',
            hint = 'begin transaction isolation level read committed;';
  end if;
  select array_agg(a.gid), array_agg(a.outcome), array_agg(a.reason)
    into v_gids, v_outcomes, v_reasons
    from once.ask_homes((select array_agg(b.gid) from once.branch b where b.ours and b.can_finish)) a;
  for v_left in
    select b.gid, case when not b.can_finish then format('only role %1$I may finish it; a superuser can: grant %1$I to %2$I', b.owner, current_user)
                       when a.outcome = 'pending' then 'pending: the home''s transaction still runs'
                       else a.reason end as reason
      from once.branch b
      left join unnest(v_gids, v_outcomes, v_reasons) a (gid, outcome, reason) on a.gid = b.gid
     where b.ours
       and (not b.can_finish or a.outcome = 'pending' or a.reason is not null)
     order by b.prepared_at
  loop
    raise notice 'no line for %: %', v_left.gid, v_left.reason;
  end loop;
  return query
  with branch as materialized (
    select b.gid, b.owner, b.home, b.transaction_id, b.prepared_at, b.age,
           b.owner <> current_user
           and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) as as_other
      from once.branch b
     where b.ours and b.can_finish
  ), decided as materialized (
    select b.*, a.outcome
      from branch b
      join unnest(v_gids, v_outcomes) a (gid, outcome) on a.gid = b.gid
     where a.outcome in ('committed', 'aborted')
  ), line (owner, step, prepared_at, statement) as (
    select distinct d.owner, 1, '-infinity'::timestamptz, format('/* only its owner may finish it */ set role %I', d.owner)
      from decided d where d.as_other
    union all
    select d.owner, 2, d.prepared_at,
           format('/* %s: home %s %s; prepared %s ago */ %s prepared %L', d.transaction_id, d.home,
                  case d.outcome when 'committed' then 'committed' else 'is over and did not commit' end,
                  date_trunc('second', d.age), case d.outcome when 'committed' then 'commit' else 'rollback' end, d.gid)
      from decided d
    union all
    select distinct d.owner, 3, 'infinity'::timestamptz, 'reset role' from decided d where d.as_other
  )
  select l.statement from line l order by l.owner, l.step, l.prepared_at;
end
$$;

comment on function once.resolve() is
  'The statements that finish every decided branch of ours here; in psql: select once.resolve() \gexec';
call once.allow('recover', 'resolve');
