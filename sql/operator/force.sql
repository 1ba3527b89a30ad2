-- Finishes a branch whose home is gone for good, and only that: it is refused wherever the home can still be
-- asked. Records who, when and why; then returns the line to type, as once.resolve does. Nothing else does
-- so.
create function once.force(gid text, outcome text, reason text) returns table (statement text)
language plpgsql volatile set search_path = '' as $$
declare
  v_branch record;
  v_xid text := (once.decode_gid(force.gid)).home_xid;
  v_outcome text;
begin
  perform once.assert_primary();
  if coalesce(force.outcome, '') not in ('commit', 'rollback') then
    raise exception 'bad outcome: %', coalesce(quote_literal(force.outcome), 'null') using errcode = 'ONARG',
      detail = 'Expected commit or rollback.',
      hint = 'What did the other participants do? Their once.evidence and their data tell.';
  end if;
  select b.* into v_branch from once.branch b where b.gid = force.gid and b.ours;
  if not found then
    raise exception 'no branch of ours is prepared here as %',
        coalesce(quote_literal(left(force.gid, 200)), 'null') using errcode = 'ONARG',
      detail = 'Only prepared transactions of pgonce, in this database, can be forced.',
      hint = 'select gid, manager, outcome from once.in_doubt where ours';
  end if;
  if not v_branch.can_finish then
    raise exception 'only role % may finish this branch', quote_ident(v_branch.owner) using errcode = 'ONARG',
      detail = 'Postgres lets the owner and superusers finish a prepared transaction.',
      hint = format('grant %I to %I', v_branch.owner, current_user);
  end if;
  begin
    v_outcome := once.ask_home(force.gid);
  exception when others then
    null;  -- out of reach: that is what this is for
  end;
  if v_outcome is not null then
    raise exception 'its home answers: %', v_outcome using errcode = 'ONARG',
      detail = 'An outcome is forced only where the home is gone for good.',
      hint = case v_outcome when 'pending' then 'Its transaction still runs there: wait, or end it there.'
             else 'select once.resolve() \gexec' end;
  end if;
  perform once.record_intervention('force', jsonb_build_object('gid', force.gid, 'outcome', force.outcome),
                                   force.reason);
  perform once.ensure_durable();
  -- A second opinion before the line was typed: what is done tells in the end.
  insert into once.heuristic as f (gid, transaction_id, home, home_xid, participant, owner, outcome, reason)
  values (force.gid, v_branch.transaction_id, v_branch.home, v_xid::xid8, v_branch.participant,
          v_branch.owner, force.outcome, force.reason)
  on conflict on constraint heuristic_pkey do update set outcome = excluded.outcome, reason = excluded.reason;
  return query select s.statement
    from (values (1, format('/* only its owner may finish it */ set role %I', v_branch.owner)),
                 (2, format('/* forced by %s */ %s prepared %L',
                            translate(quote_ident(session_user), '*/', ''), force.outcome, force.gid)),
                 (3, 'reset role')) s (step, statement)
   where s.step = 2 or v_branch.owner <> current_user
         and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)
   order by s.step;
end $$;
comment on function once.force(text, text, text) is
  'Operator: records a forced commit or rollback of a branch whose home is gone for good; the line to type.';
call once.allow('operator', 'force');
