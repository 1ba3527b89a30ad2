-- Internal: raises why the row that names this database is not to be seen. No hint may destroy what is only
-- hidden: under a new id the decisions of transactions in doubt would be gone.
create function once.explain_no_database() returns void language plpgsql stable set search_path = '' as $$
begin
  if row_security_active('once.database'::regclass) then
    raise exception 'row level security hides the id of database % from role %',
        quote_ident(current_database()), quote_ident(current_user) using errcode = 'ONRLS',
      detail = 'Row level security was switched on for once.database, '
               'which has no policy that shows its row.',
      hint = 'alter table once.database disable row level security;   '
             '-- likewise the other tables of schema once';
  end if;
  raise exception 'database % has no id: the row of once.database is missing', quote_ident(current_database())
    using errcode = 'ONCPY',
    detail = 'The row names this database in gids; decisions and evidence count under that name only.',
    hint = case when exists (select from once.global_transaction) or exists (select from once.evidence)
                then 'There are decisions or evidence here: bring the row back from a backup.'
                else 'If this is a copy of a schema without its data: '
                     'select once.renew_database_id(''copied''). Else bring the row back from a backup.' end;
end $$;
comment on function once.explain_no_database() is
  'Internal: raises ONRLS if row level security hides the id of this database, ONCPY if it is missing.';
call once.allow('app, recover, monitor', 'explain_no_database');
