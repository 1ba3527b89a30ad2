-- What a recoverer needs: to see branches in doubt, ask for decisions, forget by the handshake, audit,
-- and sweep the key ledger. It can finish branches only of roles that it is a member of (Postgres's
-- rule), so grant it those: grant shop to recoverer.
create function once.grant_recover(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_recover.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.identity, once.scope, once.global_transaction, once.evidence, once.heuristic,
                    once.in_doubt to %1$I;
    grant update (forgotten_xid) on once.identity to %1$I;
    grant update (proven_at), delete on once.global_transaction to %1$I;
    grant delete on once.evidence to %1$I;
    grant insert on once.heuristic to %1$I;
    grant execute on function
      once.schema_version(), once.home_id(), once.check_primary(), once.check_home(uuid),
      once.decide(uuid, uuid, xid8), once.outcome(uuid, uuid, xid8),
      once.unproven(integer, timestamptz, uuid), once.find_evidence(uuid[]), once.mark_proven(uuid[]),
      once.proven(integer, interval), once.delete_evidence(uuid, uuid[]), once.forget_proven(uuid[]),
      once.evidence_page(integer, uuid), once.find_decisions(uuid[]),
      once.record_heuristic(uuid, text, uuid, text), once.sweep(integer)
    to %1$I
  $grant$, grant_recover.role);
end
$$;

comment on function once.grant_recover(text) is
  'Lets a role recover, forget by the handshake, audit and sweep: select once.grant_recover(''recoverer'').';
revoke all on function once.grant_recover(text) from public;
