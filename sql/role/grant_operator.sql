-- What the person on call needs: what a recoverer and a monitor may, and to overrule. When and by whom is
-- filled in by the tables. Grant it, as a recoverer, the roles whose branches it is to finish.
create function once.grant_operator(role text) returns void language sql volatile set search_path = '' as $$
  select once.grant_kind(k, grant_operator.role) from unnest(array['recover', 'monitor', 'operator']) k
$$;
comment on function once.grant_operator(text) is
  'Lets a role look, recover, force outcomes and acknowledge losses: select once.grant_operator(''oncall'').';
call once.allow('owner', 'grant_operator');
