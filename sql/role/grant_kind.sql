-- Internal: grants what once.privilege has for a kind of role.
create function once.grant_kind(kind text, role text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_statement text;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = grant_kind.role) then
    raise exception 'no role named %', coalesce(quote_literal(grant_kind.role), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of an existing role, without quotes.',
      hint = format('create role %I login', coalesce(grant_kind.role, 'shop'));
  end if;
  execute format('grant usage on schema once to %I', grant_kind.role);
  for v_statement in
    select format('grant %s on %s %s to %I', p.privileges,
                  case p.privileges when 'execute' then 'routine' else 'table' end,
                  string_agg(format('once.%I', p.object), ', '), grant_kind.role)
      from once.privilege p
     where p.kind = grant_kind.kind group by p.privileges
  loop
    execute v_statement;
  end loop;
end $$;
comment on function once.grant_kind(text, text) is
  'Internal: grants a role what once.privilege has for app, recover, monitor or operator.';
call once.allow('owner', 'grant_kind');
