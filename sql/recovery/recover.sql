-- A whole round of recovery inside Postgres, for this database: a courier over dblink of what once.ask,
-- once.answer and once.apply say, as in TypeScript (src/recovery/courier.ts); both may run at once, and
-- several of each. By pg_cron: see docs/operations.md.
--
-- This database's own part goes over a loopback connection, each call as a transaction of its own: COMMIT
-- PREPARED cannot run in a function; each reading needs a newer snapshot; and "proven" must be committed
-- before any evidence goes. Questions are carried from there as well: dblink heeds no connect_timeout since
-- Postgres 16, statement_timeout there ends what hangs.
create function once.recover(keep interval default '10 minutes', settle interval default '0')
returns table (action text, count bigint, subject text, detail text)
language plpgsql volatile set search_path = '' set intervalstyle = 'postgres' as $$
declare
  v_self uuid := once.database_id(); v_me text; v_audit boolean; v_requests text[]; v_rows jsonb[];
  v_batch jsonb[]; v_question jsonb; v_answers text[]; v_result jsonb; v_problem text;
  v_down text[] := '{}';
begin
  perform once.assert_home(v_self);
  v_me := once.connect(v_self);
  v_audit := (
    select coalesce(r.audited_at < clock_timestamp() - interval '1 minute', true) from once.recovery r);
  v_requests := array(
    select jsonb_build_object('steps', array[s], 'keep', recover.keep, 'settle', recover.settle,
                              'recoverer', 'once.recover()')::text
      from unnest(array['finish', 'prove', 'confirm', 'purge', 'audit', 'judge']) with ordinality u (s, n)
     where v_audit or n <= 4);
  while v_requests <> '{}' loop
    v_rows := array(select a::jsonb from once.remote(v_me, format('select once.ask(%L)', v_requests[1])) a);
    v_requests := array(select (r -> 'next')::text from unnest(v_rows) r where r ? 'next') || v_requests[2:];
    for v_batch in
      select array_agg(r.said) from unnest(v_rows) with ordinality r (said, n)
       where r.said ? 'action' or r.said ? 'batch' group by r.said ->> 'batch' order by min(r.n)
    loop
      v_answers := '{}';
      foreach v_question in array v_batch loop
        continue when v_question ? 'action';
        v_problem := case when v_question ->> 'to' = any (v_down) then 'not asked again' end;
        if v_problem is null then
          begin
            v_answers := v_answers || array(
              select a from once.remote(v_me, format('select once.carry(%L)', v_question -> 'question')) a);
            continue;
          exception when others then
            v_problem := sqlerrm;
            v_down := v_down || (v_question ->> 'to');
          end;
        end if;
        return query
        select 'unfinished', 1::bigint, g, v_problem from jsonb_array_elements_text(v_question -> 'gids') g
        union all
        select 'unreachable', jsonb_array_length(v_question #> '{question,ids}'), v_question ->> 'to',
               v_problem
         where not v_question ? 'gids';
      end loop;
      for v_result in
        select r from unnest(v_batch) r where r ? 'action'
        union all
        select a::jsonb
          from once.remote(v_me,
                 format('select once.apply(%L)', '[' || array_to_string(v_answers, ',') || ']')) a
      loop
        if v_result ->> 'action' = 'run' then
          v_problem := once.finish_remote(v_me, v_result ->> 'statement', (v_result ->> 'role')::name);
          continue when v_problem = 'gone';
          return query
          select case when v_problem is not null then 'unfinished'
                      when v_result ->> 'outcome' = 'committed' then 'committed' else 'rolled back' end,
                 1::bigint, v_result ->> 'gid', v_problem;
        else
          return query select v_result ->> 'action', coalesce((v_result ->> 'count')::bigint, 1),
                              v_result ->> 'subject', v_result ->> 'detail';
        end if;
      end loop;
    end loop;
  end loop;
  if v_audit then
    perform once.remote(v_me, 'select once.stamp_recovery(''once.recover()'', true)::text');
  end if;
  perform once.disconnect(v_me);
end $$;
comment on function once.recover(interval, interval) is
  'Recovers this database from within, through dblink; says what it did: select * from once.recover();';
call once.allow('recover', 'recover');
