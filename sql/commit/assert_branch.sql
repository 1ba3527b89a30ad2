-- Raises unless the current transaction is the one that once.open marked, still under the role it began
-- with. Without this a handler that runs COMMIT would be taken for one that wrote nothing.
create function once.assert_branch(transaction_id uuid) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_mark text := coalesce(current_setting('once.transaction', true), '');
begin
  if v_mark = assert_branch.transaction_id || ' ' || current_user then
    return;
  end if;
  if (v_mark like assert_branch.transaction_id || ' %') is not true then
    raise exception 'the handler ended the transaction it was given'
      using errcode = 'ONEND',
            detail = format('Transaction %s is not open any more; what its handler committed stays committed.',
                            coalesce(assert_branch.transaction_id::text, 'null')),
            hint = 'Remove COMMIT, ROLLBACK or PREPARE TRANSACTION from the handler: return to commit, throw to roll back.';
  end if;
  raise exception 'the handler changed the role to %', quote_ident(current_user)
    using errcode = 'ONROL',
          detail = format('The transaction began as %s; a prepared transaction belongs to the role that prepares it.',
                          substr(v_mark, 38)),
          hint = 'Run RESET ROLE before the handler returns.';
end
$$;

comment on function once.assert_branch(uuid) is
  'Raises ONEND if the marked transaction is over, ONROL if the role changed.';
call once.allow('app', 'assert_branch');
