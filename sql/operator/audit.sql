-- What does not add up, with what it means and what to do: losses that recovery has recorded, forced
-- branches, and what the other databases answer now, through dblink: this one's evidence is compared with the
-- decisions at its homes, its decisions with the evidence at their participants. Who cannot be reached is a
-- finding of its own, so that silence is never taken for health. Pages are long, and a generic plan would
-- compare each id with each: hence custom plans.
create function once.audit() returns table (
  finding text, transaction_id uuid, participant text, home uuid, since timestamptz, meaning text, to_do text
) language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
  v_self uuid := once.database_id();
  v_patience constant interval := '1 minute';  -- younger than this, recovery is probably at it
  v_other record; v_answer record; v_page constant integer := 100000;
  v_repair constant text := 'compare the data of both, repair by hand; '
                            'then select once.acknowledge(%L, ''<what you did>'')';
  v_to_do constant text := 'pgonce recover (or once.recover()) records it; then compare the data of both and '
                           'repair by hand';
begin
  perform once.assert_home(v_self);

  return query select l.kind, l.transaction_id, l.participant, l.home, l.found_at,
         format(case l.kind
                  when 'lost branch'
                    then 'the home committed, participant %s did not: it has lost its prepared branch'
                  else 'participant %s committed, the home has no decision: it has lost it' end,
                l.participant),
         format(v_repair, l.transaction_id)
    from once.loss l where l.acknowledged_at is null order by l.found_at;

  -- A forced branch whose home answers again.
  perform once.consult('judge');
  return query select o.outcome, o.transaction_id, o.participant, o.home, o.forced_at,
         format(case o.outcome
                  when 'hazard' then 'forced to %1$s by %2$s (%3$s); what the home decided is not known'
                  when 'mixed' then 'forced by %2$s (%3$s): this branch %4$s, the home %5$s'
                  else 'forced by %2$s (%3$s), and the home decided the same' end,
                o.forced, o.forced_by, o.reason, o.done, o.decided),
         format(case
                  when o.outcome = 'mixed' then v_repair
                  when o.outcome <> 'hazard' then 'nothing: select once.acknowledge(%L, ''as decided'')'
                  when b.gid is not null
                    then 'the line was not typed: type it, or select once.resolve() if the home is back'
                  else 'wait for the home; if it never comes: select once.acknowledge(%L, ''<why>'')' end,
                o.transaction_id)
    from once.heuristics o
    left join once.branch b on b.gid = o.gid where o.acknowledged_at is null order by o.forced_at;

  -- Each of the other databases is asked what a recoverer would ask it:
  --   evidence here, decisions there. A decision goes only after its evidence: so evidence that is still
  --     there after its decision was not, has none.
  --   decisions here, branches there: first what is prepared, then what is evident, then whether it is
  --     confirmed meanwhile, for then evidence goes. Those first that are not proven: the others are many.
  --   branches here whose transaction somebody has acknowledged at its home: it would now be called aborted.
  for v_other in
    select 'audit' as step, e.home as asked, array_agg(e.transaction_id) as ids, min(e.recorded_at) as since,
           'branches that committed here could not be compared with their home' as problem
      from (select e.* from once.evidence e
             where e.recorded_at < clock_timestamp() - v_patience
               and not exists (select from once.loss l
                                where l.transaction_id = e.transaction_id and l.kind = 'lost decision')
               and not exists (select from once.heuristic f
                                where f.transaction_id = e.transaction_id
                                  and f.decided is distinct from 'committed')
             limit v_page) e
     group by e.home
    union all
    select 'prove', p.id, array_agg(g.transaction_id), min(g.decided_at),
           'decisions made here could not be compared with this participant'
      from (select g.* from once.global_transaction g
             where g.confirmed_at is null and g.decided_at < clock_timestamp() - v_patience
             order by g.proven_at nulls first, g.decided_at limit v_page) g
     cross join lateral unnest(g.database_ids) p (id) group by p.id
    union all
    select 'acknowledge', b.home, array_agg(b.transaction_id), null,
           'branches in doubt here could not be compared with their home'
      from once.branch b where b.ours group by b.home
  loop
    begin
      select a.* into v_answer from once.read_messages(once.carry(jsonb_build_object(
        'step', v_other.step, 'asking', v_self, 'asked', v_other.asked, 'ids', v_other.ids)::text)) a;
    exception when others then
      return query select 'not compared', null::uuid, null::text, v_other.asked, v_other.since,
             format('%s %s: %s', cardinality(v_other.ids), v_other.problem, sqlerrm),
             'reach it: select once.add_peer(''server''); or from outside: npx pgonce recover';
      continue;
    end;
    if v_other.step = 'audit' then
      return query select 'evidence without home row', e.transaction_id, e.participant, e.home, e.recorded_at,
             'this branch committed, its home has no decision: it lost it (a failover, a restored backup)',
             v_to_do
        from once.evidence e where e.transaction_id = any (v_answer.missing);
    elsif v_other.step = 'prove' then
      return query select case when i.lost then 'home row without evidence' else 'decided, not finished' end,
             g.transaction_id, p.name, v_self, g.decided_at,
             case when i.lost
                  then 'committed here, and the participant has neither the prepared branch nor evidence: '
                       'it lost it (a failover, a restored backup, a manual ROLLBACK PREPARED)'
                  else 'decided to commit here, and still prepared at the participant' end,
             case when i.lost then v_to_do
                  else 'run recovery there: select once.recover() or select once.resolve() \gexec' end
        from (select u.id, u.id = any (v_answer.missing) as lost from unnest(v_answer.ids) u (id)
               where u.id <> all (v_answer.evident)) i
        join once.global_transaction g on g.transaction_id = i.id and g.confirmed_at is null
       cross join lateral unnest(g.participants, g.database_ids) p (name, id)
       where p.id = v_other.asked
         and not exists (select from once.loss l
                          where l.transaction_id = i.id and l.participant = p.name
                            and l.kind = 'lost branch');
    else
      return query
      select 'branch of an acknowledged transaction', b.transaction_id, b.participant, b.home, b.prepared_at,
             'prepared here, while its transaction was acknowledged as lost at its home: it came back '
             'from a backup or a standby. Recovery would roll it back',
             'read once.intervention at the home: what was repaired there by hand must not be done twice; '
             'then finish it by hand'
        from once.branch b where b.ours and b.transaction_id = any (v_answer.ids);
    end if;
  end loop;

  return query select 'branch without an owner', b.transaction_id, b.participant, b.home, b.prepared_at,
         'prepared by a role that was dropped: nothing proves any more that it is ours, so recovery leaves '
         'it, with its locks',
         format('at its home: select once.gid_outcome(%1$L); then here, as a superuser: '
                'commit prepared %1$L, or rollback', b.gid)
    from once.branch b where b.owner is null and b.transaction_id is not null;
end $$;
comment on function once.audit() is
  'What does not add up: losses, forced branches, evidence without decision or the reverse; and what to do.';
call once.allow('recover', 'audit');
