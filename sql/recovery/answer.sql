-- Recovery, step 2 (the database that a question is for): answers it. Only a primary answers, only the
-- database that is asked, and only under READ COMMITTED, where each reading has a newer snapshot.
create function once.answer(question text) returns text language plpgsql volatile set search_path = '' as $$
declare v_question record; v_header jsonb; v_prepared uuid[]; v_evident uuid[];
begin
  select q.* into strict v_question from once.read_messages(answer.question) q;
  perform once.assert_home(v_question.asked);
  v_header := jsonb_build_object('step', v_question.step, 'asking', v_question.asking,
                                 'asked', v_question.asked, 'ids', v_question.ids);
  case
    when v_question.step in ('finish', 'judge') then
      return v_header || (
        select jsonb_strip_nulls(jsonb_build_object('ids', array_agg(o.transaction_id),
                 'xids', array_agg(o.home_xid), 'outcomes', array_agg(o.outcome)))
          from once.branch_outcomes(v_question.asked, v_question.ids, v_question.xids) o);
    when v_question.step in ('prove', 'confirm') then
      -- First what is prepared, then, with a newer snapshot, what is evident: a branch that commits is
      -- evident before it leaves the first list. So what is in neither is missing.
      v_prepared := array(select b.transaction_id from once.branch b where b.transaction_id is not null);
      v_evident := array(select e from once.find_evidence(v_question.ids) e);
      return v_header || jsonb_build_object('evident', v_evident, 'missing', array(
        select unnest(v_question.ids) except select unnest(v_prepared) except select unnest(v_evident)));
    when v_question.step = 'purge' then
      -- The home has confirmed these. Whoever hears this answer knows that the deletion is committed.
      perform once.delete_evidence(v_question.asking, v_question.ids);
      return v_header;
    when v_question.step = 'audit' then
      return v_header || jsonb_build_object('missing', array(
        select unnest(v_question.ids)
        except select d.transaction_id from once.find_decisions(v_question.ids) d));
    when v_question.step = 'acknowledge' then
      return v_header || jsonb_build_object('ids',
        array(select i from once.find_acknowledged(v_question.ids) i));
    else
      raise exception 'unknown question: %', quote_literal(left(v_question.step, 40)) using errcode = 'ONARG',
        detail = 'Another version of schema once has asked it.',
        hint = 'Bring all databases up to date: npx pgonce migrate';
  end case;
end $$;
comment on function once.answer(text) is
  'Recovery, step 2: answers a question of once.ask that is for this database.';
call once.allow('recover', 'answer');
