-- Internal: what a home's outcomes mean for the branches in doubt here: the statement that finishes each, or
-- why there is none. By all three ids: anybody can read the transaction's and prepare another xid.
create function once.finish_statements(home uuid, ids uuid[], xids xid8[], outcomes text[])
returns setof jsonb language plpgsql volatile set search_path = ''
-- The planner does not know how many branches there are: over two long lists a nested loop takes for ever.
set enable_nestloop = off as $$
begin
  return query select case
           when o.outcome = 'pending'
             then jsonb_build_object('action', 'pending', 'subject', b.gid,
                    'detail', 'the home''s transaction still runs')
           -- Nothing proves any more that it is ours.
           when b.owner is null
             then jsonb_build_object('action', 'unfinished', 'subject', b.gid, 'detail',
                    format('its owner was dropped, and its home says %s; if it is yours, as a superuser: %s',
                           o.outcome, s.statement))
           else jsonb_build_object('action', 'run', 'statement', s.statement, 'gid', b.gid,
                  'id', b.transaction_id, 'outcome', o.outcome,
                  'role', case when b.owner <> current_user and not u.rolsuper then b.owner end)
         end
    from once.branch b
    join (select distinct *
            from unnest(finish_statements.ids, finish_statements.xids, finish_statements.outcomes)
         ) o (id, xid, outcome) on o.id = b.transaction_id and o.xid = b.home_xid::xid8
   cross join lateral (
     select format('%s prepared %L', case o.outcome when 'committed' then 'commit' else 'rollback' end, b.gid)
   ) s (statement)
    join pg_catalog.pg_roles u on u.rolname = current_user
   where b.home = finish_statements.home and (b.ours and b.can_finish or b.owner is null)
   order by b.prepared_at;
end $$;
comment on function once.finish_statements(uuid, uuid[], xid8[], text[]) is
  'Internal: what to do with each branch here whose home has answered: a statement, or why there is none.';
call once.allow('recover', 'finish_statements');
