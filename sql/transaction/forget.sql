-- For operators: acknowledges a loss after it was looked into. Removes what is left of the transaction in
-- this database, so that the audit is silent about it, and keeps the record of who and why. Raises the
-- mark of once.outcome as once.forget_proven does: a decision that was removed must not look aborted.
create function once.forget(transaction_id uuid, reason text) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
begin
  update once.heuristic h set acknowledged_at = now()
   where h.transaction_id = forget.transaction_id and h.acknowledged_at is null;
  get diagnostics v_count = row_count;
  if v_count = 0 then
    raise exception 'transaction % has no loss to acknowledge here', coalesce(forget.transaction_id::text, 'null')
      using errcode = 'ONARG', detail = 'Only losses that the audit has recorded can be forgotten by hand.',
            hint = 'select * from once.heuristic where acknowledged_at is null';
  end if;
  perform once.record_intervention('forget', jsonb_build_object('transaction_id', forget.transaction_id), forget.reason);
  perform once.ensure_durable();
  with gone as (
    delete from once.global_transaction g where g.transaction_id = forget.transaction_id returning g.home_xid
  )
  update once.identity i set forgotten_xid = greatest(i.forgotten_xid, g.home_xid) from gone g;
  delete from once.evidence e where e.transaction_id = forget.transaction_id;
  return v_count;
end
$$;

comment on function once.forget(uuid, text) is
  'Operator: acknowledges a recorded loss, removes what is left of the transaction here, records who and why.';
revoke all on function once.forget(uuid, text) from public;
