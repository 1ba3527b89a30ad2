-- Internal: claims any sequences and answers the new ones, where the fast paths of once.claim and
-- once.claim_ranges do not apply: a new producer or epoch, gaps, duplicates, bad arguments.
--
-- The producer's row is locked until the caller's transaction ends, so two claims of one sequence can never
-- both be new: the second waits, then sees the first, or takes over if it rolled back.
create function once.claim_any(
  producer text, ranges int8multirange, epoch integer, strict boolean, start_at bigint
) returns int8multirange language plpgsql volatile set search_path = '' as $$
declare
  v_row once.producer; v_near int8multirange := '{}'; v_near_count bigint := 0;
  v_fresh int8multirange; v_ahead int8multirange; v_watermark bigint; v_gaps bigint; v_bad bigint;
begin
  perform once.ensure_durable();
  select p.* into v_row from once.producer p where p.producer = claim_any.producer for update;
  if not found then
    perform once.assert_sequences(claim_any.producer, claim_any.ranges, claim_any.epoch,
                                  claim_any.strict, claim_any.start_at);
    if isempty(claim_any.ranges) then return '{}'; end if;
    insert into once.producer (producer, epoch, watermark)
    values (claim_any.producer, claim_any.epoch, coalesce(claim_any.start_at, 0) - 1) on conflict do nothing;
    -- Read again: if somebody else inserted it, we waited for them and must see what they claimed.
    select p.* into strict v_row from once.producer p where p.producer = claim_any.producer for update;
  end if;
  if (lower(claim_any.ranges) >= 0 and not upper_inf(claim_any.ranges)
      and claim_any.epoch >= v_row.epoch and claim_any.strict is not null) is not true then
    perform once.assert_sequences(claim_any.producer, claim_any.ranges, claim_any.epoch,
                                  claim_any.strict, claim_any.start_at);
    if isempty(claim_any.ranges) then return '{}'; end if;
    raise exception 'producer % is fenced: epoch % is older than %',
        quote_literal(claim_any.producer), claim_any.epoch, v_row.epoch using errcode = 'ONFEN',
      detail = 'A newer incarnation of this producer has claimed already; nothing was claimed.',
      hint = 'Stop this producer. A successor must use an epoch of at least the current one.';
  end if;

  -- What lies ahead and can overlap or touch, as once.ranges_near has it.
  if v_row.gaps > 0 then
    select coalesce(range_agg(int8range(a.first, a.last, '[]')), '{}'), count(*) into v_near, v_near_count
      from once.claimed_ahead a
     where a.producer = claim_any.producer and a.first <= upper(claim_any.ranges)
       and a.first >= coalesce((select b.first from once.claimed_ahead b
                                 where b.producer = claim_any.producer and b.first < lower(claim_any.ranges)
                                 order by b.first desc limit 1), 0);
  end if;
  v_fresh := claim_any.ranges - v_near - int8multirange(int8range(null, v_row.watermark, '[]'));
  if isempty(v_fresh) and claim_any.epoch = v_row.epoch then return '{}'; end if;

  v_ahead := v_near + v_fresh;
  v_watermark := v_row.watermark;
  if lower(v_ahead) = v_watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
    v_ahead := v_ahead - int8multirange(int8range(null, v_watermark, '[]'));
  end if;
  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if claim_any.strict and upper(v_fresh) - 1 > v_watermark then
    v_bad := lower(v_fresh - int8multirange(int8range(null, v_watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(claim_any.producer), v_watermark + 1, v_bad using errcode = 'ONGAP',
      detail = 'In strict mode new sequences must follow the watermark without a gap. Nothing was claimed.',
      hint = format('Deliver the missing messages first, or skip them: '
                    'select once.set_watermark(%L, %s, ''reason'').', claim_any.producer, v_bad - 1);
  end if;
  v_gaps := v_row.gaps - v_near_count + (select count(*) from unnest(v_ahead));
  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if v_gaps > v_row.max_gaps and v_gaps > v_row.gaps then
    perform once.refuse_gaps(claim_any.producer, v_ahead, v_gaps);
  end if;

  -- One range that only grew at its end is all that is left alone by this.
  if v_near_count > 1 or lower(v_ahead) is distinct from lower(v_near) then
    delete from once.claimed_ahead a
     where a.producer = claim_any.producer
       and a.first = any (array(select lower(r) from unnest(v_near) r
                                except select lower(r) from unnest(v_ahead) r));
  end if;
  insert into once.claimed_ahead as a (producer, first, last)
  select claim_any.producer, lower(r), upper(r) - 1 from unnest(v_ahead) r where not r <@ v_near
  on conflict on constraint claimed_ahead_pkey do update set last = excluded.last;
  -- Also where none of its columns changes: it is what a claim with an older snapshot collides with.
  update once.producer p set watermark = v_watermark, gaps = v_gaps, epoch = claim_any.epoch
   where p.producer = claim_any.producer;
  return v_fresh;
end $$;
comment on function once.claim_any(text, int8multirange, integer, boolean, bigint) is
  'Internal: claims any sequences of a producer and answers the new ones; see once.claim_ranges.';
call once.allow('app', 'claim_any');
