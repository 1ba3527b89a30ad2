-- The scopes of the ledger by key. The horizon is stored and only moves forward: a key older than it is
-- answered 'expired' for ever, whatever the clock or the retention say later.
create table once.scope (
  scope_id integer generated always as identity primary key,
  scope text not null unique check (length(scope) between 1 and 200),
  retention interval check (retention >= interval '0'), horizon timestamptz,
  -- Whether a key's own time (once.message_time) counts where occurred_at is not given. Never changes.
  key_times boolean not null default false,
  -- The horizon's day when deleting began last, see once.expire: never after the horizon.
  delete_before date
);
comment on table once.scope is
  'Scopes of the key ledger: retention (null: for ever), horizon (older is expired), key times or not.';
call once.allow('app', 'scope', 'select, insert (scope)');
call once.allow('recover, monitor', 'scope', 'select');
