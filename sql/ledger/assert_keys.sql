-- Internal: raises unless the arguments of a claim by key are valid. "times" are those that count.
create function once.assert_keys(
  keys text[], occurred_at timestamptz[], payload_hashes bytea[], times timestamptz[]
) returns void language plpgsql stable set search_path = '' as $$
declare
  v_least constant timestamptz := '2000-01-01 00:00:00+00';
  v_bad record;
begin
  if assert_keys.keys is null then
    raise exception 'null is not allowed as keys' using errcode = 'ONARG',
      detail = 'Expected an array of keys.', hint = 'Pass array[''key'', ...].';
  end if;
  if cardinality(assert_keys.occurred_at) <> cardinality(assert_keys.keys)
     or cardinality(assert_keys.payload_hashes) <> cardinality(assert_keys.keys) then
    raise exception 'the arrays differ in length: % keys, % times, % payload hashes',
        cardinality(assert_keys.keys), coalesce(cardinality(assert_keys.occurred_at)::text, 'no'),
        coalesce(cardinality(assert_keys.payload_hashes)::text, 'no') using errcode = 'ONARG',
      detail = 'Element n of each array belongs to key n.',
      hint = 'Pass arrays of the same length, or leave the optional ones out.';
  end if;
  if exists (select from unnest(assert_keys.keys) k where k is null or k = '') then
    raise exception 'bad key: null or empty' using errcode = 'ONARG',
      detail = 'Expected text of at least one character.', hint = 'Give every message its id.';
  end if;
  select i.at, i.key, i.given is null as own into v_bad
    from unnest(assert_keys.keys, assert_keys.occurred_at, assert_keys.times) i (key, given, at)
   where i.at < v_least or i.at >= now() + interval '2 days' limit 1;
  if found and v_bad.own then
    raise exception 'bad time in key %: %', quote_literal(left(v_bad.key, 100)), v_bad.at
      using errcode = 'ONARG', detail = format('Expected a time from %s to two days from now.', v_least),
      hint = 'Is the sender''s clock right? Keys of anybody''s making want a scope without key times.';
  elsif found then
    raise exception 'bad occurred_at: %', v_bad.at using errcode = 'ONARG',
      detail = format('Expected a time from %s to two days from now.', v_least),
      hint = 'Is the time in milliseconds where seconds were meant, or the reverse?';
  end if;
end $$;
comment on function once.assert_keys(text[], timestamptz[], bytea[], timestamptz[]) is
  'Internal: raises ONARG unless keys, times and payload hashes of a claim are valid.';
call once.allow('app', 'assert_keys');
