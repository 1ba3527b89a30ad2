-- How long a scope remembers its keys; null: for ever. Takes effect at the next once.expire(). A longer
-- retention does not bring back what is past the horizon.
create function once.set_retention(scope text, retention interval) returns void
language plpgsql volatile set search_path = '' as $$
begin
  -- The upper limit keeps now() - retention within what a timestamp can hold.
  if set_retention.retention not between interval '0' and interval '1000 years' then
    raise exception 'bad retention: %', set_retention.retention using errcode = 'ONARG',
      detail = 'Expected an interval from 0 to 1000 years, or null for ever.',
      hint = 'For example: select once.set_retention(''stripe'', ''30 days'').';
  end if;
  perform once.open_scope(set_retention.scope);
  update once.scope s set retention = set_retention.retention where s.scope = set_retention.scope;
  -- Begins another pass.
  update once.expiry e set finished_on = '-infinity', begun_at = null;
end $$;
comment on function once.set_retention(text, interval) is
  'Sets how long a scope of the key ledger remembers its keys (null: for ever); applied by once.expire().';
call once.allow('owner', 'set_retention');
