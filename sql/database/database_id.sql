-- The id of this database, if it is the database that the id was made for. That is the safety of "ask the
-- home": a copy that answered would call every running transaction aborted. A promoted standby has the same
-- fingerprint and the same transactions: it may answer.
create function once.database_id() returns uuid language plpgsql stable set search_path = '' as $$
declare v_row once.database; v_system_identifier bigint; v_database_oid oid;
begin
  select i.* into v_row from once.database i;
  if not found then perform once.explain_no_database(); end if;
  select c.system_identifier into v_system_identifier from pg_catalog.pg_control_system() c;
  select d.oid into v_database_oid from pg_catalog.pg_database d where d.datname = current_database();
  if v_row.system_identifier is distinct from v_system_identifier
     or v_row.database_oid is distinct from v_database_oid then
    raise exception 'database % is a copy: its database id % was made for another database',
        quote_ident(current_database()), v_row.id using errcode = 'ONCPY',
      detail = format('Made for system %s, database oid %s; this is system %s, database oid %s.',
                      v_row.system_identifier, v_row.database_oid, v_system_identifier, v_database_oid),
      hint = 'If the original lives on: select once.renew_database_id(''copied''). '
             'If this database replaces it for good (dump and restore, pg_upgrade): '
             'select once.adopt_database_id(''moved'').';
  end if;
  return v_row.id;
end $$;
comment on function once.database_id() is
  'The id of this database in gids; raises ONCPY in a copied database, ONRLS where the row is hidden.';
call once.allow('app, recover, monitor', 'database_id');
