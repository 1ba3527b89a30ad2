-- Internal, of once.expire, and with its owner's rights and search_path for that: goes on with the pass
-- through the ledger until so many keys past their horizon are deleted, or as many blocks read; it counts
-- after each 32 blocks, some 5,000 keys. Rows that somebody has locked (to keep a result) stay as garbage.
create function once.delete_keys(batch_size integer)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  v_end constant bigint := pg_relation_size('once.message') / current_setting('block_size')::bigint;
  v_from bigint := (select e.next_block from once.expiry e);
  v_last constant bigint := v_from + greatest(1000, delete_keys.batch_size);
  v_blocks constant integer := 32; v_counts jsonb := '{}'; v_deleted bigint := 0; v_scope text;
  v_count bigint;
begin
  while v_from < v_end and v_from < v_last and v_deleted < delete_keys.batch_size loop
    for v_scope, v_count in
      with due as materialized (
        select s.scope_id, s.scope, ((now() - s.retention) at time zone 'UTC')::date as claimed_before,
               -- The least digest of the day.
               (lpad(to_hex(greatest(s.delete_before - date '1999-12-31', 0)), 4, '0')
                || repeat('0', 28))::uuid as before
          from once.scope s
         where s.retention is not null or s.delete_before is not null
      ), doomed as (
        select m.ctid from once.message m join due d on d.scope_id = m.scope_id
         where m.ctid >= format('(%s,0)', v_from)::tid and m.ctid < format('(%s,0)', v_from + v_blocks)::tid
           and case when m.claimed_on is null then m.digest < d.before
                    else m.claimed_on < d.claimed_before end
           for update of m skip locked
      ), gone as (
        delete from once.message m where m.ctid = any (array(select d.ctid from doomed d))
        returning m.scope_id
      )
      select d.scope, count(*) from gone g join due d on d.scope_id = g.scope_id group by d.scope
    loop
      v_deleted := v_deleted + v_count;
      v_counts := v_counts
        || jsonb_build_object(v_scope, coalesce((v_counts ->> v_scope)::bigint, 0) + v_count);
    end loop;
    v_from := v_from + v_blocks;
  end loop;

  return query select 'delete', c.key, 'keys past their horizon', c.value::bigint, false
    from jsonb_each_text(v_counts) c order by c.key;
  if v_from < v_end then
    update once.expiry e set next_block = v_from;
    return query
    select 'delete', null::text, format('keys past their horizon: at block %s of %s', v_from, v_end),
           0::bigint, true;
  else
    update once.expiry e set finished_on = (now() at time zone 'UTC')::date, begun_at = null;
  end if;
end $$;
comment on function once.delete_keys(integer) is
  'Internal: deletes keys past their horizon from the next stretch of blocks; says whether there is more.';
call once.allow('owner', 'delete_keys');
