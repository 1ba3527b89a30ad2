-- For a database that replaces its original for good (dump and restore, pg_upgrade): keeps the id, so that
-- branches which name it as their home still find their decision here.
create function once.adopt_database_id(reason text) returns uuid
language plpgsql volatile set search_path = '' as $$
declare v_id uuid;
begin
  select i.id into v_id from once.database i for update;
  perform once.record_intervention('adopt_database_id', jsonb_build_object('id', v_id),
                                   adopt_database_id.reason);
  perform once.ensure_durable();
  update once.database i set system_identifier = c.system_identifier, database_oid = d.oid
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d where d.datname = current_database();
  return v_id;
end $$;
comment on function once.adopt_database_id(text) is
  'Keeps the database id in a database that has replaced its original for good (restored dump, pg_upgrade).';
call once.allow('owner', 'adopt_database_id');
