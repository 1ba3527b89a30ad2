-- Internal: carries a question to the database that it is for, through dblink, or answers it if this is it.
create function once.carry(question text) returns text language plpgsql volatile set search_path = '' as $$
declare
  v_asked uuid := (select q.asked from once.read_messages(carry.question) q limit 1);
  v_connection text; v_answer text;
begin
  if v_asked = (select d.id from once.database d) then return once.answer(carry.question); end if;
  v_connection := once.connect(v_asked);
  begin
    v_answer := (select r from once.remote(v_connection, format('select once.answer(%L)', carry.question)) r);
    perform once.disconnect(v_connection);
  exception when others then
    perform once.disconnect(v_connection);
    raise;
  end;
  return v_answer;
end $$;
comment on function once.carry(text) is
  'Internal: brings a question to the database that it is for, through dblink; returns the answer.';
call once.allow('recover', 'carry');
