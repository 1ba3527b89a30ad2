-- One row that names this database. The id stands in every gid and says which database decides. The
-- fingerprint (cluster and database oid) tells an original from a copy, which carries the id too but must not
-- answer for the original: it knows nothing of transactions that still run there.
create table once.database (
  singleton boolean primary key default true check (singleton), id uuid not null default gen_random_uuid(),
  system_identifier bigint not null, database_oid oid not null,
  -- The newest home xid whose decision was purged: once.outcome() answers exactly above it.
  purged_xid xid8 not null default '0',
  created_at timestamptz not null default now()
);

insert into once.database (system_identifier, database_oid)
select c.system_identifier, d.oid from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
 where d.datname = current_database();
comment on table once.database is
  'One row: the id of this database in gids, and the fingerprint that tells an original from a copy.';
call once.allow('app, monitor', 'database', 'select');
call once.allow('recover', 'database', 'select, update (purged_xid)');
