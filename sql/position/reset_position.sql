-- For operators: sets a position by hand, also backwards. Bumps the epoch, so that a running consumer is
-- fenced, and records who and why. Messages that the ledger knows stay duplicates.
create function once.reset_position(
  consumer_group text, topic text, partition integer, "position" bigint, reason text, token text default null
) returns integer language plpgsql volatile set search_path = '' as $$
declare v_old once.consumer_position; v_epoch integer;
begin
  if reset_position."position" < 0 or num_nonnulls(reset_position."position", reset_position.token) = 2 then
    raise exception 'bad position: %, token %',
        reset_position."position", quote_nullable(reset_position.token) using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or a token, or neither (the start).',
      hint = 'For example: select once.reset_position(''group'', ''topic'', 0, 42, ''replay after bug 17'').';
  end if;
  perform once.ensure_durable();
  select o.* into v_old from once.consumer_position o
   where o.consumer_group = reset_position.consumer_group and o.topic = reset_position.topic
     and o.partition = reset_position.partition for update;
  if not found then
    perform once.explain_position(reset_position.consumer_group, reset_position.topic,
                                  reset_position.partition, null, null, null);
  end if;
  perform once.record_intervention('reset_position', jsonb_build_object(
    'consumer_group', v_old.consumer_group, 'topic', v_old.topic, 'partition', v_old.partition,
    'from', coalesce(v_old."position"::text, v_old.token),
    'to', coalesce(reset_position."position"::text, reset_position.token)), reset_position.reason);
  update once.consumer_position o set "position" = reset_position."position", token = reset_position.token,
         epoch = o.epoch + 1, owner = null, updated_at = now()
   where o.consumer_group = v_old.consumer_group and o.topic = v_old.topic and o.partition = v_old.partition
  returning o.epoch into v_epoch;
  return v_epoch;
end $$;
comment on function once.reset_position(text, text, integer, bigint, text, text) is
  'Operator: sets a position by hand, fences the consumer, records who and why; returns the new epoch.';
call once.allow('owner', 'reset_position');
