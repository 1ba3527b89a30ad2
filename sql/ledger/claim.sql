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
  if once.claim_run(claim.producer, claim.sequence, claim.sequence, claim.epoch) then
    claim.status := 'claimed';
    return;
  end if;
  perform from once.claim_batch(claim.producer, array[claim.sequence], claim.epoch, claim.strict);
  claim.status := case when found then 'claimed' else 'duplicate' end;
end
$$;

comment on function once.claim(text, bigint, integer, boolean) is
  'Claims one message by producer and sequence: select once.claim(''shop-7'', 41) answers claimed or duplicate.';
call once.allow('app', 'claim');
