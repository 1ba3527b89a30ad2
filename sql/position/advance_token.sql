-- Moves an opaque position; as once.advance, but a token has no order, so nothing is said of moving back.
create function once.advance_token(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
  if advance_token.next is null then
    raise exception 'bad token: null' using errcode = 'ONARG', detail = 'Expected text.',
      hint = 'Pass the position after the message, as the source writes it.';
  end if;
  update once.consumer_position o set token = advance_token.next, updated_at = now()
   where o.consumer_group = advance_token.consumer_group and o.topic = advance_token.topic
     and o.partition = advance_token.partition and o.epoch = advance_token.epoch
     and o.token is not distinct from advance_token.expected and o."position" is null;
  if not found then
    perform once.explain_position(advance_token.consumer_group, advance_token.topic, advance_token.partition,
                                advance_token.epoch, advance_token.expected, advance_token.next);
  end if;
end $$;
comment on function once.advance_token(text, text, integer, integer, text, text) is
  'Moves an opaque position from expected to next if the epoch is current; else ONFEN, ONCAS or ONTKN.';
call once.allow('app', 'advance_token');
