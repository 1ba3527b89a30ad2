-- For operators: acknowledges a loss or a forced outcome after it was looked into, so that the audit is silent
-- about it, and keeps the record of who and why. Of a loss it removes what is left of the transaction in this
-- database, and raises the mark of once.outcome as once.forget_proven does: a decision that was removed must
-- not look aborted. A decision that other participants have not been proven for stays, for these: they may still be
-- in doubt, and must hear that it was made; recovery forgets it when they are. Of a forced branch it removes
-- nothing: its home may still come back and look for the evidence.
create function once.forget(transaction_id uuid, reason text) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
  v_forced bigint;
begin
  update once.heuristic h set acknowledged_at = now()
   where h.transaction_id = forget.transaction_id and h.acknowledged_at is null;
  get diagnostics v_count = row_count;
  update once.forced f set acknowledged_at = now()
   where f.transaction_id = forget.transaction_id and f.acknowledged_at is null;
  get diagnostics v_forced = row_count;
  if v_count + v_forced = 0 then
    raise exception 'transaction % has no loss to acknowledge here', coalesce(forget.transaction_id::text, 'null')
      using errcode = 'ONARG', detail = 'Only losses that the audit has recorded, and forced outcomes, can be forgotten by hand.',
            hint = 'select * from once.audit()';
  end if;
  perform once.record_intervention('forget', jsonb_build_object('transaction_id', forget.transaction_id), forget.reason);
  perform once.ensure_durable();
  if v_count > 0 then
    update once.global_transaction g
       set (participants, participant_homes) = (
             select coalesce(array_agg(p.name order by p.n), '{}'), coalesce(array_agg(p.home order by p.n), '{}')
               from unnest(g.participants, g.participant_homes) with ordinality p (name, home, n)
              where not exists (select from once.heuristic h
                                 where h.transaction_id = g.transaction_id and h.kind = 'lost branch'
                                   and h.participant = left(p.name, 200)))
     where g.transaction_id = forget.transaction_id;
    with gone as (
      delete from once.global_transaction g
       where g.transaction_id = forget.transaction_id and g.participants = '{}'
      returning g.home_xid
    )
    update once.identity i set forgotten_xid = greatest(i.forgotten_xid, g.home_xid) from gone g;
    delete from once.evidence e where e.transaction_id = forget.transaction_id;
  end if;
  return v_count + v_forced;
end
$$;

comment on function once.forget(uuid, text) is
  'Operator: acknowledges a recorded loss or a forced outcome, removes what is left of it here, records who and why.';
revoke all on function once.forget(uuid, text) from public;
