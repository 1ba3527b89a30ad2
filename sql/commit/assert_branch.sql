-- Raises unless the current transaction is the one that once.open marked, under the role it began with. Else
-- a handler that runs COMMIT, or a driver that reopens a lost connection, would be taken for one that wrote
-- nothing. True, so that a statement can say "where once.assert_branch(...)": a stable condition without
-- columns is evaluated before anything else of it.
create function once.assert_branch(transaction_id uuid) returns boolean
language plpgsql stable set search_path = '' as $$
declare v_mark text := coalesce(current_setting('once.transaction', true), '');
begin
  if v_mark = assert_branch.transaction_id || ' ' || current_user then return true; end if;
  if (v_mark like assert_branch.transaction_id || ' %') is not true then
    raise exception 'the handler ended the transaction it was given' using errcode = 'ONEND',
      detail = format('Transaction %s is not open any more; '
                      'what its handler committed stays committed.',
                      coalesce(assert_branch.transaction_id::text, 'null')),
      hint = 'Remove COMMIT, ROLLBACK or PREPARE TRANSACTION from the handler: '
             'return to commit, throw to roll back.';
  end if;
  raise exception 'the handler changed the role to %', quote_ident(current_user) using errcode = 'ONROL',
    detail = format('The transaction began as %s; '
                    'a prepared transaction belongs to the role that prepares it.', substr(v_mark, 38)),
    hint = 'Run RESET ROLE before the handler returns.';
end $$;
comment on function once.assert_branch(uuid) is
  'True inside the marked transaction; raises ONEND if it is over, ONROL if the role changed.';
call once.allow('app', 'assert_branch');

-- The last word before a COMMIT in one phase, in one text with it. Deferred triggers have run (set
-- constraints all immediate stands before it; in a function it would run them under the function's
-- search_path), so a role that they or the handler changed is found out, and synchronous_commit is set back.
create function once.seal(transaction_id uuid) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_branch(seal.transaction_id);
  perform once.ensure_durable();
end $$;
comment on function once.seal(uuid) is
  'Last statement before COMMIT: as once.assert_branch, and the commit waits for its flush.';
call once.allow('app', 'seal');
