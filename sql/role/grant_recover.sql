-- What a recoverer needs: to see branches in doubt, ask for outcomes, purge by the handshake, audit,
-- and expire keys of the ledger. It can finish branches only of roles that it is a member of (Postgres's
-- rule), so grant it those: grant shop to recoverer. Make it NOINHERIT, or from 16 on grant WITH INHERIT FALSE:
-- then it has the application's rights only where it takes on the role to finish a branch.
create function once.grant_recover(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_recover.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.database, once.scope, once.expired_claims, once.global_transaction, once.evidence,
                    once.loss, once.heuristic, once.heuristics, once.branch, once.in_doubt,
                    once.in_doubt_elsewhere, once.blocked, once.health, once.peer, once.recovery, once.intervention to %1$I;
    grant update (purged_xid) on once.database to %1$I;
    grant update (proven_at, confirmed_at), delete on once.global_transaction to %1$I;
    grant delete on once.evidence to %1$I;
    grant insert on once.loss to %1$I;
    grant update (recovered_at, recovered_by, audited_at) on once.recovery to %1$I;
    grant update (decided, done, judged_at) on once.heuristic to %1$I;
    grant execute on function
      once.schema_version(), once.database_id(), once.assert_primary(), once.assert_home(uuid),
      once.branch_outcome(uuid, uuid, xid8), once.outcome(uuid, uuid, xid8),
      once.unproven(integer, timestamptz, uuid), once.find_evidence(uuid[]), once.mark_proven(uuid[]),
      once.proven(integer, interval, timestamptz, uuid), once.mark_confirmed(uuid[]),
      once.confirmed(integer, interval, timestamptz, uuid), once.delete_evidence(uuid, uuid[]), once.purge(uuid[]),
      once.evidence_page(integer, uuid), once.find_decisions(uuid[]),
      once.record_loss(uuid, text, uuid, text), once.expire(integer), once.check_name(text, text),
      once.decode_gid(text), once.decode_gids(text[]), once.decode_foreign_gid(text), once.may_vote(name),
      once.may_finish(name), once.inspect(),
      once.known_outcomes(uuid[], uuid[], text[]), once.branch_outcomes(uuid, uuid[], xid8[]), once.gid_outcome(text),
      once.stamp_recovery(text, boolean), once.judge_heuristic(uuid, text), once.find_acknowledged(uuid[]),
      once.dblink_schema(), once.remote(text, text), once.disconnect(text),
      once.open_connection(text, text), once.quote_conninfo(text), once.connect(uuid), once.ask(text), once.answer(text),
      once.apply(text), once.read_messages(text), once.finish_statements(uuid, uuid[], xid8[], text[]), once.carry(text),
      once.consult(text), once.ask_home(text), once.finish_remote(text, text, name), once.recover(interval, interval),
      once.resolve(), once.audit()
    to %1$I
  $grant$, grant_recover.role);
end
$$;

comment on function once.grant_recover(text) is
  'Lets a role recover, purge by the handshake, audit and expire keys: select once.grant_recover(''recoverer'').';
revoke all on function once.grant_recover(text) from public;
