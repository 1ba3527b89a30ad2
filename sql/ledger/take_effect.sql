-- Runs statements if the claim is new, in the claim's round trip, and hands on its answer. The names in them
-- are the caller's, so it has no search_path of its own, and names what it uses with its schema.
create function once.take_effect(status text, statements text[]) returns text language plpgsql volatile as $$
declare v_statement pg_catalog.text;
begin
  if take_effect.status operator(pg_catalog.=) 'claimed'::pg_catalog.text then
    foreach v_statement in array take_effect.statements loop
      execute v_statement;
    end loop;
  elsif (take_effect.status operator(pg_catalog.=) any ('{duplicate,expired}'::pg_catalog.text[]))
        is not true then
    raise exception 'no answer of a claim: %', coalesce(take_effect.status, 'null') using errcode = 'ONARG',
      detail = 'Expected claimed, duplicate or expired.', hint = 'Pass what once.claim or claim_key answers.';
  end if;
  return take_effect.status;
end $$;
comment on function once.take_effect(text, text[]) is
  'Runs statements if a claim is new: select once.take_effect(once.claim(''shop-7'', 41), array[''...'']).';
call once.allow('app', 'take_effect');
