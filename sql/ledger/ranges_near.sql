-- Internal: what a producer has claimed ahead of its watermark, as far as it can overlap or touch these
-- ranges: from the last one that begins below the first of them, to where they end.
create function once.ranges_near(producer text, ranges int8multirange) returns int8multirange
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(range_agg(int8range(a.first, a.last, '[]')), '{}') from once.claimed_ahead a
     where a.producer = ranges_near.producer and a.first <= upper(ranges_near.ranges)
       and a.first >= coalesce((select b.first from once.claimed_ahead b
                                 where b.producer = ranges_near.producer
                                   and b.first < lower(ranges_near.ranges)
                                 order by b.first desc limit 1), 0));
end $$;
comment on function once.ranges_near(text, int8multirange) is
  'Internal: the ranges claimed ahead of a producer''s watermark that can overlap or touch these.';
call once.allow('app', 'ranges_near');
