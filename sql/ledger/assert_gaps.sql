-- Internal: raises if a claim by sequence would leave a gap where none may be (strict), or too many of them.
create function once.assert_gaps(
  before once.producer,
  fresh int8multirange,
  ahead int8multirange,
  watermark bigint,
  gaps bigint,
  strict boolean
) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_name constant text := (assert_gaps.before).producer;
  v_max_gaps constant integer := (assert_gaps.before).max_gaps;
  v_bad bigint;
  v_half bigint;
begin
  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if assert_gaps.strict and upper(assert_gaps.fresh) - 1 > assert_gaps.watermark then
    v_bad := lower(assert_gaps.fresh - int8multirange(int8range(null, assert_gaps.watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(v_name), assert_gaps.watermark + 1, v_bad
      using errcode = 'ONGAP',
            detail = 'In strict mode the new sequences must follow the watermark without a gap; nothing was claimed.',
            hint = format('Deliver the missing messages first, or skip them: '
                          'select once.set_watermark(%L, %s, ''reason'').', v_name, v_bad - 1);
  end if;

  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if assert_gaps.gaps > v_max_gaps and assert_gaps.gaps > (assert_gaps.before).gaps then
    select r.first into v_half
      from (select a.first from once.claimed_ahead a where a.producer = v_name
            union select lower(r) from unnest(assert_gaps.ahead) r) r
     order by r.first offset assert_gaps.gaps / 2 limit 1;
    raise exception 'producer % would have % gaps, the limit is %', quote_literal(v_name), assert_gaps.gaps, v_max_gaps
      using errcode = 'ONMAX',
            detail = case when (assert_gaps.before).watermark < 0 then 'Sequence 0 is not processed yet; '
                          else format('Every sequence up to %s is processed; ', (assert_gaps.before).watermark)
                     end || format('%s separate ranges lie above it. Nothing was claimed.', assert_gaps.gaps),
            hint = format('Deliver the missing messages, or give the older half of them up: '
                          'select once.set_watermark(%L, %s, ''reason''). '
                          'Numbers with holes for good, as of an identity column, belong in the key ledger; '
                          'for a producer that begins at 1 say start_at => 1 with its first claim.',
                          v_name, v_half - 1);
  end if;
end
$$;

comment on function once.assert_gaps(once.producer, int8multirange, int8multirange, bigint, bigint, boolean) is
  'Internal: raises ONGAP or ONMAX if a claim would leave gaps that may not be.';
revoke all on function
  once.assert_gaps(once.producer, int8multirange, int8multirange, bigint, bigint, boolean) from public;
