-- What each kind of role needs, a row per object, written by the `call once.allow(kinds, object)` beside each
-- object and granted by once.grant_app() and its like. It is the least that works.
create table once.privilege (
  kind text not null check (kind in ('app', 'recover', 'monitor', 'operator')), object text not null,
  -- As GRANT has them: `execute`, or `select, insert (scope)`.
  privileges text not null,
  primary key (kind, object)
);
comment on table once.privilege is
  'What app, recover, monitor and operator may do, by object: what once.grant_app and its like grant.';
