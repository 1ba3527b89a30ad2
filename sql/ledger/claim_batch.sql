-- Claims a batch of sequences of one producer and returns those that are new, once each, ascending.
-- The producer's row is locked until the caller's transaction ends, so two claims of one sequence can
-- never both be new: the second waits, then sees the first, or takes over if it rolled back.
create function once.claim_batch(
  producer text,
  sequences bigint[],
  epoch integer default 0,
  strict boolean default false
) returns setof bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.producer;
  v_first bigint := claim_batch.sequences[1];
  v_last bigint := claim_batch.sequences[cardinality(claim_batch.sequences)];
  v_bad bigint;
  v_incoming int8multirange;
  v_fresh int8multirange;
  v_ahead int8multirange;
  v_watermark bigint;
  v_gaps bigint;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;

  -- An ascending batch without holes.
  if v_first >= 0 and v_last >= v_first and v_last < 9223372036854775807
     and v_last - v_first + 1 = cardinality(claim_batch.sequences)
     and claim_batch.sequences = array(select generate_series(v_first, v_last))
     and once.claim_run(claim_batch.producer, v_first, v_last, claim_batch.epoch) then
    return query select unnest(claim_batch.sequences);
    return;
  end if;

  if claim_batch.sequences is null or claim_batch.epoch is null or claim_batch.strict is null then
    raise exception 'null is not allowed as sequences, epoch or strict'
      using errcode = 'ONARG',
            detail = format('Got sequences %s, epoch %s, strict %s.', claim_batch.sequences is not null,
                            claim_batch.epoch, claim_batch.strict),
            hint = 'Pass an array of sequences, for example array[41, 42].';
  end if;
  perform once.check_name('producer', claim_batch.producer);
  if claim_batch.epoch < 0 then
    raise exception 'bad epoch: %', claim_batch.epoch
      using errcode = 'ONARG', detail = 'Expected 0 to 2147483647.',
            hint = 'Epochs count up from 0; a restarted producer takes the next one.';
  end if;
  if exists (select from unnest(claim_batch.sequences) s where s is null) then
    raise exception 'bad sequence: null'
      using errcode = 'ONARG', detail = 'The array of sequences contains a null.',
            hint = 'Give every message of the batch its sequence.';
  end if;
  -- 2^63-1 is left out because a range that contains it has no upper bound in bigint.
  select s into v_bad from unnest(claim_batch.sequences) s where s < 0 or s = 9223372036854775807 limit 1;
  if found then
    raise exception 'bad sequence: %', v_bad
      using errcode = 'ONARG', detail = 'Expected 0 to 9223372036854775806.',
            hint = 'Count messages of a producer up from 0.';
  end if;
  if cardinality(claim_batch.sequences) = 0 then
    return;
  end if;

  select p.* into v_row from once.producer p where p.producer = claim_batch.producer for update;
  if not found then
    insert into once.producer (producer, epoch)
    values (claim_batch.producer, claim_batch.epoch)
    on conflict do nothing;
    -- Read again: if somebody else inserted it, we waited for them and must see what they claimed.
    select p.* into strict v_row from once.producer p where p.producer = claim_batch.producer for update;
  end if;

  if claim_batch.epoch < v_row.epoch then
    raise exception 'producer % is fenced: epoch % is older than %',
        quote_literal(claim_batch.producer), claim_batch.epoch, v_row.epoch
      using errcode = 'ONFEN',
            detail = 'A newer incarnation of this producer has claimed already; nothing was claimed.',
            hint = 'Stop this producer. A successor must use an epoch of at least the current one.';
  end if;

  select range_agg(int8range(s, s, '[]')) into v_incoming from unnest(claim_batch.sequences) s;
  v_fresh := v_incoming - v_row.ahead - int8multirange(int8range(null, v_row.watermark, '[]'));

  v_ahead := v_row.ahead + v_fresh;
  v_watermark := v_row.watermark;
  if lower(v_ahead) = v_watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
    v_ahead := v_ahead - int8multirange(int8range(null, v_watermark, '[]'));
  end if;

  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if claim_batch.strict and upper(v_fresh) - 1 > v_watermark then
    v_bad := lower(v_fresh - int8multirange(int8range(null, v_watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(claim_batch.producer), v_watermark + 1, v_bad
      using errcode = 'ONGAP',
            detail = 'In strict mode the new sequences must follow the watermark without a gap; nothing was claimed.',
            hint = format('Deliver the missing messages first, or skip them: '
                          'select once.set_watermark(%L, %s, ''reason'').', claim_batch.producer, v_bad - 1);
  end if;

  select count(*) into v_gaps from unnest(v_ahead);
  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if v_gaps > v_row.max_gaps and v_gaps > (select count(*) from unnest(v_row.ahead)) then
    raise exception 'producer % would have % gaps, the limit is %',
        quote_literal(claim_batch.producer), v_gaps, v_row.max_gaps
      using errcode = 'ONMAX',
            detail = case when v_row.watermark < 0 then format('Sequence 0 is not processed yet; %s separate ranges lie above it. ', v_gaps)
                          else format('Every sequence up to %s is processed; %s separate ranges lie above it. ', v_row.watermark, v_gaps)
                     end || 'Nothing was claimed.',
            hint = format('Deliver the missing messages, or give them up: '
                          'select once.set_watermark(%L, %s, ''reason''). Ids without order belong in the key ledger.',
                          claim_batch.producer, lower(v_ahead) - 1);
  end if;

  update once.producer p
     set watermark = v_watermark,
         ahead = v_ahead,
         epoch = claim_batch.epoch
   where p.producer = claim_batch.producer
     and (p.watermark, p.ahead, p.epoch) is distinct from (v_watermark, v_ahead, claim_batch.epoch);

  return query
  select s from unnest(v_fresh) r, generate_series(lower(r), upper(r) - 1) s order by s;
end
$$;

comment on function once.claim_batch(text, bigint[], integer, boolean) is
  'Claims sequences of a producer and returns the new ones, once each: select * from once.claim_batch(''shop-7'', array[41, 42]).';
call once.allow('app', 'claim_batch');
