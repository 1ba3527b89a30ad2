-- Internal: says why a position could not be moved. Called after the compare-and-set found no row.
create function once.explain_offset(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.consumer_offset;
  v_name text := format('group %L, topic %L, partition %s', explain_offset.consumer_group,
                        explain_offset.topic, coalesce(explain_offset.partition::text, 'null'));
begin
  select o.* into v_row from once.consumer_offset o
   where o.consumer_group = explain_offset.consumer_group
     and o.topic = explain_offset.topic
     and o.partition = explain_offset.partition;
  if not found then
    raise exception '% was never taken', v_name
      using errcode = 'ONTKN', detail = 'A position can be moved only by the owner of the partition.',
            hint = format('select * from once.take_partition(%L, %L, %s)', explain_offset.consumer_group,
                          explain_offset.topic, coalesce(explain_offset.partition::text, '0'));
  elsif v_row.epoch is distinct from explain_offset.epoch then
    raise exception '% is fenced: epoch % is not the current epoch %', v_name,
        coalesce(explain_offset.epoch::text, 'null'), v_row.epoch
      using errcode = 'ONFEN',
            detail = format('The partition was taken at %s by %s; nothing was moved.', v_row.taken_at,
                            coalesce(quote_literal(v_row.owner), 'an unnamed owner')),
            hint = 'Stop this consumer, or take the partition again and read on from the position it returns.';
  end if;
  raise exception '% is at %, not at the expected %', v_name,
      coalesce(v_row."position"::text, quote_literal(v_row.token), 'its start'),
      coalesce(explain_offset.expected, 'its start')
    using errcode = 'ONCAS',
          detail = format('The move to %s was not made.', coalesce(explain_offset.next, 'null')),
          hint = 'Somebody with the same epoch moved it, or this move was made already: read once.read_offset(…) and go on from there.';
end
$$;

comment on function once.explain_offset(text, text, integer, integer, text, text) is
  'Internal: raises ONTKN, ONFEN or ONCAS for a position that could not be moved.';
revoke all on function once.explain_offset(text, text, integer, integer, text, text) from public;
