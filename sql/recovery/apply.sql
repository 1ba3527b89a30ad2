-- Recovery, step 3 (the database that asked): applies the answers of a batch. It marks, purges and records by
-- itself; what no function can run it returns, with what there is to report. JSON, a row each:
--   "run"                            a "statement", outside of a transaction, as "role" if that is not null;
--                                    "gid", "id" and "outcome" are for people
--   "pending", "unfinished"          a gid as "subject", and the "detail"
--   "proven", "purged"               a "count"
--   "lost branch", "lost decision"   a transaction as "subject", "participant", "home" and "detail"
-- Answers may be late, come again, or be some of a batch only: an outcome never changes; a mark needs the
-- evidence of every participant; and what is called lost is read once more here, after the answer.
create function once.apply(answers text) returns setof text
language plpgsql volatile set search_path = '' as $$
declare v_self uuid; v_step text; v_answer record; v_loss record; v_ids uuid[] := '{}'; v_count bigint;
begin
  for v_answer in select a.* from once.read_messages(apply.answers) a loop
    perform once.assert_home(v_answer.asking);
    v_self := v_answer.asking;
    if v_answer.step <> coalesce(v_step, v_answer.step) then
      raise exception 'answers to different questions: % and %', v_step, v_answer.step
        using errcode = 'ONARG', detail = 'Those of a batch go together.', hint = 'See "batch" of once.ask.';
    end if;
    v_step := v_answer.step;
    v_ids := v_ids || v_answer.ids;
    if v_step = 'finish' then
      return query select s::text
        from once.finish_statements(v_answer.asked, v_answer.ids, v_answer.xids, v_answer.outcomes) s;
    elsif v_step = 'judge' then
      perform once.judge_heuristic(h.transaction_id, o.outcome)
         from unnest(v_answer.ids, v_answer.xids, v_answer.outcomes) o (id, xid, outcome)
         join once.heuristic h on h.home = v_answer.asked and h.transaction_id = o.id and h.home_xid = o.xid
        where h.judged_at is null;
    elsif v_step = 'audit' then
      -- A decision goes only after its evidence: if that is still here, the home has lost the decision.
      for v_loss in
        select e.transaction_id as id, e.participant from once.evidence e
         where e.transaction_id in (select f from once.find_evidence(v_answer.missing) f)
           and e.home = v_answer.asked
      loop
        if once.record_loss(v_loss.id, v_loss.participant, v_answer.asked, 'lost decision') then
          return next jsonb_build_object('action', 'lost decision', 'subject', v_loss.id,
            'participant', v_loss.participant, 'home', v_answer.asked,
            'detail', format('committed here, home %s has no decision', v_answer.asked));
        end if;
      end loop;
    end if;
  end loop;
  if coalesce(v_step, '') not in ('prove', 'confirm', 'purge') then return; end if;

  -- Those that every participant has answered for: with evidence, or that it is deleted.
  v_ids := array(
    select g.transaction_id from once.global_transaction g
      left join lateral unnest(g.database_ids) p (id) on true
      left join (select distinct a.asked, unnest(case v_step when 'purge' then a.ids else a.evident end) as id
                   from once.read_messages(apply.answers) a) n on n.id = g.transaction_id and n.asked = p.id
     where g.transaction_id = any (v_ids) group by g.transaction_id
    having count(p.id) = count(n.id));
  v_count := case v_step when 'prove' then once.mark_proven(v_ids)
                         when 'confirm' then once.mark_confirmed(v_ids)
                         else once.purge(v_ids) end;
  if v_count > 0 and v_step <> 'confirm' then
    return next jsonb_build_object('action', case v_step when 'prove' then 'proven' else 'purged' end,
                                   'count', v_count);
  end if;

  -- A decision read without the mark (once.ask), whose branch is then neither prepared nor, after that,
  -- evident (once.answer), and which is still without the mark after that, has lost the branch: it was
  -- prepared when the decision was made; what leaves the list of prepared transactions by committing has left
  -- its evidence before; and evidence goes only after the decision is marked. Hence the order of readings.
  for v_loss in
    select d.transaction_id as id, coalesce(p.name, '') as name, a.asked
      from once.read_messages(apply.answers) a cross join lateral unnest(a.missing) m (id)
      join once.find_decisions(array(select unnest(o.missing) from once.read_messages(apply.answers) o)) d
        on d.transaction_id = m.id and not case v_step when 'prove' then d.proven else d.confirmed end
      join once.global_transaction g on g.transaction_id = d.transaction_id
     cross join lateral unnest(g.participants, g.database_ids) p (name, id)
     where p.id = a.asked
  loop
    if once.record_loss(v_loss.id, v_loss.name, v_self, 'lost branch') then
      return next jsonb_build_object('action', 'lost branch', 'subject', v_loss.id,
        'participant', v_loss.name, 'home', v_self, 'detail',
        format('committed here, participant %s has neither the branch nor evidence of it', v_loss.name));
    end if;
  end loop;
end $$;
comment on function once.apply(text) is
  'Recovery, step 3: applies answers of once.answer here; returns as JSON what to run, and what to report.';
call once.allow('recover', 'apply');
