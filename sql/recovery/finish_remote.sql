-- Internal: runs a statement of once.apply over a loopback connection: COMMIT PREPARED cannot run in a
-- function. Null when it is done, 'gone' if somebody else was faster, else why it is not done.
--
-- No statement_timeout, ours or the role's, may end it: COMMIT PREPARED would be cancelled while it waits for
-- a synchronous standby, and then be answered as done, seen and believed although no standby has it. It waits
-- for nothing else. What bounds it is what bounds every commit: the standby comes back or is given up.
create function once.finish_remote(connection text, statement text, role name) returns text
language plpgsql volatile set search_path = '' as $$
declare v_problem text := 'busy: somebody else is finishing it';
begin
  begin
    perform once.remote(finish_remote.connection,
              'set statement_timeout = 0' || coalesce('; set role ' || quote_ident(finish_remote.role), ''));
  exception when others then
    return format('%s (%s)', sqlerrm, sqlstate);
  end;
  for v_try in 1 .. 100 loop
    begin
      perform once.remote(finish_remote.connection, finish_remote.statement);
      v_problem := null;
      exit;
    exception
      when object_not_in_prerequisite_state then
        perform pg_sleep(0.02);  -- busy, or PREPARE still waits for a standby
      when undefined_object then
        -- Somebody else has finished it, or it was lost. That it is gone proves nothing; evidence does.
        v_problem := 'gone';
        exit;
      when others then
        v_problem := format('%s (%s)', sqlerrm, sqlstate);
        exit;
    end;
  end loop;
  begin
    perform once.remote(finish_remote.connection, 'reset role; set statement_timeout = ''10s''');
  exception when others then
    -- What comes next over it would be done as somebody else, or wait for ever.
    perform once.connect(once.database_id());
  end;
  return v_problem;
end $$;
comment on function once.finish_remote(text, text, name) is
  'Internal: COMMIT or ROLLBACK PREPARED over a connection; null when done, gone, or why not.';
call once.allow('recover', 'finish_remote');
