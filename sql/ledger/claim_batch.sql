-- Claims a batch of sequences of one producer and returns those that are new, once each, ascending.
create function once.claim_batch(
  producer text, sequences bigint[], epoch integer default 0, strict boolean default false,
  start_at bigint default null
) returns setof bigint language plpgsql volatile set search_path = '' as $$
declare v_ranges int8multirange;
begin
  if exists (select from unnest(claim_batch.sequences) s
              where s is null or s < 0 or s = 9223372036854775807) then
    raise exception 'bad sequence: %', coalesce((select s::text from unnest(claim_batch.sequences) s
        where s is null or s < 0 or s = 9223372036854775807 order by s limit 1), 'null')
      using errcode = 'ONARG', detail = 'Expected 0 to 9223372036854775806, and no null.',
      hint = 'Give every message of the batch its sequence; count messages of a producer up from 0.';
  end if;
  select range_agg(int8range(s, s, '[]')) into v_ranges from unnest(claim_batch.sequences) s;
  return query select s
    from unnest(once.claim_ranges(
           claim_batch.producer,
           case when claim_batch.sequences is not null then coalesce(v_ranges, '{}') end,
           claim_batch.epoch, claim_batch.strict, claim_batch.start_at)) r,
         generate_series(lower(r), upper(r) - 1) s order by s;
end $$;
comment on function once.claim_batch(text, bigint[], integer, boolean, bigint) is
  'Claims sequences and returns the new ones, once each: select once.claim_batch(''shop-7'', array[41, 42]).';
call once.allow('app', 'claim_batch');
