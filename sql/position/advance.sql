-- Moves a numeric position: compare and set, in the transaction that holds the results. Needs the current
-- epoch and the position that the caller believes in (null: the start).
create function once.advance(
  consumer_group text, topic text, partition integer, epoch integer, expected bigint, next bigint
) returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
  if advance.next is null or advance.next < 0 or advance.next < advance.expected then
    raise exception 'bad position: % after %',
        coalesce(advance.next::text, 'null'), coalesce(advance.expected::text, 'the start')
      using errcode = 'ONARG', detail = 'Expected a number of at least 0 that does not move back.',
      hint = 'To go back on purpose: select once.reset_position(..., reason => ''...'').';
  end if;
  update once.consumer_position o set "position" = advance.next, updated_at = now()
   where o.consumer_group = advance.consumer_group and o.topic = advance.topic
     and o.partition = advance.partition
     and o.epoch = advance.epoch
     and o."position" is not distinct from advance.expected and o.token is null;
  if not found then
    perform once.explain_position(advance.consumer_group, advance.topic, advance.partition, advance.epoch,
                                advance.expected::text, advance.next::text);
  end if;
end $$;
comment on function once.advance(text, text, integer, integer, bigint, bigint) is
  'Moves a position to next (the next message to read) if the epoch is current; else ONFEN, ONCAS, ONTKN.';
call once.allow('app', 'advance');
