-- What a dashboard needs: to look, at all but payload hashes and results. The queries of other roles'
-- sessions show in once.blocked to members of pg_read_all_stats only.
create function once.grant_monitor(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('monitor', grant_monitor.role) $$;
comment on function once.grant_monitor(text) is
  'Lets a role look at ledgers, positions, branches and losses: select once.grant_monitor(''grafana'').';
call once.allow('owner', 'grant_monitor');
