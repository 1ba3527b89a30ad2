-- The fast path of an ordered stream, for one message or a whole batch: the next sequences, from "first" to
-- "last" without a hole, are one update of one row. Answers true if that is what they were, and all are
-- claimed; false if not: then nothing is claimed, and once.claim_batch has to look at each.
create function once.claim_run(producer text, first bigint, last bigint, epoch integer default 0) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
  -- Apart, since first - 1 must not be computed for the least bigint.
  if claim_run.first >= 0 and claim_run.last >= claim_run.first and claim_run.last < 9223372036854775807 then
    update once.producer p
       set watermark = claim_run.last
     where p.producer = claim_run.producer
       and p.epoch = claim_run.epoch
       and p.watermark = claim_run.first - 1
       and isempty(p.ahead);
    return found;
  end if;
  return false;
end
$$;

comment on function once.claim_run(text, bigint, bigint, integer) is
  'Claims the sequences first to last if they follow the producer''s watermark: true if all are claimed, false if none is.';
call once.allow('app', 'claim_run');
