-- A sender hears that its message is done once the transaction commits. Under synchronous_commit = off that
-- commit can be lost in a crash afterwards, and nobody sends it again. So a claim waits for its flush.
create function once.ensure_durable() returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end $$;
comment on function once.ensure_durable() is
  'Internal: turns synchronous_commit on for the current transaction if it is off.';
call once.allow('app, operator', 'ensure_durable');
