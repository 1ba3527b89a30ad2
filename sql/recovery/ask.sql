-- Recovery, step 1 (every database): what this database wants to know, and from which other. It returns JSON,
-- a row each, which a courier carries without knowing what it says; see docs/protocol.md#couriers:
--   {"id"}                         which database this is, first of all
--   {"batch", "to", "question"}    for once.answer at database "to"; the answers of a batch go together to
--                                  once.apply here; "gids": the branches that wait for the answer
--   {"action"}                     something to report, as once.apply has it
--   {"again"}                      a branch is too young: look again soon
--   {"next"}                       there is more: the request for it
--
-- The request has "steps" (finish, prove, confirm, purge, audit, judge); "settle", how old a branch must be;
-- "keep", of which one half lies between the two looks at the evidence, and the other before it goes; and
-- "recoverer", to note who looked after this database. It answers a page at a time: a long backlog must fit
-- into memory, and what cannot be done now must not keep the rest from its turn.
create function once.ask(request text) returns setof text language plpgsql volatile set search_path = '' as $$
declare
  v_self constant uuid := once.database_id();
  v_request jsonb; v_steps text[]; v_step text; v_settle interval; v_half interval;
  v_at timestamptz; v_id uuid; v_gid text; v_branches constant integer := 10000;
  v_page constant integer := 1000;
begin
  perform once.assert_primary();
  begin
    v_request := ask.request;
    v_steps := array(select jsonb_array_elements_text(v_request -> 'steps'));
    v_settle := coalesce(v_request ->> 'settle', '0');
    v_half := coalesce(v_request ->> 'keep', '10 minutes')::interval / 2;
    v_at := coalesce(v_request #>> '{after,at}', '-infinity');
    v_id := coalesce(v_request #>> '{after,id}', '00000000-0000-0000-0000-000000000000');
    v_gid := coalesce(v_request #>> '{after,gid}', '');
    if v_steps = '{}' or not v_steps <@ array['finish', 'prove', 'confirm', 'purge', 'audit', 'judge'] then
      raise data_exception using message = 'no steps, or unknown ones';
    end if;
  exception when others then
    raise exception 'no request of a recoverer: %', quote_nullable(left(ask.request, 200))
      using errcode = 'ONARG', detail = sqlerrm, hint = 'select once.ask(''{"steps": ["finish", "prove"]}'')';
  end;
  return next jsonb_build_object('id', v_self);

  foreach v_step in array v_steps loop
    if v_step = 'finish' then
      return query with branch as materialized (
        select b.* from once.branch b
         where (b.ours or b.owner is null and b.transaction_id is not null) and b.gid > v_gid
      ), page as materialized (
        select b.* from branch b where b.age >= v_settle order by b.gid limit v_branches
      )
      -- This database's own first: it needs no connection to another.
      (select jsonb_build_object('batch', v_step || ' ' || p.home, 'to', p.home, 'gids', jsonb_agg(p.gid),
                'question', jsonb_build_object('step', v_step, 'asking', v_self, 'asked', p.home,
                  'ids', jsonb_agg(p.transaction_id), 'xids', jsonb_agg(p.home_xid)))::text
         from page p
        where p.can_finish or not p.ours
        group by p.home order by p.home <> v_self)
      union all
      select jsonb_build_object('action', 'unfinished', 'subject', p.gid, 'detail',
               format('only role %1$I may finish it; a superuser can: grant %1$I to %2$I',
                      p.owner, current_user))::text
        from page p where p.ours and not p.can_finish
      union all
      select '{"again": true}' where exists (select from branch b where b.age < v_settle)
      union all
      select jsonb_build_object('next', v_request || jsonb_build_object('steps', array[v_step],
               'after', jsonb_build_object('gid', max(p.gid))))::text
        from page p having count(*) = v_branches;
      continue;
    end if;
    return query with item as materialized (
      select i.*
        from (select d.decided_at, d.transaction_id, d.database_ids, null::text
                from once.unproven(v_page, v_at, v_id) d where v_step = 'prove'
               union all
              select d.proven_at, d.transaction_id, d.database_ids, null
                from once.proven(v_page, v_half, v_at, v_id) d where v_step = 'confirm'
               union all
              select d.confirmed_at, d.transaction_id, d.database_ids, null
                from once.confirmed(v_page, v_half, v_at, v_id) d where v_step = 'purge'
               union all
              select '-infinity', e.transaction_id, array[e.home], null
                from once.evidence_page(v_page, v_id) e where v_step = 'audit'
               union all
              select '-infinity', h.transaction_id, array[h.home], h.home_xid::text
                from once.heuristic h where v_step = 'judge' and h.judged_at is null
             ) i (at, id, asked, xid)
    )
    -- A decision that concerns nobody else is a question to this database itself.
    select jsonb_build_object(
             'batch', v_step || case when v_step in ('audit', 'judge') then ' ' || q.asked else '' end,
             'to', q.asked,
             'question', jsonb_build_object('step', v_step, 'asking', v_self, 'asked', q.asked,
               'ids', jsonb_agg(q.id), 'xids', array_remove(array_agg(q.xid), null)))::text
      from (select i.id, i.xid, coalesce(a.id, v_self) as asked
              from item i left join lateral unnest(i.asked) a (id) on true) q
     group by q.asked
    union all
    (select jsonb_build_object('next', v_request || jsonb_build_object('steps', array[v_step],
              'after', jsonb_build_object('at', i.at, 'id', i.id)))::text
       from item i
      where v_step <> 'judge' and (select count(*) from item) = v_page
      order by i.at desc, i.id desc limit 1);
  end loop;

  if v_request ->> 'recoverer' is not null then
    begin
      perform once.stamp_recovery(v_request ->> 'recoverer');
    exception when insufficient_privilege or read_only_sql_transaction then
      null;  -- that the role may not is no reason not to recover
    end;
  end if;
end $$;
comment on function once.ask(text) is
  'Recovery, step 1: what this database wants to know from which other, in JSON, for couriers to carry.';
call once.allow('recover', 'ask');
