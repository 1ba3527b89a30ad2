-- Claims one message of an ordered producer: 'claimed' (process it, in this transaction) or 'duplicate'
-- (already processed; no error, which would abort the caller's transaction). A new producer begins at
-- "start_at" (0 if left out): sequences below count as processed. A known one keeps its start.
create function once.claim(
  producer text, sequence bigint, epoch integer default 0, strict boolean default false,
  start_at bigint default null, out status text
) language plpgsql volatile set search_path = '' as $$
begin
  -- The next one of its stream.
  update once.producer p set watermark = claim.sequence
   where p.producer = claim.producer and p.epoch = claim.epoch and p.watermark + 1 = claim.sequence
     and p.gaps = 0 and claim.sequence < 9223372036854775807
     and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'claimed'; return; end if;
  -- Behind the watermark. What is processed stays so: no lock is needed to be sure.
  perform from once.producer p
    where p.producer = claim.producer and p.epoch = claim.epoch and claim.sequence between 0 and p.watermark
      and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'duplicate'; return; end if;
  -- Or in a range ahead of it.
  perform from once.claimed_ahead a
    where a.producer = claim.producer
      and a.first = (select b.first from once.claimed_ahead b
                      where b.producer = claim.producer and b.first <= claim.sequence
                      order by b.first desc limit 1)
      and claim.sequence <= a.last
      and claim.epoch = (select p.epoch from once.producer p where p.producer = claim.producer)
      and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'duplicate'; return; end if;
  claim.status := case when isempty(once.claim_any(claim.producer,
      case when claim.sequence < 9223372036854775807
           then int8multirange(int8range(claim.sequence, claim.sequence, '[]'))
           when claim.sequence is not null then '{[0,)}' end,
      claim.epoch, claim.strict, claim.start_at)) then 'duplicate' else 'claimed' end;
end $$;
comment on function once.claim(text, bigint, integer, boolean, bigint) is
  'Claims one message by producer and sequence: select once.claim(''shop-7'', 41): claimed or duplicate.';
call once.allow('app', 'claim');
