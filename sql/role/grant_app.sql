-- What an application needs to claim, to move positions and to take part in global transactions. It can add
-- keys, never take one back, and cannot touch anybody's decisions; the counters of producers and positions
-- it must be trusted with, since it updates them.
create function once.grant_app(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_app.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.database, once.scope, once.global_transaction, once.evidence,
                    once.producers, once.lag, once.branch, once.in_doubt to %1$I;
    grant select, insert (producer, epoch, watermark), update (epoch, watermark, gaps) on once.producer to %1$I;
    grant select, insert, update (last), delete on once.claimed_ahead to %1$I;
    grant select, insert (consumer_group, topic, partition, epoch, owner, taken_at),
          update ("position", token, epoch, owner, taken_at, updated_at) on once.consumer_position to %1$I;
    grant select, insert (topic, partition, end_position), update (end_position, updated_at)
          on once.topic_end to %1$I;
    grant select, insert, update (result) on once.message to %1$I;
    grant insert (scope) on once.scope to %1$I;
    grant insert (scope_id, claims, oldest_day) on once.expired_claim to %1$I;
    grant insert (transaction_id, participants, database_ids) on once.global_transaction to %1$I;
    grant insert (transaction_id, home, participant) on once.evidence to %1$I;
    grant execute on routine
      once.schema_version(), once.database_id(), once.explain_no_database(), once.assert_primary(), once.check_name(text, text), once.ensure_durable(),
      once.claim(text, bigint, integer, boolean, bigint), once.claim_batch(text, bigint[], integer, boolean, bigint),
      once.claim_ranges(text, int8multirange, integer, boolean, bigint),
      once.claim_out_of_order(text, int8multirange, integer, boolean, bigint),
      once.ranges_near(text, int8multirange),
      once.assert_sequences(text, int8multirange, integer, boolean, bigint),
      once.refuse_gaps(text, int8multirange, bigint),
      once.message_digest(text, text, timestamptz), once.message_time(text), once.open_scope(text),
      once.assert_keys(text[], timestamptz[], bytea[], timestamptz[]),
      once.answer_keys(integer, timestamptz, text[], uuid[], timestamptz[], bytea[], uuid[]),
      once.claim_keys(text, text[], timestamptz[], bytea[]),
      once.claim_key(text, text, timestamptz, bytea), once.claim_key_batch(text, text[], timestamptz[], bytea[]),
      once.keep_result(text, text, jsonb, timestamptz),
      once.take_partition(text, text, integer, text), once.read_position(text, text, integer),
      once.explain_position(text, text, integer, integer, text, text),
      once.advance(text, text, integer, integer, bigint, bigint),
      once.advance_token(text, text, integer, integer, text, text), once.report_end(text, integer, bigint),
      once.open(uuid, integer, integer), once.assert_branch(uuid), once.vote(uuid, uuid, text, uuid),
      once.begin_global(uuid, text[], uuid[], uuid), once.narrow_global(uuid, text[], uuid[]),
      once.assert_home(uuid), once.branch_outcomes(uuid, uuid[], xid8[]), once.branch_outcome(uuid, uuid, xid8),
      once.outcome(uuid, uuid, xid8), once.find_evidence(uuid[]), once.decode_gid(text),
      once.decode_gids(text[]), once.decode_foreign_gid(text), once.may_vote(name), once.may_finish(name),
      once.inspect(), once.known_outcomes(uuid[], uuid[], text[])
    to %1$I
  $grant$, grant_app.role);
end
$$;

comment on function once.grant_app(text) is
  'Lets a role claim, move positions and take part in global transactions: select once.grant_app(''shop'').';
revoke all on function once.grant_app(text) from public;
