-- How this database reaches the others, for recovery inside Postgres. The user and the password are those of
-- the user mapping, so that none lies in a table.
create table once.peer (
  database_id uuid primary key, server name not null, added_at timestamptz not null default now(),
  added_by name not null default session_user
);
comment on table once.peer is
  'The foreign server by which dblink reaches the database with this id; see once.add_peer.';
call once.allow('recover, monitor', 'peer', 'select');
call once.allow('operator', 'peer',
  'insert (database_id, server), update (server, added_at, added_by), delete');
