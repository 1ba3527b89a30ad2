-- The scopes of the ledger by key, with their retention. The horizon is stored and only moves forward:
-- a key older than it is answered 'expired' for ever, whatever the clock or the retention say later.
create table once.scope (
  scope_id integer generated always as identity primary key,
  scope text not null unique check (length(scope) between 1 and 200),
  retention interval check (retention >= interval '0'),
  horizon timestamptz
);

comment on table once.scope is
  'Scopes of the key ledger: retention (null: keep for ever) and horizon (older keys are answered expired).';
call once.allow('app', 'scope', 'select, insert (scope)');
call once.allow('recover, monitor', 'scope', 'select');
