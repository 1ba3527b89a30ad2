-- For operators: counts everything up to a sequence as processed. Closes gaps whose messages will never come,
-- and starts a stream in the middle. Never moves back.
create function once.set_watermark(producer text, sequence bigint, reason text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_row once.producer; v_watermark bigint; v_deleted integer;
begin
  perform once.ensure_durable();
  perform once.check_name('producer', set_watermark.producer);
  if set_watermark.sequence is null or set_watermark.sequence < 0
     or set_watermark.sequence = 9223372036854775807 then
    raise exception 'bad sequence: %', coalesce(set_watermark.sequence::text, 'null') using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.',
      hint = 'Name the last sequence that counts as processed.';
  end if;
  insert into once.producer (producer) values (set_watermark.producer) on conflict do nothing;
  select p.* into strict v_row from once.producer p where p.producer = set_watermark.producer for update;
  if set_watermark.sequence <= v_row.watermark then
    raise exception 'the watermark of producer % is % already',
        quote_literal(set_watermark.producer), v_row.watermark using errcode = 'ONARG',
      detail = format('Got %s; a watermark never moves back, or messages would take effect twice.',
                      set_watermark.sequence),
      hint = 'Name a sequence above the watermark; see once.producers.';
  end if;
  perform once.record_intervention('set_watermark',
    jsonb_build_object('producer', set_watermark.producer, 'from', v_row.watermark,
                       'to', set_watermark.sequence),
    set_watermark.reason);
  -- Ranges below it or next to it are behind the watermark from now on.
  select coalesce(max(a.last), set_watermark.sequence) into v_watermark from once.claimed_ahead a
   where a.producer = set_watermark.producer and a.first <= set_watermark.sequence + 1
     and a.last > set_watermark.sequence;
  delete from once.claimed_ahead a where a.producer = set_watermark.producer and a.last <= v_watermark;
  get diagnostics v_deleted = row_count;
  update once.producer p set watermark = v_watermark, gaps = p.gaps - v_deleted
   where p.producer = set_watermark.producer;
end $$;
comment on function once.set_watermark(text, bigint, text) is
  'Operator: counts all sequences of a producer up to this one as processed, and records who and why.';
call once.allow('owner', 'set_watermark');
