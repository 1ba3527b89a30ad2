-- The home of a forced branch has come back: puts its decision beside what was done, which the branch itself
-- shows: still prepared, then nothing yet; else evidence exactly if it committed.
create function once.judge_heuristic(transaction_id uuid, decided text) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  perform once.assert_primary();
  if coalesce(judge_heuristic.decided, '') not in ('committed', 'aborted') then return 0; end if;
  -- First what is prepared, then, with a newer snapshot, what is evident: it leaves the one for the other.
  -- The owner too: whoever may connect can prepare a transaction of this name once the real one is gone.
  if exists (select from once.branch b
               join once.heuristic f on f.gid = b.gid and f.owner = b.owner
              where f.transaction_id = judge_heuristic.transaction_id) then
    return 0;
  end if;
  update once.heuristic f set decided = judge_heuristic.decided,
         done = case when exists (select from once.evidence e where e.transaction_id = f.transaction_id)
                     then 'committed' else 'rolled back' end,
         judged_at = clock_timestamp()
   where f.transaction_id = judge_heuristic.transaction_id and f.judged_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.judge_heuristic(uuid, text) is
  'Recoverer: notes what the home of a forced branch decided, once it can be asked again.';
call once.allow('recover', 'judge_heuristic');
