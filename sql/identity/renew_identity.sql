-- For a copy of a database whose original lives on: takes a new id. Decisions and evidence in the copy
-- belong to transactions of the original, so they go; ledgers and offsets stay, they are this
-- database's own history. A copy of the schema alone lacks the rows that stand for the whole database: it
-- gets them here.
create function once.renew_identity(reason text) returns uuid
language plpgsql volatile
set search_path = ''
as $$
declare
  v_old uuid;
  v_new uuid := gen_random_uuid();
begin
  insert into once.identity (system_identifier, database_oid) values (0, 0) on conflict do nothing;
  insert into once.message_floor (day) values ('-infinity') on conflict do nothing;
  insert into once.timeless_sweep default values on conflict do nothing;
  select i.id into v_old from once.identity i for update;
  perform once.record_intervention('renew_identity', jsonb_build_object('old', v_old, 'new', v_new),
                                   renew_identity.reason);
  perform once.ensure_durable();
  delete from once.global_transaction;
  delete from once.evidence;
  delete from once.heuristic;
  delete from once.forced;
  delete from once.peer;
  update once.recovery r set recovered_at = null, recovered_by = null, audited_at = null;
  update once.identity i
     set id = v_new,
         system_identifier = c.system_identifier,
         database_oid = d.oid,
         forgotten_xid = '0',
         created_at = now()
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
   where d.datname = current_database();
  return v_new;
end
$$;

comment on function once.renew_identity(text) is
  'Gives a copied database an identity of its own and drops the original''s decisions and evidence from it.';
revoke all on function once.renew_identity(text) from public;
