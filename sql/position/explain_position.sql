-- Internal: says why a position could not be moved. Called after the compare-and-set found no row.
create function once.explain_position(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void language plpgsql volatile set search_path = '' as $$
declare
  v_row once.consumer_position;
  v_name text := format('group %L, topic %L, partition %s', explain_position.consumer_group,
                        explain_position.topic, coalesce(explain_position.partition::text, 'null'));
begin
  select o.* into v_row from once.consumer_position o
   where o.consumer_group = explain_position.consumer_group and o.topic = explain_position.topic
     and o.partition = explain_position.partition;
  if not found then
    raise exception '% was never taken', v_name using errcode = 'ONTKN',
      detail = 'A position can be moved only by the owner of the partition.',
      hint = format('select * from once.take_partition(%L, %L, %s)', explain_position.consumer_group,
                    explain_position.topic, coalesce(explain_position.partition::text, '0'));
  elsif v_row.epoch is distinct from explain_position.epoch then
    raise exception '% is fenced: epoch % is not the current epoch %',
        v_name, coalesce(explain_position.epoch::text, 'null'), v_row.epoch using errcode = 'ONFEN',
      detail = format('The partition was taken at %s by %s; nothing was moved.', v_row.taken_at,
                      coalesce(quote_literal(v_row.owner), 'an unnamed owner')),
      hint = 'Stop this consumer, or take the partition again and read on from the position it returns.';
  end if;
  raise exception '% is at %, not at the expected %', v_name,
      coalesce(v_row."position"::text, quote_literal(v_row.token), 'its start'),
      coalesce(explain_position.expected, 'its start') using errcode = 'ONCAS',
    detail = format('The move to %s was not made.', coalesce(explain_position.next, 'null')),
    hint = 'Somebody with the same epoch moved it, or this move was made already: '
           'read once.read_position(...) and go on from there.';
end $$;
comment on function once.explain_position(text, text, integer, integer, text, text) is
  'Internal: raises ONTKN, ONFEN or ONCAS for a position that could not be moved.';
call once.allow('app', 'explain_position');
