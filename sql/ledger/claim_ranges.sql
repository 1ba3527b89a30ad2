-- Claims ranges of sequences of one producer, as '{[1,500]}', and answers the new ones: what clients call.
create function once.claim_ranges(
  producer text, ranges int8multirange, epoch integer default 0, strict boolean default false,
  start_at bigint default null
) returns int8multirange language plpgsql volatile set search_path = '' as $$
begin
  -- The next piece of its stream, whole: one update of one row.
  update once.producer p set watermark = upper(claim_ranges.ranges) - 1
   where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch
     and p.watermark + 1 = lower(claim_ranges.ranges) and p.gaps = 0
     and claim_ranges.ranges = int8multirange(int8range(p.watermark + 1, upper(claim_ranges.ranges)))
     and not upper_inf(claim_ranges.ranges) and current_setting('synchronous_commit') <> 'off';
  if found then return claim_ranges.ranges; end if;
  -- All of it behind the watermark. That never moves back, so no lock is needed to be sure.
  perform from once.producer p
    where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch
      and lower(claim_ranges.ranges) >= 0 and upper(claim_ranges.ranges) - 1 <= p.watermark
      and current_setting('synchronous_commit') <> 'off';
  if found then return '{}'; end if;
  -- Or in what was processed ahead of it, which stays so as well.
  perform from once.producer p
    where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch and p.gaps > 0
      and lower(claim_ranges.ranges) >= 0
      and claim_ranges.ranges - int8multirange(int8range(null, p.watermark, '[]'))
          <@ once.ranges_near(claim_ranges.producer, claim_ranges.ranges)
      and current_setting('synchronous_commit') <> 'off';
  if found then return '{}'; end if;
  return once.claim_any(claim_ranges.producer, claim_ranges.ranges, claim_ranges.epoch,
                                 claim_ranges.strict, claim_ranges.start_at);
end $$;
comment on function once.claim_ranges(text, int8multirange, integer, boolean, bigint) is
  'Claims ranges of sequences and answers the new ones: select once.claim_ranges(''shop-7'', ''{[41,45]}'').';
call once.allow('app', 'claim_ranges');
