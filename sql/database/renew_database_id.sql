-- For a copy whose original lives on: takes a new id. Decisions and evidence in the copy belong to
-- transactions of the original, so they go; ledgers and positions stay. A copy of the schema alone lacks the
-- rows that stand for the whole database, and gets them here.
create function once.renew_database_id(reason text) returns uuid
language plpgsql volatile set search_path = '' as $$
declare v_old uuid; v_new uuid := gen_random_uuid();
begin
  insert into once.database (system_identifier, database_oid) values (0, 0) on conflict do nothing;
  insert into once.expiry default values on conflict do nothing;
  select i.id into v_old from once.database i for update;
  perform once.record_intervention('renew_database_id', jsonb_build_object('old', v_old, 'new', v_new),
                                   renew_database_id.reason);
  perform once.ensure_durable();
  delete from once.global_transaction; delete from once.evidence; delete from once.loss;
  delete from once.heuristic; delete from once.peer;
  update once.recovery r set recovered_at = null, recovered_by = null, audited_at = null;
  update once.database i set id = v_new, system_identifier = c.system_identifier, database_oid = d.oid,
         purged_xid = '0', created_at = now()
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d where d.datname = current_database();
  return v_new;
end $$;
comment on function once.renew_database_id(text) is
  'Gives a copied database an id of its own and drops the original''s decisions and evidence from it.';
call once.allow('owner', 'renew_database_id');
