-- When somebody last recovered here: without it, nobody can tell "not yet" from "nobody is at it".
create table once.recovery (
  singleton boolean primary key default true check (singleton), recovered_at timestamptz, recovered_by text,
  -- When all evidence here was last compared with the decisions at its homes.
  audited_at timestamptz
);

insert into once.recovery default values;
comment on table once.recovery is
  'One row: when a recoverer last looked after this database, and who it was.';
call once.allow('recover', 'recovery', 'select, update (recovered_at, recovered_by, audited_at)');
call once.allow('monitor', 'recovery', 'select');
