-- Internal: claims any sequences of a producer and answers the new ones, where the fast paths of once.claim
-- and once.claim_ranges do not apply: a new producer or epoch, a gap, some of it a duplicate,
-- bad arguments, synchronous_commit = off.
--
-- The producer's row is locked until the caller's transaction ends, so two claims of one sequence can never
-- both be new: the second waits, then sees the first, or takes over if it rolled back.
create function once.claim_out_of_order(
  producer text,
  ranges int8multirange,
  epoch integer,
  strict boolean,
  start_at bigint
) returns int8multirange
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.producer;
  v_near int8multirange := '{}';
  v_fresh int8multirange;
  v_ahead int8multirange;
  v_watermark bigint;
  v_gaps bigint;
  v_bad bigint;
begin
  perform once.ensure_durable();
  perform once.assert_sequences(claim_out_of_order.producer, claim_out_of_order.ranges, claim_out_of_order.epoch,
                                claim_out_of_order.strict, claim_out_of_order.start_at);
  if isempty(claim_out_of_order.ranges) then
    return '{}';
  end if;

  -- What is processed stays so: if all of it is, no lock is needed to be sure.
  perform from once.producer p
    where p.producer = claim_out_of_order.producer
      and p.epoch = claim_out_of_order.epoch
      and p.gaps > 0
      and claim_out_of_order.ranges - int8multirange(int8range(null, p.watermark, '[]'))
          <@ once.ranges_near(claim_out_of_order.producer, claim_out_of_order.ranges);
  if found then
    return '{}';
  end if;

  select p.* into v_row from once.producer p where p.producer = claim_out_of_order.producer for update;
  if not found then
    insert into once.producer (producer, epoch, watermark)
    values (claim_out_of_order.producer, claim_out_of_order.epoch, coalesce(claim_out_of_order.start_at, 0) - 1)
    on conflict do nothing;
    -- Read again: if somebody else inserted it, we waited for them and must see what they claimed.
    select p.* into strict v_row from once.producer p where p.producer = claim_out_of_order.producer for update;
  end if;
  if claim_out_of_order.epoch < v_row.epoch then
    raise exception 'producer % is fenced: epoch % is older than %',
        quote_literal(claim_out_of_order.producer), claim_out_of_order.epoch, v_row.epoch
      using errcode = 'ONFEN',
            detail = 'A newer incarnation of this producer has claimed already; nothing was claimed.',
            hint = 'Stop this producer. A successor must use an epoch of at least the current one.';
  end if;

  if v_row.gaps > 0 then
    v_near := once.ranges_near(claim_out_of_order.producer, claim_out_of_order.ranges);
  end if;
  v_fresh := claim_out_of_order.ranges - v_near - int8multirange(int8range(null, v_row.watermark, '[]'));
  if isempty(v_fresh) and claim_out_of_order.epoch = v_row.epoch then
    return '{}';
  end if;

  v_ahead := v_near + v_fresh;
  v_watermark := v_row.watermark;
  if lower(v_ahead) = v_watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
    v_ahead := v_ahead - int8multirange(int8range(null, v_watermark, '[]'));
  end if;
  v_gaps := v_row.gaps - (select count(*) from unnest(v_near)) + (select count(*) from unnest(v_ahead));
  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if claim_out_of_order.strict and upper(v_fresh) - 1 > v_watermark then
    v_bad := lower(v_fresh - int8multirange(int8range(null, v_watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(claim_out_of_order.producer), v_watermark + 1, v_bad
      using errcode = 'ONGAP',
            detail = 'In strict mode new sequences must follow the watermark without a gap; nothing was claimed.',
            hint = format('Deliver the missing messages first, or skip them: '
                          'select once.set_watermark(%L, %s, ''reason'').', claim_out_of_order.producer, v_bad - 1);
  end if;
  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if v_gaps > v_row.max_gaps and v_gaps > v_row.gaps then
    perform once.refuse_gaps(claim_out_of_order.producer, v_ahead, v_gaps);
  end if;

  delete from once.claimed_ahead a
   where a.producer = claim_out_of_order.producer
     and a.first in (select lower(r) from unnest(v_near) r except select lower(r) from unnest(v_ahead) r);
  insert into once.claimed_ahead as a (producer, first, last)
  select claim_out_of_order.producer, lower(r), upper(r) - 1
    from (select unnest(v_ahead) except select unnest(v_near)) n (r)
  on conflict on constraint claimed_ahead_pkey do update set last = excluded.last;
  -- Also where none of its columns changes: it is what a claim with an older snapshot collides with.
  update once.producer p
     set watermark = v_watermark, gaps = v_gaps, epoch = claim_out_of_order.epoch
   where p.producer = claim_out_of_order.producer;
  return v_fresh;
end
$$;

comment on function once.claim_out_of_order(text, int8multirange, integer, boolean, bigint) is
  'Internal: claims any sequences of a producer and answers the new ones; see once.claim_ranges.';
call once.allow('app', 'claim_out_of_order');
