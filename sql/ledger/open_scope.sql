-- Internal: the scope's row, made at first use.
create function once.open_scope(scope text) returns once.scope
language plpgsql volatile set search_path = '' as $$
declare v_scope once.scope;
begin
  select s.* into v_scope from once.scope s where s.scope = open_scope.scope;
  if not found then
    perform once.check_name('scope', open_scope.scope);
    insert into once.scope (scope) values (open_scope.scope) on conflict do nothing;
    select s.* into strict v_scope from once.scope s where s.scope = open_scope.scope;
  end if;
  return v_scope;
end $$;
comment on function once.open_scope(text) is 'Internal: the row of a scope, created at first use.';
call once.allow('app', 'open_scope');
