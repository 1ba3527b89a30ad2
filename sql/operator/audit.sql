-- What does not add up, with what it means and what to do. Losses that recovery has recorded, forced branches,
-- and what can be found now by asking the other databases: this one's evidence is compared with the decisions
-- at its homes, and its decisions with the evidence at their participants. Those are reached through dblink;
-- who cannot be reached is a finding of its own, so that silence is never taken for health.
--
-- Its pages are long, and a generic plan would compare each id with each: with the arrays known, they are hashed.
create function once.audit()
returns table (finding text, transaction_id uuid, participant text, home uuid, since timestamptz, meaning text, to_do text)
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_custom_plan
as $$
declare
  v_self uuid := once.database_id();
  v_patience constant interval := '1 minute';  -- younger than this, recovery is probably at it
  v_other record;
  v_answer record;
  v_page constant integer := 100000;
begin
  perform once.assert_home(v_self);

  return query
  select l.kind, l.transaction_id, l.participant, l.home, l.found_at,
         case l.kind when 'lost branch' then format('the home committed, participant %s did not: it has lost its prepared branch', l.participant)
                     else format('participant %s committed, the home has no decision: it has lost it', l.participant) end,
         format('compare the data of both, repair by hand; then select once.acknowledge(%L, ''<what you did>'')', l.transaction_id)
    from once.loss l
   where l.acknowledged_at is null
   order by l.found_at;

  -- A forced branch whose home answers again.
  perform once.consult('judge');
  return query
  select o.outcome, o.transaction_id, o.participant, o.home, o.forced_at,
         case o.outcome
           when 'hazard' then format('forced to %s by %s (%s); what the home decided is not known', o.forced, o.forced_by, o.reason)
           when 'mixed' then format('forced by %s (%s): this branch %s, the home %s', o.forced_by, o.reason, o.done, o.decided)
           else format('forced by %s (%s), and the home decided the same', o.forced_by, o.reason) end,
         case o.outcome
           when 'hazard' then case when b.gid is not null then 'the line was not typed: type it, or select once.resolve() if the home is back'
                                   else format('wait for the home; if it never comes back: select once.acknowledge(%L, ''<why>'')', o.transaction_id) end
           when 'mixed' then format('compare the data of both, repair by hand; then select once.acknowledge(%L, ''<what you did>'')', o.transaction_id)
           else format('nothing: select once.acknowledge(%L, ''as decided'')', o.transaction_id) end
    from once.heuristics o
    left join once.branch b on b.gid = o.gid
   where o.acknowledged_at is null
   order by o.forced_at;

  -- Evidence here, decisions there. A decision goes only after its evidence: so evidence that is still there
  -- after its decision was not, has none. Hence the second look.
  for v_other in
    select e.home, array_agg(e.transaction_id) as ids, count(*) as n, min(e.recorded_at) as since
      from (select e.* from once.evidence e
             where e.recorded_at < clock_timestamp() - v_patience
               and not exists (select from once.loss l where l.transaction_id = e.transaction_id and l.kind = 'lost decision')
               and not exists (select from once.heuristic f where f.transaction_id = e.transaction_id
                                                           and f.decided is distinct from 'committed')
             limit v_page) e
     group by e.home
  loop
    begin
      select a.* into v_answer from once.read_messages(once.carry(jsonb_build_object(
        'step', 'audit', 'asking', v_self, 'asked', v_other.home, 'ids', v_other.ids)::text)) a;
      return query
      select 'evidence without home row', e.transaction_id, e.participant, e.home, e.recorded_at,
             'this branch committed, its home has no decision: the home lost it (a failover, a restored backup)',
             'pgonce recover (or once.recover()) records it; then compare the data of both and repair by hand'
        from once.evidence e
       where e.transaction_id = any (v_answer.missing);
    exception when others then
      return query
      select 'not compared', null::uuid, null::text, v_other.home, v_other.since,
             format('%s branches that committed here could not be compared with their home: %s', v_other.n, sqlerrm),
             'reach it: select once.add_peer(''server''); or audit from outside: npx pgonce recover';
    end;
  end loop;

  -- Decisions here, branches there: first what is prepared, then what is evident, then whether it is confirmed
  -- meanwhile, for then evidence goes. Those first of which nothing is proven: of the others there are many, those
  -- of the last ten minutes.
  for v_other in
    select p.database_id, array_agg(g.transaction_id) as ids, array_agg(p.name) as names, array_agg(g.decided_at) as decided,
           count(*) as n, min(g.decided_at) as since
      from (select g.* from once.global_transaction g
             where g.confirmed_at is null and g.decided_at < clock_timestamp() - v_patience
             order by g.proven_at nulls first, g.decided_at limit v_page) g
     cross join lateral unnest(g.participants, g.database_ids) p (name, database_id)
     group by p.database_id
  loop
    begin
      select a.* into v_answer from once.read_messages(once.carry(jsonb_build_object(
        'step', 'prove', 'asking', v_self, 'asked', v_other.database_id, 'ids', v_other.ids)::text)) a;
      return query
      select case when i.lost then 'home row without evidence' else 'decided, not finished' end, i.id, i.name, v_self, i.decided_at,
             case when i.lost then 'committed here, and the participant has neither the prepared branch nor evidence: it lost it '
                                   '(a failover, a restored backup, a manual ROLLBACK PREPARED)'
                  else 'decided to commit here, and still prepared at the participant' end,
             case when i.lost then 'pgonce recover (or once.recover()) records it; then compare the data of both and repair by hand'
                  else 'run recovery there: select once.recover() or select once.resolve() \gexec' end
        from (select o.*, o.id = any (v_answer.missing) as lost
                from unnest(v_other.ids, v_other.names, v_other.decided) o (id, name, decided_at)) i
        join once.global_transaction g on g.transaction_id = i.id and g.confirmed_at is null
       where i.id <> all (v_answer.evident)
         and not exists (select from once.loss l where l.transaction_id = i.id and l.participant = i.name and l.kind = 'lost branch');
    exception when others then
      return query
      select 'not compared', null::uuid, null::text, v_other.database_id, v_other.since,
             format('%s decisions made here could not be compared with this participant: %s', v_other.n, sqlerrm),
             'reach it: select once.add_peer(''server''); or audit from outside: npx pgonce recover';
    end;
  end loop;

  -- Branches here whose transaction somebody has acknowledged at its home: it would now be called aborted.
  for v_other in
    select b.home, array_agg(b.transaction_id) as ids
      from once.branch b
     where b.ours
     group by b.home
  loop
    begin
      select a.* into v_answer from once.read_messages(once.carry(jsonb_build_object(
        'step', 'acknowledge', 'asking', v_self, 'asked', v_other.home, 'ids', v_other.ids)::text)) a;
      return query
      select 'branch of an acknowledged transaction', b.transaction_id, b.participant, b.home, b.prepared_at,
             'prepared here, while its transaction was acknowledged as lost at its home: it came back from a '
             'backup or a standby. Recovery would roll it back',
             'read once.intervention at the home: what was repaired there by hand must not be done twice; then finish it by hand'
        from once.branch b
       where b.ours and b.transaction_id = any (v_answer.ids);
    exception when others then
      return query
      select 'not compared', null::uuid, null::text, v_other.home, null::timestamptz,
             format('%s branches in doubt here could not be compared with their home: %s', cardinality(v_other.ids), sqlerrm),
             'reach it: select once.add_peer(''server''); or recover from outside: npx pgonce recover';
    end;
  end loop;

  -- Branches whose owner was dropped: nothing proves any more that they are ours, so nobody offers to finish them.
  return query
  select 'branch without an owner', b.transaction_id, b.participant, b.home, b.prepared_at,
         'prepared by a role that was dropped: nothing proves any more that it is ours, so recovery leaves it, with its locks',
         format('at its home: select once.gid_outcome(%1$L); then here, as a superuser: commit prepared %1$L, or rollback', b.gid)
    from once.branch b
   where b.owner is null and b.transaction_id is not null;
end
$$;

comment on function once.audit() is
  'What does not add up: losses, forced branches, evidence without decision, decisions without evidence; each with its meaning and what to do.';
call once.allow('recover', 'audit');
