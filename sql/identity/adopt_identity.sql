-- For a database that replaces its original for good (dump and restore, pg_upgrade): keeps the id, so
-- that branches which name it as their home still find their decision here.
create function once.adopt_identity(reason text) returns uuid
language plpgsql volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  select i.id into v_id from once.identity i for update;
  perform once.record_intervention('adopt_identity', jsonb_build_object('id', v_id), adopt_identity.reason);
  perform once.ensure_durable();
  update once.identity i
     set system_identifier = c.system_identifier,
         database_oid = d.oid
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
   where d.datname = current_database();
  return v_id;
end
$$;

comment on function once.adopt_identity(text) is
  'Keeps the identity in a database that has replaced its original for good (dump and restore, pg_upgrade).';
revoke all on function once.adopt_identity(text) from public;
