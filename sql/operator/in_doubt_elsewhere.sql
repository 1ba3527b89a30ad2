-- Prepared transactions of the cluster's other databases. They lock nothing here, but hold vacuum back here
-- too: every snapshot reaches back to the cluster's oldest running transaction; and shared catalogs and the
-- wraparound limit belong to all. They are finished from their own database only.
create view once.in_doubt_elsewhere as with prepared as materialized (
  select p.* from pg_catalog.pg_prepared_xacts p where p.database <> current_database()
)
select p.database, p.gid, g.manager, g.home, p.owner, p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age, age(p.transaction) as xid_age
  from prepared p join once.decode_gids(array(select o.gid from prepared o)) g on g.gid = p.gid;
comment on view once.in_doubt_elsewhere is
  'Prepared transactions of the cluster''s other databases, which hold vacuum back here; finish them there.';
call once.allow('recover, monitor', 'in_doubt_elsewhere', 'select');
