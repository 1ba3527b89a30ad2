-- What the person on call needs: all that a recoverer and a monitor may, and to overrule: to name peers, to force
-- an outcome, to acknowledge losses. When and by whom is filled in by the tables, so nobody can say it was
-- somebody else. As for a recoverer: grant it the roles whose branches it is to finish.
create function once.grant_operator(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.grant_recover(grant_operator.role);
  perform once.grant_monitor(grant_operator.role);
  execute format($grant$
    grant insert (action, subject, reason) on once.intervention to %1$I;
    grant insert (gid, transaction_id, home, home_xid, participant, owner, outcome, reason),
          update (outcome, reason, acknowledged_at) on once.heuristic to %1$I;
    grant update (acknowledged_at) on once.loss to %1$I;
    grant update (participants, database_ids) on once.global_transaction to %1$I;
    grant insert (database_id, server), update (server, added_at, added_by), delete on once.peer to %1$I;
    grant execute on function
      once.record_intervention(text, jsonb, text), once.ensure_durable(), once.add_peer(text),
      once.force(text, text, text), once.acknowledge(uuid, text)
    to %1$I
  $grant$, grant_operator.role);
end
$$;

comment on function once.grant_operator(text) is
  'Lets a role look, recover, force outcomes and acknowledge losses: select once.grant_operator(''oncall'').';
revoke all on function once.grant_operator(text) from public;
