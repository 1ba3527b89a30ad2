-- A whole round of recovery inside Postgres, for this database: finishes its branches as their homes decided,
-- proves and purges its decisions by the handshake, and now and then compares its evidence with its homes. The
-- same laws and the same functions as the recovery in TypeScript (src/recovery/recovery.ts); both may run at once,
-- and several of each. By pg_cron: see docs/operations.md.
--
-- Everything goes over dblink, this database's own part over a loopback connection: COMMIT PREPARED cannot run
-- in a function; each reading needs a snapshot newer than the one before; and "proven" must be committed
-- before any evidence goes, which our caller's transaction, as long as it is open, is not.
create function once.recover(keep interval default '10 minutes', settle interval default '0')
returns table (action text, count bigint, subject text, detail text)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_self uuid := once.database_id();
  v_me text;
  v_branch record;
  v_problem text;
  v_other record;
  v_connection text;
  v_page constant integer := 1000;
  v_ids uuid[];
  v_open uuid[];
  v_missing uuid[];
  v_missing_names text[];
  v_prepared uuid[];
  v_evident uuid[];
  v_known uuid[];
  v_count bigint;
  v_look text;
  v_after_at text;
  v_after uuid;
  v_audit boolean;
  v_gids text[];
  v_outcomes text[];
  v_reasons text[];
  v_down uuid[] := '{}';
  -- dblink heeds no connect_timeout since Postgres 16. So a new connection is tried in the loopback session first,
  -- where statement_timeout ends it.
  v_try constant text := 'select array[once.disconnect(once.connect(%L))::text]';
begin
  perform once.assert_home(v_self);
  v_me := once.connect(v_self);
  select coalesce(r.audited_at < clock_timestamp() - interval '1 minute', true) into v_audit from once.recovery r;

  -- Finishing, home by home: one that hangs must not keep the branches of the others.
  for v_other in
    select (r.v)[1]::uuid as home, (r.v)[2]::text[] as gids
      from once.remote(v_me, format(
             'select array[b.home::text, array_agg(b.gid)::text] from once.branch b '
             'where (b.ours or b.owner is null and b.transaction_id is not null) and b.age >= %L::interval '
             'group by b.home order by b.home <> %L', recover.settle, v_self)) r (v)
  loop
    begin
      select array_agg((r.v)[1]), array_agg((r.v)[2]), array_agg((r.v)[3])
        into v_gids, v_outcomes, v_reasons
        from once.remote(v_me, format('select array[a.gid, a.outcome, a.reason] from once.ask_homes(%L) a', v_other.gids)) r (v);
    exception when others then
      v_gids := v_other.gids;
      v_outcomes := '{}';
      v_reasons := array_fill(sqlerrm, array[cardinality(v_gids)]);
    end;
    if v_reasons[1] is not null then
      v_down := v_down || v_other.home;
    end if;
    for v_branch in
      select b.*, a.outcome, a.reason
        from (select (r.v)[1] as gid, (r.v)[2]::uuid as id, (r.v)[3] as owner, (r.v)[4]::name as role,
                     (r.v)[5]::boolean as allowed, (r.v)[6] as recoverer, (r.v)[7]::timestamptz as prepared_at
                from once.remote(v_me, format($q$
                  select array[b.gid, b.transaction_id::text, b.owner::text,
                               case when b.owner <> current_user and not u.rolsuper then b.owner::text end,
                               b.can_finish::text, current_user::text, b.prepared_at::text]
                    from once.branch b join pg_catalog.pg_roles u on u.rolname = current_user
                   where (b.ours or b.owner is null and b.transaction_id is not null) and b.gid = any (%L)$q$, v_gids)) r (v)) b
        join unnest(v_gids, v_outcomes, v_reasons) a (gid, outcome, reason) on a.gid = b.gid
       order by b.prepared_at
    loop
      if v_branch.outcome is null then
        return query select 'unfinished', 1::bigint, v_branch.gid, v_branch.reason;
      elsif v_branch.outcome = 'pending' then
        return query select 'pending', 1::bigint, v_branch.gid, 'the home''s transaction still runs'::text;
      elsif v_branch.owner is null then
        -- Nothing proves any more that it is ours.
        return query select 'unfinished', 1::bigint, v_branch.gid,
                            format('its owner was dropped, and its home says %s; if it is yours, as a superuser: %s prepared %L', v_branch.outcome,
                                   case v_branch.outcome when 'committed' then 'commit' else 'rollback' end, v_branch.gid);
      elsif not v_branch.allowed then
        return query select 'unfinished', 1::bigint, v_branch.gid,
                            format('it belongs to role %s; as a superuser: grant %I to %I', v_branch.owner, v_branch.owner, v_branch.recoverer);
      else
        v_problem := once.finish_remote(v_me, v_branch.gid, v_branch.id, v_branch.outcome, v_branch.role);
        return query select case when v_problem is not null then 'unfinished'
                                 when v_branch.outcome = 'committed' then 'committed' else 'rolled back' end,
                            1::bigint, v_branch.gid, v_problem;
      end if;
    end loop;
  end loop;

  -- Proving, and half of keep later confirming: two looks at the evidence, the same but for the mark. A decision read
  -- without the mark, whose branch is then neither prepared nor, after that, evident, and which is still without the
  -- mark after that, has lost the branch: it was prepared when the decision was made; what leaves the list of
  -- prepared transactions by committing has left its evidence before; and evidence goes only after the decision is
  -- marked. Hence the order of the four readings.
  v_look := 'proven';
  v_after_at := '-infinity';
  v_after := '00000000-0000-0000-0000-000000000000';
  loop
    v_open := '{}';
    v_missing := '{}';
    v_missing_names := '{}';
    v_ids := '{}';
    for v_other in
      with decision as materialized (
        select (r.v)[1]::uuid as id, (r.v)[2]::text[] as names, (r.v)[3]::uuid[] as database_ids, (r.v)[4] as at
          from once.remote(v_me,
                 case v_look
                   when 'proven' then format('select array[d.transaction_id::text, d.participants::text, d.database_ids::text, '
                                             'd.decided_at::text] from once.unproven(%s, %L, %L) d', v_page, v_after_at, v_after)
                   else format('select array[d.transaction_id::text, d.participants::text, d.database_ids::text, d.proven_at::text] '
                               'from once.proven(%s, %L, %L, %L) d', v_page, recover.keep / 2, v_after_at, v_after) end) r (v)
      ), last as (
        select d.at, d.id from decision d order by d.at::timestamptz desc, d.id desc limit 1
      )
      select p.database_id, array_agg(d.id) as ids, array_agg(p.name) as names,
             (select array_agg(a.id) from decision a) as page,
             (select l.at from last l) as last_at, (select l.id from last l) as last_id
        from decision d
        left join lateral unnest(d.names, d.database_ids) p (name, database_id) on true
       group by p.database_id
    loop
      v_ids := v_other.page;
      v_after_at := v_other.last_at;
      v_after := v_other.last_id;
      continue when v_other.database_id is null;
      if v_other.database_id = any (v_down) then
        v_open := v_open || v_other.ids;
        return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.database_id::text, 'not asked again'::text;
        continue;
      end if;
      begin
        -- An application writes the ids, so it may be this one: another connection by its id would replace ours.
        if v_other.database_id = v_self then
          v_connection := v_me;
        else
          perform once.remote(v_me, format(v_try, v_other.database_id));
          v_connection := once.connect(v_other.database_id);
        end if;
        select coalesce(array_agg((r.v)[1]::uuid), '{}') into v_prepared
          from once.remote(v_connection, 'select array[b.transaction_id::text] from once.branch b where b.transaction_id is not null') r (v);
        select coalesce(array_agg((r.v)[1]::uuid), '{}') into v_evident
          from once.remote(v_connection, format('select array[e::text] from once.find_evidence(%L::uuid[]) e', v_other.ids)) r (v);
        if v_connection <> v_me then
          perform once.disconnect(v_connection);
        end if;
        select v_open || coalesce(array_agg(i.id), '{}'),
               v_missing || coalesce(array_agg(i.id) filter (where i.id <> all (v_prepared)), '{}'),
               v_missing_names || coalesce(array_agg(i.name) filter (where i.id <> all (v_prepared)), '{}')
          into v_open, v_missing, v_missing_names
          from unnest(v_other.ids, v_other.names) i (id, name)
         where i.id <> all (v_evident);
      exception when others then
        v_open := v_open || v_other.ids;
        v_down := v_down || v_other.database_id;
        return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.database_id::text, sqlerrm;
      end;
    end loop;
    select (r.v)[1]::bigint into v_count
      from once.remote(v_me, format('select array[once.%I(%L::uuid[])::text]', 'mark_' || v_look,
             array(select i from unnest(v_ids) i where i <> all (v_open)))) r (v);
    if v_count > 0 and v_look = 'proven' then
      return query select 'proven', v_count, null::text, null::text;
    end if;
    if cardinality(v_missing) > 0 then
      for v_other in
        select i.id, i.name
          from unnest(v_missing, v_missing_names) i (id, name)
          join once.remote(v_me, format('select array[d.transaction_id::text] from once.find_decisions(%L::uuid[]) d where not d.%I',
                                        v_missing, v_look)) r (v) on (r.v)[1]::uuid = i.id
      loop
        if (select (r.v)[1]::boolean from once.remote(v_me, format('select array[once.record_loss(%L, %L, %L, ''lost branch'')::text]',
              v_other.id, v_other.name, v_self)) r (v)) then
          return query select 'lost branch', 1::bigint, v_other.id::text,
                              format('committed here, participant %s has neither the branch nor evidence of it', v_other.name);
        end if;
      end loop;
    end if;
    continue when cardinality(v_ids) = v_page;
    exit when v_look = 'confirmed';
    v_look := 'confirmed';
    v_after_at := '-infinity';
    v_after := '00000000-0000-0000-0000-000000000000';
  end loop;

  -- Purging, after the other half of keep: the evidence everywhere, and then the decisions.
  v_after_at := '-infinity';
  v_after := '00000000-0000-0000-0000-000000000000';
  loop
    v_ids := '{}';
    v_open := '{}';
    for v_other in
      with decision as materialized (
        select (r.v)[1]::uuid as id, (r.v)[2]::uuid[] as database_ids, (r.v)[3] as at
          from once.remote(v_me, format('select array[d.transaction_id::text, d.database_ids::text, d.confirmed_at::text] '
                                        'from once.confirmed(%s, %L, %L, %L) d', v_page, recover.keep / 2, v_after_at, v_after)) r (v)
      ), last as (
        select d.at, d.id from decision d order by d.at::timestamptz desc, d.id desc limit 1
      )
      select p.database_id, array_agg(d.id) as ids, (select array_agg(a.id) from decision a) as page,
             (select l.at from last l) as last_at, (select l.id from last l) as last_id
        from decision d
        left join lateral unnest(d.database_ids) p (database_id) on true
       group by p.database_id
    loop
      v_ids := v_other.page;
      v_after_at := v_other.last_at;
      v_after := v_other.last_id;
      continue when v_other.database_id is null;
      if v_other.database_id = any (v_down) then
        v_open := v_open || v_other.ids;
        return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.database_id::text, 'not asked again'::text;
        continue;
      end if;
      begin
        if v_other.database_id = v_self then
          v_connection := v_me;
        else
          perform once.remote(v_me, format(v_try, v_other.database_id));
          v_connection := once.connect(v_other.database_id);
        end if;
        perform once.remote(v_connection, format('select array[once.delete_evidence(%L, %L::uuid[])::text]', v_self, v_other.ids));
        if v_connection <> v_me then
          perform once.disconnect(v_connection);
        end if;
      exception when others then
        v_open := v_open || v_other.ids;
        v_down := v_down || v_other.database_id;
        return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.database_id::text, sqlerrm;
      end;
    end loop;
    v_known := array(select i from unnest(v_ids) i where i <> all (v_open));
    select (r.v)[1]::bigint into v_count
      from once.remote(v_me, format('select array[once.purge(%L::uuid[])::text]', v_known)) r (v);
    if v_count > 0 then
      return query select 'purged', v_count, null::text, null::text;
    end if;
    exit when cardinality(v_ids) < v_page;
  end loop;

  -- Auditing. A decision goes only after its evidence, so if evidence is still there after its decision was not,
  -- the home has lost it.
  if v_audit then
    v_after := '00000000-0000-0000-0000-000000000000';
    loop
      v_ids := '{}';
      for v_other in
        with evidence as materialized (
          select (r.v)[1]::uuid as id, (r.v)[2]::uuid as home, (r.v)[3] as name
            from once.remote(v_me, format('select array[e.transaction_id::text, e.home::text, e.participant] from once.evidence_page(%s, %L) e',
                                          v_page, v_after)) r (v)
        )
        select e.home, array_agg(e.id) as ids, array_agg(e.name) as names, (select array_agg(a.id) from evidence a) as page
          from evidence e group by e.home
      loop
        v_ids := v_other.page;
        if v_other.home = any (v_down) then
          return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.home::text, 'not asked again'::text;
          continue;
        end if;
        begin
          if v_other.home = v_self then
            v_connection := v_me;
          else
            perform once.remote(v_me, format(v_try, v_other.home));
            v_connection := once.connect(v_other.home);
          end if;
          select coalesce(array_agg((r.v)[1]::uuid), '{}') into v_known
            from once.remote(v_connection, format('select array[d.transaction_id::text] from once.find_decisions(%L::uuid[]) d', v_other.ids)) r (v);
          if v_connection <> v_me then
            perform once.disconnect(v_connection);
          end if;
        exception when others then
          v_known := v_other.ids;
          v_down := v_down || v_other.home;
          return query select 'unreachable', cardinality(v_other.ids)::bigint, v_other.home::text, sqlerrm;
        end;
        v_missing := array(select i from unnest(v_other.ids) i where i <> all (v_known));
        continue when cardinality(v_missing) = 0;
        for v_branch in
          select i.id, i.name
            from unnest(v_other.ids, v_other.names) i (id, name)
            join once.remote(v_me, format('select array[e::text] from once.find_evidence(%L::uuid[]) e', v_missing)) r (v)
              on (r.v)[1]::uuid = i.id
        loop
          if (select (r.v)[1]::boolean from once.remote(v_me, format('select array[once.record_loss(%L, %L, %L, ''lost decision'')::text]',
                v_branch.id, v_branch.name, v_other.home)) r (v)) then
            return query select 'lost decision', 1::bigint, v_branch.id::text, format('committed here, home %s has no decision', v_other.home);
          end if;
        end loop;
      end loop;
      exit when cardinality(v_ids) < v_page;
      v_after := (select i from unnest(v_ids) i order by i desc limit 1);
    end loop;

    -- Homes of forced branches that answer again.
    for v_branch in
      select f.transaction_id as id, a.outcome
        from once.heuristic f
        join once.ask_homes((select array_agg(u.gid) from once.heuristic u
                              where u.judged_at is null and u.home <> all (v_down))) a on a.gid = f.gid
       where f.judged_at is null and a.outcome in ('committed', 'aborted')
    loop
      perform once.remote(v_me, format('select array[once.judge_heuristic(%L, %L)::text]', v_branch.id, v_branch.outcome));
    end loop;
  end if;

  perform once.remote(v_me, format('select array[]::text[] from once.stamp_recovery(''once.recover()'', %L)', v_audit));
  perform once.disconnect(v_me);
end
$$;

comment on function once.recover(interval, interval) is
  'Recovers this database from within, through dblink: select * from once.recover(); for pg_cron. Says what it did, a row each.';
call once.allow('recover', 'recover');
