-- Internal: raises that a claim would leave too many gaps, with ranges ahead of those that are known.
create function once.refuse_gaps(producer text, ahead int8multirange, gaps bigint) returns void
language plpgsql stable set search_path = '' as $$
declare v_row once.producer; v_half bigint;
begin
  select p.* into v_row from once.producer p where p.producer = refuse_gaps.producer;
  with range as (
    select a.first from once.claimed_ahead a where a.producer = refuse_gaps.producer
    union select lower(r) from unnest(refuse_gaps.ahead) r
  )
  select r.first into v_half from range r order by r.first offset (select count(*) / 2 from range) limit 1;
  raise exception 'producer % would have % gaps, the limit is %',
      quote_literal(refuse_gaps.producer), refuse_gaps.gaps, v_row.max_gaps using errcode = 'ONMAX',
    detail = case when v_row.watermark >= 0
                  then format('Every sequence up to %s is processed; ', v_row.watermark)
                  else 'Sequence 0 is not processed yet; ' end
             || format('%s separate ranges lie above it. Nothing was claimed.', refuse_gaps.gaps),
    hint = format('Deliver the missing messages, or give the older half of them up: '
                  'select once.set_watermark(%L, %s, ''reason''). '
                  'Numbers with holes for good, as of an identity column, belong in the key ledger; '
                  'for a producer that begins at 1 say start_at => 1 with its first claim.',
                  refuse_gaps.producer, v_half - 1);
end $$;
comment on function once.refuse_gaps(text, int8multirange, bigint) is
  'Internal: raises ONMAX for a claim that would leave too many gaps, and says how to give half of them up.';
call once.allow('app', 'refuse_gaps');
