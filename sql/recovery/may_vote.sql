-- Internal: whether a role can have prepared a branch of ours. Every branch inserted its evidence with
-- once.vote, so if the owner may not call it, it is a stranger's, whatever its gid says.
create function once.may_vote(role name) returns boolean language sql stable set search_path = '' as $$
  select coalesce((select has_function_privilege(r.oid, 'once.vote(uuid, uuid, text, uuid)', 'execute')
                      and has_schema_privilege(r.oid, 'once', 'usage')
                     from pg_catalog.pg_roles r where r.rolname = may_vote.role), false)
$$;
comment on function once.may_vote(name) is
  'Internal: whether a role may vote, else no prepared transaction of it is ours.';
call once.allow('app, recover, monitor', 'may_vote');

-- Internal: whether the current user can finish what a role has prepared: only the owner or a superuser may;
-- a member must SET ROLE, since 16 a privilege of its own.
create function once.may_finish(role name) returns boolean language sql stable set search_path = '' as $$
  select coalesce((select pg_has_role(current_user, r.oid,
                            case when current_setting('server_version_num')::integer >= 160000
                                 then 'set' else 'member' end)
                     from pg_catalog.pg_roles r where r.rolname = may_finish.role), false)
$$;
comment on function once.may_finish(name) is
  'Internal: whether the current user may finish what this role has prepared.';
call once.allow('app, recover, monitor', 'may_finish');
