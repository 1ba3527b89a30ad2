-- Claims one message of an ordered producer. The answer is 'claimed' (process it, in this transaction)
-- or 'duplicate' (somebody did). An error would abort the caller's transaction, so a duplicate is none.
create function once.claim(
  producer text,
  sequence bigint,
  epoch integer default 0,
  strict boolean default false,
  out status text
)
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;

  -- The fast path: the next message of an ordered stream is one update of one row.
  if claim.sequence >= 0 and claim.sequence < 9223372036854775807 then
    update once.producer p
       set watermark = claim.sequence
     where p.producer = claim.producer
       and p.epoch = claim.epoch
       and p.watermark = claim.sequence - 1
       and isempty(p.ahead);
    if found then
      claim.status := 'claimed';
      return;
    end if;
  end if;

  perform from once.claim_batch(claim.producer, array[claim.sequence], claim.epoch, claim.strict);
  claim.status := case when found then 'claimed' else 'duplicate' end;
end
$$;

comment on function once.claim(text, bigint, integer, boolean) is
  'Claims one message by producer and sequence: select once.claim(''shop-7'', 41) answers claimed or duplicate.';
revoke all on function once.claim(text, bigint, integer, boolean) from public;
