-- Internal: reads what a courier brings, one question or a list of answers. Whatever is not one is refused:
-- it decides what is marked, deleted and finished. All messages have the same members:
--   step      finish, judge: outcomes; prove, confirm: evidence; purge: evidence deleted; audit: decisions;
--             acknowledge: what was acknowledged by hand
--   asking, asked                   the databases, by their ids
--   ids                             transactions; with xids of their home, for outcomes
--   outcomes, evident, missing      of an answer; outcomes in the order of ids
create function once.read_messages(messages text) returns table (
  step text, asking uuid, asked uuid, ids uuid[], xids xid8[], outcomes text[], evident uuid[], missing uuid[]
) language plpgsql stable set search_path = '' as $$
declare v_messages jsonb; v_message jsonb;
begin
  begin
    v_messages := read_messages.messages;
    for v_message in
      select m from jsonb_array_elements(case jsonb_typeof(v_messages) when 'array' then v_messages
                                              else jsonb_build_array(v_messages) end) m
    loop
      read_messages.step := v_message ->> 'step';
      read_messages.asking := v_message ->> 'asking';
      read_messages.asked := v_message ->> 'asked';
      read_messages.ids := array(select jsonb_array_elements_text(v_message -> 'ids'));
      read_messages.xids := array(select jsonb_array_elements_text(v_message -> 'xids'));
      read_messages.outcomes := array(select jsonb_array_elements_text(v_message -> 'outcomes'));
      read_messages.evident := array(select jsonb_array_elements_text(v_message -> 'evident'));
      read_messages.missing := array(select jsonb_array_elements_text(v_message -> 'missing'));
      if read_messages.step is null or read_messages.asking is null or read_messages.asked is null
         or cardinality(read_messages.outcomes) not in (0, cardinality(read_messages.ids))
         or read_messages.outcomes <@ array['committed', 'aborted', 'pending'] is not true then
        raise data_exception using message = 'it lacks a member, or has an outcome that is none';
      end if;
      return next;
    end loop;
  exception when others then
    raise exception 'no message of recovery: %', quote_nullable(left(read_messages.messages, 200))
      using errcode = 'ONARG', detail = sqlerrm, hint = 'Pass on what once.ask and once.answer say as it is.';
  end;
end $$;
comment on function once.read_messages(text) is
  'Internal: takes a question of once.ask, or a list of answers of once.answer, apart; else raises ONARG.';
call once.allow('recover', 'read_messages');
