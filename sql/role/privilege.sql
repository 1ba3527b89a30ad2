-- What each kind of role needs, a row for each object. The rows stand beside the objects: each file ends with
-- `call once.allow(kinds, object)`, and once.grant_app() and its like grant what is here. Row by row it is the
-- least that works: an application adds keys and never takes one back, a recoverer deletes what is proven.
create table once.privilege (
  kind text not null check (kind in ('app', 'recover', 'monitor', 'operator')),
  object text not null,
  -- As GRANT has them: `execute`, or `select, insert (scope)`.
  privileges text not null,
  primary key (kind, object)
);

comment on table once.privilege is
  'What app, recover, monitor and operator may do, object by object: from here once.grant_app and its like grant.';
