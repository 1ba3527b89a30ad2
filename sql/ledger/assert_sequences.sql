-- Internal: raises unless the arguments of a claim by sequence are valid. 2^63-1 is left out because a range
-- that contains it has no upper bound in bigint.
create function once.assert_sequences(
  producer text, ranges int8multirange, epoch integer, strict boolean, start_at bigint
) returns void language plpgsql immutable set search_path = '' as $$
begin
  perform once.check_name('producer', assert_sequences.producer);
  if assert_sequences.ranges is null or assert_sequences.epoch is null or assert_sequences.strict is null then
    raise exception 'null is not allowed as sequences, epoch or strict' using errcode = 'ONARG',
      detail = format('Got sequences %s, epoch %s, strict %s.', assert_sequences.ranges is not null,
                      assert_sequences.epoch, assert_sequences.strict),
      hint = 'Pass an array of sequences, as array[41, 42], or ranges, as ''{[41,45]}''.';
  end if;
  if assert_sequences.epoch < 0 then
    raise exception 'bad epoch: %', assert_sequences.epoch using errcode = 'ONARG',
      detail = 'Expected 0 to 2147483647.',
      hint = 'Epochs count up from 0; a restarted producer takes the next one.';
  end if;
  if lower(assert_sequences.ranges) < 0 or lower_inf(assert_sequences.ranges)
     or upper_inf(assert_sequences.ranges) then
    raise exception 'bad sequence: %',
        case when lower(assert_sequences.ranges) < 0 then lower(assert_sequences.ranges)::text
             else '9223372036854775807, or none at all' end using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.', hint = 'Count messages of a producer up from 0.';
  end if;
  if assert_sequences.start_at < 0 or assert_sequences.start_at = 9223372036854775807 then
    raise exception 'bad start_at: %', assert_sequences.start_at using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.',
      hint = 'Name the first sequence of the producer, such as 1; leave it out for 0.';
  end if;
end $$;
comment on function once.assert_sequences(text, int8multirange, integer, boolean, bigint) is
  'Internal: raises ONARG unless producer, sequences, epoch and start of a claim are valid.';
call once.allow('app', 'assert_sequences');
