-- What a dashboard needs: to look, at everything but payload hashes and results. The queries of other roles'
-- sessions show in once.blocked to members of pg_read_all_stats only, which is Postgres's to grant.
create function once.grant_monitor(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_monitor.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.database, once.producers, once.scope, once.expired_claims, once.expiry,
                    once.consumer_position, once.topic_end, once.lag, once.branch, once.in_doubt,
                    once.in_doubt_elsewhere, once.blocked, once.health, once.global_transaction, once.evidence, once.loss, once.heuristic,
                    once.heuristics, once.intervention, once.recovery, once.peer to %1$I;
    grant execute on function
      once.schema_version(), once.database_id(), once.explain_no_database(), once.read_position(text, text, integer),
      once.unproven(integer, timestamptz, uuid), once.assert_primary(), once.assert_home(uuid),
      once.branch_outcomes(uuid, uuid[], xid8[]), once.branch_outcome(uuid, uuid, xid8), once.gid_outcome(text),
      once.decode_gid(text), once.decode_gids(text[]), once.decode_foreign_gid(text), once.may_vote(name),
      once.may_finish(name), once.inspect(),
      once.known_outcomes(uuid[], uuid[], text[])
    to %1$I
  $grant$, grant_monitor.role);
end
$$;

comment on function once.grant_monitor(text) is
  'Lets a role look at the database id, ledgers, positions, branches in doubt and losses: select once.grant_monitor(''grafana'').';
revoke all on function once.grant_monitor(text) from public;
