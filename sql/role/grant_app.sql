-- What an application needs. It can add keys, never take one back, and cannot touch anybody's decisions; with
-- counters of producers and positions it must be trusted, since it updates them.
create function once.grant_app(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('app', grant_app.role) $$;
comment on function once.grant_app(text) is
  'Lets a role claim, move positions and take part in global transactions: select once.grant_app(''shop'').';
call once.allow('owner', 'grant_app');
