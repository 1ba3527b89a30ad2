-- What a recoverer needs. It can finish branches only of roles that it is a member of (Postgres's rule), so:
-- grant shop to recoverer. Make it NOINHERIT, or from 16 on grant WITH INHERIT FALSE: then it has the
-- application's rights only where it takes on the role to finish a branch.
create function once.grant_recover(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('recover', grant_recover.role) $$;
comment on function once.grant_recover(text) is
  'Lets a role recover, purge, audit and expire keys: select once.grant_recover(''recoverer'').';
call once.allow('owner', 'grant_recover');
