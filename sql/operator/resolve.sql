-- The statements that finish what is decided, for psql to run: select once.resolve() \gexec Only ours, only
-- what the current user may finish, only as its home decided. Homes elsewhere are asked through dblink. What
-- cannot be finished is left out, and a notice says why. The reason stands before the statement, as a
-- comment: one in front does not make it two statements, and one at the end would swallow a semicolon.
create function once.resolve() returns table (statement text)
language plpgsql volatile set search_path = '' as $$
declare v_said jsonb[]; v_left jsonb;
begin
  perform once.assert_home(once.database_id());
  v_said := array(select c from once.consult('finish') c);
  foreach v_left in array v_said loop
    if v_left ->> 'action' <> 'run' then
      raise notice 'no line for %: %', v_left ->> 'subject',
        case v_left ->> 'action' when 'pending' then 'pending: ' else '' end || (v_left ->> 'detail');
    end if;
  end loop;
  return query with decided as materialized (
    select b.owner, b.prepared_at, r ->> 'role' as role,
           format('/* %s: home %s %s; prepared %s ago */ %s', b.transaction_id, b.home,
                  case r ->> 'outcome' when 'committed' then 'committed'
                                       else 'is over and did not commit' end,
                  date_trunc('second', b.age), r ->> 'statement') as statement
      from unnest(v_said) r join once.branch b on b.gid = r ->> 'gid'
  ), line (owner, step, prepared_at, statement) as (
    select distinct d.owner, 1, '-infinity'::timestamptz,
           format('/* only its owner may finish it */ set role %I', d.role)
      from decided d where d.role is not null
    union all
    select d.owner, 2, d.prepared_at, d.statement from decided d
    union all
    select distinct d.owner, 3, 'infinity'::timestamptz, 'reset role' from decided d where d.role is not null
  )
  select l.statement from line l order by l.owner, l.step, l.prepared_at;
end $$;
comment on function once.resolve() is
  'The statements that finish every decided branch of ours here; in psql: select once.resolve() \gexec';
call once.allow('recover', 'resolve');
