-- For operators: acknowledges a loss or a heuristic outcome, so that the audit is silent about it, and
-- records who and why. Of a loss it removes what is left here, and raises the mark of once.outcome as
-- once.purge does: a decision that was removed must not look aborted. Other participants that are not proven
-- keep the decision: they may be in doubt, and must hear that it was made. Of a forced branch it removes
-- nothing: its home may still come back and look for the evidence.
create function once.acknowledge(transaction_id uuid, reason text) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint; v_heuristics bigint;
begin
  update once.loss l set acknowledged_at = now()
   where l.transaction_id = acknowledge.transaction_id and l.acknowledged_at is null;
  get diagnostics v_count = row_count;
  update once.heuristic h set acknowledged_at = now()
   where h.transaction_id = acknowledge.transaction_id and h.acknowledged_at is null;
  get diagnostics v_heuristics = row_count;
  if v_count + v_heuristics = 0 then
    raise exception 'transaction % has no loss to acknowledge here',
        coalesce(acknowledge.transaction_id::text, 'null') using errcode = 'ONARG',
      detail = 'Only losses that the audit has recorded, and heuristic outcomes, can be acknowledged.',
      hint = 'select * from once.audit()';
  end if;
  perform once.record_intervention(
    'acknowledge', jsonb_build_object('transaction_id', acknowledge.transaction_id), acknowledge.reason);
  perform once.ensure_durable();
  if v_count > 0 then
    update once.global_transaction g set (participants, database_ids) = (
             select coalesce(array_agg(p.name order by p.n), '{}'),
                    coalesce(array_agg(p.database_id order by p.n), '{}')
               from unnest(g.participants, g.database_ids) with ordinality p (name, database_id, n)
              where not exists (select from once.loss l
                                 where l.transaction_id = g.transaction_id and l.kind = 'lost branch'
                                   and l.participant = left(p.name, 200)))
     where g.transaction_id = acknowledge.transaction_id;
    with gone as (
      delete from once.global_transaction g
       where g.transaction_id = acknowledge.transaction_id and g.participants = '{}' returning g.home_xid
    )
    update once.database d set purged_xid = greatest(d.purged_xid, g.home_xid) from gone g;
    delete from once.evidence e where e.transaction_id = acknowledge.transaction_id;
  end if;
  return v_count + v_heuristics;
end $$;
comment on function once.acknowledge(uuid, text) is
  'Operator: acknowledges a loss or forced branch, removes what is left of it here, records who and why.';
call once.allow('operator', 'acknowledge');
