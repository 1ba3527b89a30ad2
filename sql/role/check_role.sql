-- Internal: raises unless a role of this name exists.
create function once.check_role(role text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = check_role.role) then
    raise exception 'no role named %', coalesce(quote_literal(check_role.role), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of an existing role, without quotes.',
            hint = format('create role %I login', coalesce(check_role.role, 'shop'));
  end if;
end
$$;

comment on function once.check_role(text) is 'Internal: raises ONARG unless the role exists.';
revoke all on function once.check_role(text) from public;
