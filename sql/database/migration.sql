-- What was installed, a row per file of migrations/committed/: written by the text that installs it.
create table once.migration (
  name text primary key, installed_at timestamptz not null default clock_timestamp()
);
comment on table once.migration is
  'The migrations of pgonce that were installed in this database, by name and time.';
call once.allow('app, recover, monitor', 'migration', 'select');
