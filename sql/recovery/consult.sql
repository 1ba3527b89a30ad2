-- Internal: a courier within the caller's transaction, for people at psql: asks here, carries each question,
-- applies each answer here. For the steps whose answers need not be applied together; it runs no statements.
create function once.consult(step text) returns setof jsonb
language plpgsql volatile set search_path = '' as $$
declare v_row jsonb;
begin
  for v_row in select a::jsonb from once.ask(jsonb_build_object('steps', array[consult.step])::text) a loop
    if v_row ? 'action' then
      return next v_row;
    elsif v_row ? 'question' then
      begin
        return query select a::jsonb from once.apply(once.carry((v_row -> 'question')::text)) a;
      exception when others then
        return query select jsonb_build_object('action', 'unfinished', 'subject', g, 'detail', sqlerrm)
                       from jsonb_array_elements_text(v_row -> 'gids') g;
      end;
    end if;
  end loop;
end $$;
comment on function once.consult(text) is
  'Internal: asks, carries through dblink and applies, to finish or to judge; returns what once.apply does.';
call once.allow('recover', 'consult');
