-- Forced branches in the words of the XA specification (X/Open, Distributed TP: The XA Specification, 1991,
-- section 2.3.3: XA_HEURCOM, XA_HEURRB, XA_HEURMIX, XA_HEURHAZ).
create view once.heuristics as
select f.gid, f.transaction_id, f.participant, f.home,
       case when f.judged_at is null then 'hazard'
            when (f.decided = 'committed') <> (f.done = 'committed') then 'mixed'
            when f.done = 'committed' then 'heuristic commit'
            else 'heuristic rollback' end as outcome,
       f.outcome as forced, f.done, f.decided, f.forced_at, f.forced_by, f.reason,
       f.judged_at, f.acknowledged_at from once.heuristic f;
comment on view once.heuristics is
  'Forced branches: heuristic commit or rollback (as decided), mixed (the reverse), hazard (not known yet).';
call once.allow('recover, monitor', 'heuristics', 'select');
